"""Which labels that a model made are believed: self-training learns from its own mistakes unless they are left out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from speechssl.data.manifest import Utterance

NGRAM_WORDS = 4  # of which the repeats are counted

NOTHING, LOW, VIEWS, GREEDY, REPEATS, FEW, MANY, NOT_BEST = (
    "nothing heard",
    "low score",
    "second view differs",
    "language model differs",
    "repeated words",
    "too few letters a second",
    "too many letters a second",
    "not among the best",
)
"""Why a label is left out."""


@dataclass(frozen=True)
class PseudoLabel:
    """What a model hears in an utterance, and what speaks for it."""

    text: str  # by the language model if there is one
    greedy: str  # without it
    score: float  # natural logarithm of the text's probability by the CTC model, a label; the blanks are none
    letters_per_second: float
    second: str | None = None  # what the second view hears, greedily
    view_difference: float | None = None  # character error rate of the second view against the greedy text
    lm_difference: float | None = None  # character error rate of the greedy text against the text


@dataclass(frozen=True)
class Filters:
    """What a label needs to be kept.

    The score tells good labels from bad ones best. The other defaults leave out what is nearly always wrong: labels of
    the prompts with over 70 % character errors (recipes/prompts/RESULTS.md).
    """

    keep: float = 0.7  # the share of the best scores, of what the other filters leave
    min_score: float | None = None  # None is no bound
    max_view_difference: float = 0.5
    max_lm_difference: float = 1.0
    max_repeats: int = 2  # how often the same four words in a row may occur
    letters_per_second: tuple[float, float] | None = None  # the least and the most

    def left_out(self, labels: Sequence[PseudoLabel]) -> list[list[str]]:
        """Return for each label all reasons to leave it out, none if it is kept.

        As in wav2letter's recipes (Kahn et al., 2019, https://arxiv.org/abs/1909.09116) what is surely wrong goes
        first, and the best share of the rest stays.
        """
        found = [list(self._reasons(label)) for label in labels]
        rest = [number for number, reasons in enumerate(found) if not reasons]
        rest.sort(key=lambda number: -labels[number].score)
        for number in rest[round(self.keep * len(rest)) :]:
            found[number].append(NOT_BEST)
        return found

    def _reasons(self, label: PseudoLabel) -> Iterator[str]:
        if not label.text:
            yield NOTHING
            return
        if self.min_score is not None and label.score < self.min_score:
            yield LOW
        if label.view_difference is not None and label.view_difference > self.max_view_difference:
            yield VIEWS
        if label.lm_difference is not None and label.lm_difference > self.max_lm_difference:
            yield GREEDY
        if most_repeats(label.text.split()) > self.max_repeats:
            yield REPEATS
        if self.letters_per_second is not None:
            least, most = self.letters_per_second
            if label.letters_per_second < least:
                yield FEW
            if label.letters_per_second > most:
                yield MANY


def most_repeats(words: Sequence[str]) -> int:
    """Return how often the most frequent four words in a row occur; 0 in a shorter text."""
    ngrams = Counter(tuple(words[first : first + NGRAM_WORDS]) for first in range(len(words) - NGRAM_WORDS + 1))
    return max(ngrams.values(), default=0)


def letters_per_second(text: str, seconds: float) -> float:
    """Return how fast a text is spoken, spaces aside."""
    return len("".join(text.split())) / seconds


def usual_speeds(labeled: Iterable[Utterance], tail: float) -> tuple[float, float]:
    """Return the bounds of letters a second in labeled speech, with the share ``tail`` of it outside on either side."""
    speeds = [letters_per_second(utterance.text, utterance.seconds) for utterance in labeled if utterance.text]
    least, most = np.quantile(speeds, [tail, 1 - tail])
    return float(least), float(most)
