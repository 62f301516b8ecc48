"""What a search finds: texts with their scores."""

from dataclasses import dataclass

from speechssl.decode.greedy import PathToken
from speechssl.decode.lattice import Lattice


@dataclass(frozen=True)
class Hypothesis:
    """A text that a search found, and its scores in nats."""

    text: str
    acoustic: float  # the log probability of all its paths that the search kept, by the CTC model
    lm: float  # of its words: the language model's, weighted, with those for words, unknown ones and hot phrases

    @property
    def score(self) -> float:
        """Return what it is ranked by."""
        return self.acoustic + self.lm

    def to_dict(self) -> dict[str, str | float]:
        """Return it as plain JSON types."""
        scores = {"score": self.score, "acoustic": self.acoustic, "lm": self.lm}
        return {"text": self.text, **{name: round(value, 4) for name, value in scores.items()}}


@dataclass(frozen=True)
class Sentence:
    """A stretch of a recording that was searched as a whole, and what was found, the best first."""

    first_frame: int
    stop_frame: int
    hypotheses: tuple[Hypothesis, ...]
    path: list[PathToken]  # of the best
    lattice: Lattice | None = None  # if it was asked for
