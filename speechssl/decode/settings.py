"""How a beam search with a language model is set."""

from pathlib import Path
from typing import Self

from pydantic import Field

from speechssl.config import Config


class BeamSearchConfig(Config):
    """What counts for how much, scores in nats; ``speechssl tune-lm`` finds it for a model and a language."""

    lm: Path  # an ARPA file, perhaps compressed by gzip, or a binary of KenLM
    lm_weight: float = Field(0.8, ge=0)  # of its log probabilities beside those of the CTC model
    word_score: float = 2.0  # for each word: more than 0 makes for more words
    unknown_score: float = Field(-10.0, le=0)  # for each word that the language model does not know
    beam_size: int = Field(50, ge=1)  # prefixes that are kept from frame to frame, at most
    beam_threshold: float = Field(25.0, gt=0)  # how far behind the best a prefix may be: an unknown word costs less
    min_symbol_log_prob: float = Field(-5.0, lt=0)  # less likely symbols are not tried at a frame

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the settings of a TOML file, in which ``lm`` counts from its folder; or take an ARPA file's defaults."""
        return cls.load([path]) if path.suffix == ".toml" else cls(lm=path)

    def describe(self) -> str:
        """Return the settings in a few words, for a table of results."""
        weights = f"{self.lm.name} x {self.lm_weight:g}, word {self.word_score:+g}, unknown {self.unknown_score:+g}"
        return f"beam {self.beam_size}, {weights}"
