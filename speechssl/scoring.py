"""Word and character error rates (by jiwer), with bootstrap intervals, paired comparison and confusions."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer
import numpy as np
import numpy.typing as npt

Edit = Literal["substitution", "deletion", "insertion"]

CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
_DRAWS_AT_ONCE = 1 << 20  # bounds the memory of a bootstrap over many utterances


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """The edits that turn references into hypotheses, in words or in characters."""

    substitutions: int
    deletions: int
    insertions: int
    reference_length: int

    @property
    def total(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits over the reference length; over 1 if there is no reference, so that insertions still count."""
        return self.total / max(self.reference_length, 1)


@dataclass(frozen=True, slots=True)
class Confusion:
    """One kind of mistake: ``reference`` is empty for an insertion, ``hypothesis`` for a deletion."""

    edit: Edit
    reference: str
    hypothesis: str
    count: int


@dataclass(frozen=True, slots=True)
class UtteranceScore:
    """One utterance as it was scored, both texts normalised."""

    reference: str
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts


@dataclass(frozen=True)
class Score:
    """The scores of a system on a set of utterances.

    Attributes:
        utterances: One score an utterance, in the order given.
        words: Sums over the utterances.
        characters: Sums over the utterances; the space between words is a character.
        word_confusions: Every mistaken word, the most frequent first.
        character_confusions: Every mistaken character, the most frequent first.
    """

    utterances: tuple[UtteranceScore, ...]
    words: ErrorCounts
    characters: ErrorCounts
    word_confusions: tuple[Confusion, ...]
    character_confusions: tuple[Confusion, ...]

    @property
    def wer(self) -> float:
        """Word error rate of the whole: sum of edits over sum of reference words."""
        return self.words.rate

    @property
    def cer(self) -> float:
        """Character error rate of the whole: sum of edits over sum of reference characters."""
        return self.characters.rate

    @property
    def word_counts(self) -> tuple[ErrorCounts, ...]:
        """Word edits by utterance, as `bootstrap_interval` and `compare` take them."""
        return tuple(utterance.words for utterance in self.utterances)

    @property
    def character_counts(self) -> tuple[ErrorCounts, ...]:
        """Character edits by utterance, as `bootstrap_interval` and `compare` take them."""
        return tuple(utterance.characters for utterance in self.utterances)


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same utterances: the second's error rate minus, and over, the first's."""

    difference: Interval
    ratio: Interval

    @property
    def is_significant(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return self.difference.low > 0 or self.difference.high < 0


def normalise_text(text: str) -> str:
    """The form in which texts are compared: lower case, Unicode NFC, single spaces, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text.lower()).split())


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Score hypotheses against references, both normalised first.

    An empty reference is allowed: every word of its hypothesis is an insertion.

    Args:
        references: What was said, a text an utterance.
        hypotheses: What was recognised, in the same order.

    Raises:
        ValueError: the two differ in number.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"expected as many hypotheses as references ({len(references)}), found {len(hypotheses)}")
    references = [normalise_text(text) for text in references]
    hypotheses = [normalise_text(text) for text in hypotheses]
    words, word_confusions = _count(jiwer.process_words(references, hypotheses))
    characters, character_confusions = _count(jiwer.process_characters(references, hypotheses))
    return Score(
        tuple(map(UtteranceScore, references, hypotheses, words, characters)),
        _sum(words),
        _sum(characters),
        word_confusions,
        character_confusions,
    )


