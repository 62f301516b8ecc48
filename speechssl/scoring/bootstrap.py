"""How sure an error rate, or a difference of two, is: bootstrap intervals over utterances, speakers and runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from speechssl.scoring.error_rates import ErrorCounts

CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
_DRAWS_AT_ONCE = 1 << 20  # bounds the memory of a bootstrap over many utterances
Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def show(self, scale: float = 100, digits: int = 1) -> str:
        """Return "12.3 [10.1, 14.5]", by default in percent, or "12.3" without an interval, as of one utterance."""
        value, low, high = (f"{scale * number:.{digits}f}" for number in (self.value, self.low, self.high))
        return value if self.low == self.high else f"{value} [{low}, {high}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same utterances: the second's error rate minus, and over, the first's."""

    difference: Interval
    ratio: Interval


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
    https://arxiv.org/abs/1912.09508 for clusters). An utterance whose speaker is None stands alone.
    """
    whole = _as_array(counts)
    sums = resample(whole, clusters, num_resamples=num_resamples, seed=seed)
    return percentiles(_rates(whole.sum(0)), _rates(sums))


def compare_runs(
    first: Sequence[Sequence[ErrorCounts]],
    second: Sequence[Sequence[ErrorCounts]],
    *,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two methods of which each was run with several seeds, on the same utterances.

    Each resample draws utterances, the same for both methods, and runs of each method: the interval says what other
    utterances and other seeds could have given.

    Args:
        first: Edits by run and utterance of the baseline.
        second: Edits of the other method, the utterances in the same order.
        num_resamples: Samples drawn.
        seed: Equal seeds give equal intervals.
    """
    if not first or not second:
        raise ValueError("expected at least one run of each method")
    references = {tuple(count.reference_length for count in run) for run in (*first, *second)}
    if len(references) > 1:
        raise ValueError("expected runs scored on the same utterances in the same order")
    generator = np.random.default_rng(seed)
    methods = [np.stack([_as_array(run) for run in runs]) for runs in (first, second)]  # (R, N, 2)
    num_utterances = methods[0].shape[1]
    utterances = generator.multinomial(num_utterances, np.full(num_utterances, 1 / num_utterances), num_resamples)
    whole, sums = [], []
    for counts in methods:
        runs = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), num_resamples)
        whole.append(_rates(counts.sum(axis=(0, 1))))
        sums.append(_rates(np.einsum("sr,su,ruk->sk", runs, utterances, counts, optimize=True)))
    return Comparison(
        percentiles(whole[1] - whole[0], sums[1] - sums[0]),
        percentiles(_ratio(whole[1], whole[0]), _ratio(sums[1], sums[0])),
    )


def _as_array(counts: Sequence[ErrorCounts]) -> npt.NDArray[np.int64]:
    """(N, 2): edits and reference length of each utterance."""
    if not counts:
        raise ValueError("expected at least one utterance")
    return np.array([(count.total, count.reference_length) for count in counts], dtype=np.int64)


def resample(
    counts: npt.NDArray[Number],
    clusters: Sequence[str | None] | None = None,
    *,
    num_resamples: int = _NUM_RESAMPLES,
    seed: int = 0,
) -> npt.NDArray[Number]:
    """Sums of (N, K) counts over samples drawn with replacement, as for `bootstrap_interval`: (num_resamples, K)."""
    if clusters is not None:
        counts = _sum_clusters(counts, clusters)
    generator = np.random.default_rng(seed)
    num_units = len(counts)
    rows_at_once = max(_DRAWS_AT_ONCE // num_units, 1)
    sums = np.empty((num_resamples, counts.shape[1]), counts.dtype)
    for first in range(0, num_resamples, rows_at_once):
        rows = sums[first : first + rows_at_once]
        rows[:] = counts[generator.integers(num_units, size=(len(rows), num_units))].sum(1)
    return sums


def _sum_clusters(counts: npt.NDArray[Number], clusters: Sequence[str | None]) -> npt.NDArray[Number]:
    """Sums of the counts by cluster; the counts as they are if all belong to one."""
    if len(clusters) != len(counts):
        raise ValueError(f"expected a cluster for each of {len(counts)} utterances, found {len(clusters)}")
    # An unknown cluster is keyed by the utterance itself.
    keys = [index if cluster is None else cluster for index, cluster in enumerate(clusters)]
    ids = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(ids) == 1:
        return counts
    sums = np.zeros((len(ids), counts.shape[1]), counts.dtype)
    np.add.at(sums, [ids[key] for key in keys], counts)
    return sums


def _rates(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Error rates of (..., 2) counts, as `ErrorCounts.rate`."""
    return np.asarray(counts[..., 0] / np.maximum(counts[..., 1], 1))


def _ratio(after: npt.NDArray[np.float64], before: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(after == before, 1.0, after / before)


def percentiles(value: npt.NDArray[np.float64], samples: npt.NDArray[np.float64]) -> Interval:
    """Return a value with the ends of the middle 95 % of its samples."""
    tail = (1 - CONFIDENCE) / 2
    # Sample values themselves, not interpolated between: a ratio may be infinite.
    low, high = np.quantile(samples, [tail, 1 - tail], method="nearest")
    return Interval(float(value), float(low), float(high))
