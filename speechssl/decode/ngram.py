"""N-gram language models: how likely a word is after others."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -99 * math.log(10)
"""What stands for the logarithm of zero, as in ARPA files."""

Ngram = tuple[str, ...]


class LanguageModel(Protocol):
    """What the beam search asks of a model of words; see `NgramModel`."""

    @property
    def words(self) -> frozenset[str]: ...  # noqa: D102

    def score(self, context: Ngram, word: str) -> float: ...  # noqa: D102

    def shortened(self, context: Ngram) -> Ngram: ...  # noqa: D102


@dataclass(frozen=True)
class NgramModel:
    """A back-off model of words (Katz, 1987)."""

    order: int  # of the longest n-gram
    # The natural logarithms of the probability of the last word after the others, and of the weight with which shorter
    # n-grams count after it; <unk> is among them.
    entries: Mapping[Ngram, tuple[float, float]]

    def __post_init__(self) -> None:
        assert (UNKNOWN,) in self.entries

    def score(self, context: Ngram, word: str) -> float:
        """Return the natural logarithm of the probability of a word, or ``</s>``, after others.

        A sentence begins with ``<s>``. A word that the model does not know has the probability of ``<unk>``.
        """
        if (word,) not in self.entries:
            word = UNKNOWN
        context = self.shortened(context)
        back_off = 0.0
        for first in range(len(context)):
            history = context[first:]
            if (entry := self.entries.get((*history, word))) is not None:
                return back_off + entry[0]
            back_off += self.entries.get(history, (0.0, 0.0))[1]
        return back_off + self.entries[(word,)][0]

    def shortened(self, context: Ngram) -> Ngram:
        """Return the end of a context that counts, with ``<unk>`` for words that the model does not know."""
        last = context[max(len(context) - self.order + 1, 0) :]
        return tuple(word if (word,) in self.entries else UNKNOWN for word in last)

    @cached_property
    def words(self) -> frozenset[str]:
        """The words that the model knows, without its marks."""
        return frozenset(ngram[0] for ngram in self.entries if len(ngram) == 1) - {START, END, UNKNOWN}


def find_mark(words: Iterable[str]) -> str | None:
    """Return the first of the words that is one of the model's marks, and so no word."""
    return next((word for word in words if word in (START, END, UNKNOWN)), None)