def bootstrap_interval(
    counts: Sequence[ErrorCounts],
    clusters: Sequence[str | None] | None = None,
    *,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The error rate of all utterances with its 95 % percentile bootstrap interval.

    Resamples utterances, or whole clusters (speakers) where there are several, because the mistakes made on one
    speaker go together (Bisani and Ney, 2004, https://doi.org/10.1109/ICASSP.2004.1326009; Liu and Peng, 2020,
    https://arxiv.org/abs/1912.09508 for clusters).

    Args:
        counts: Edits by utterance.
        clusters: The speaker of each utterance; None for one that is unknown, which then stands alone.
        num_resamples: Samples drawn.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: there are no utterances, or not as many clusters.
    """
    whole = _as_array(counts)
    sums = _resample(whole, clusters, num_resamples, seed)
    return _interval(_rates(whole.sum(0)), _rates(sums))


def compare(
    first: Sequence[ErrorCounts],
    second: Sequence[ErrorCounts],
    clusters: Sequence[str | None] | None = None,
    *,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two systems on the same utterances: each resample scores both on the same draw.

    Args:
        first: Edits of the first system (the baseline) by utterance.
        second: Edits of the second system, in the same order.
        clusters: As for `bootstrap_interval`.
        num_resamples: Samples drawn.
        seed: Equal seeds give equal intervals.

    Returns:
        Intervals of second - first and of second / first. The ratio of two systems without any error is 1.

    Raises:
        ValueError: the two were not scored against the same references, or there are no utterances.
    """
    if [count.reference_length for count in first] != [count.reference_length for count in second]:
        raise ValueError("expected two systems scored on the same utterances in the same order")
    both = np.concatenate([_as_array(first), _as_array(second)], axis=1)
    whole, sums = both.sum(0), _resample(both, clusters, num_resamples, seed)
    before, after = _rates(whole[:2]), _rates(whole[2:])
    befores, afters = _rates(sums[:, :2]), _rates(sums[:, 2:])
    return Comparison(
        _interval(after - before, afters - befores), _interval(_ratio(after, before), _ratio(afters, befores))
    )


def _count(output: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[list[ErrorCounts], tuple[Confusion, ...]]:
    """Edits by utterance and all confusions, from jiwer's alignments of words or of characters."""
    counts: list[ErrorCounts] = []
    confusions: Counter[tuple[Edit, str, str]] = Counter()
    for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        edits: Counter[str] = Counter()
        for chunk in chunks:
            before = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            after = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "substitute":
                confusions.update(("substitution", *pair) for pair in zip(before, after, strict=True))
            elif chunk.type == "delete":
                confusions.update(("deletion", symbol, "") for symbol in before)
            elif chunk.type == "insert":
                confusions.update(("insertion", "", symbol) for symbol in after)
            edits[chunk.type] += max(len(before), len(after))
        counts.append(ErrorCounts(edits["substitute"], edits["delete"], edits["insert"], len(reference)))
    # Ties in the order of the texts, so that equal inputs give equal reports.
    ranked = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
    return counts, tuple(Confusion(*mistake, count) for mistake, count in ranked)


def _sum(counts: Sequence[ErrorCounts]) -> ErrorCounts:
    return ErrorCounts(
        sum(count.substitutions for count in counts),
        sum(count.deletions for count in counts),
        sum(count.insertions for count in counts),
        sum(count.reference_length for count in counts),
    )


def _as_array(counts: Sequence[ErrorCounts]) -> npt.NDArray[np.int64]:
    """(N, 2): edits and reference length of each utterance."""
    if not counts:
        raise ValueError("expected at least one utterance")
    return np.array([(count.total, count.reference_length) for count in counts], dtype=np.int64)


def _resample(
    counts: npt.NDArray[np.int64], clusters: Sequence[str | None] | None, num_resamples: int, seed: int
) -> npt.NDArray[np.int64]:
    """Sums of the (N, K) counts over samples drawn with replacement: (num_resamples, K)."""
    if clusters is not None:
        counts = _sum_clusters(counts, clusters)
    generator = np.random.default_rng(seed)
    num_units = len(counts)
    rows_at_once = max(_DRAWS_AT_ONCE // num_units, 1)
    sums = np.empty((num_resamples, counts.shape[1]), dtype=np.int64)
    for first in range(0, num_resamples, rows_at_once):
        rows = sums[first : first + rows_at_once]
        rows[:] = counts[generator.integers(num_units, size=(len(rows), num_units))].sum(1)
    return sums


def _sum_clusters(counts: npt.NDArray[np.int64], clusters: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """Sums of the counts by cluster; the counts as they are if all belong to one."""
    if len(clusters) != len(counts):
        raise ValueError(f"expected a cluster for each of {len(counts)} utterances, found {len(clusters)}")
    # An unknown cluster is keyed by the utterance itself.
    keys = [index if cluster is None else cluster for index, cluster in enumerate(clusters)]
    ids = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(ids) == 1:
        return counts
    sums = np.zeros((len(ids), counts.shape[1]), dtype=np.int64)
    np.add.at(sums, [ids[key] for key in keys], counts)
    return sums


def _rates(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Error rates of (..., 2) counts, as `ErrorCounts.rate`."""
    return np.asarray(counts[..., 0] / np.maximum(counts[..., 1], 1))


def _ratio(after: npt.NDArray[np.float64], before: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(after == before, 1.0, after / before)


def _interval(value: npt.NDArray[np.float64], samples: npt.NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    # Sample values themselves, not interpolated between: a ratio may be infinite.
    low, high = np.quantile(samples, [tail, 1 - tail], method="nearest")
    return Interval(float(value), float(low), float(high))
