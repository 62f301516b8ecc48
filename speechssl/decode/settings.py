"""How a beam search with a language model is set."""

from pathlib import Path
from typing import Self

from pydantic import Field

from speechssl.config import Config


class BeamSearchConfig(Config):
    """What counts for how much; ``speechssl tune-lm`` finds it for a model and a language.

    Attributes:
        lm: An ARPA file, which may be compressed by gzip.
        lm_weight: Of the language model's log probabilities beside those of the CTC model.
        word_score: Added for each word, in nats: more than 0 makes for more words.
        unknown_score: Added for each word that the language model does not know, in nats.
        beam_size: Prefixes that are kept from frame to frame, at most.
        beam_threshold: How far behind the best one a prefix may be, in nats: farther than an unknown word costs.
        min_symbol_log_prob: Symbols less likely than this at a frame are not tried, in nats.
    """

    lm: Path
    lm_weight: float = Field(0.8, ge=0)
    word_score: float = 2.0
    unknown_score: float = Field(-10.0, le=0)
    beam_size: int = Field(50, ge=1)
    beam_threshold: float = Field(25.0, gt=0)
    min_symbol_log_prob: float = Field(-5.0, lt=0)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The settings of a TOML file, in which ``lm`` counts from its folder; or the defaults for an ARPA file.

        Raises:
            ConfigError: the TOML file is missing or has other settings.
        """
        if path.suffix != ".toml":
            return cls(lm=path)
        config = cls.load([path])
        return config.model_copy(update={"lm": path.parent / config.lm})

    def describe(self) -> str:
        """The settings in a few words, for a table of results."""
        weights = f"{self.lm.name} x {self.lm_weight:g}, word {self.word_score:+g}, unknown {self.unknown_score:+g}"
        return f"beam {self.beam_size}, {weights}"
