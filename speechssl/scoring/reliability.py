"""How far confidences are from how often words are right, and how well they tell right words from wrong ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechssl.scoring.bootstrap import Interval, percentiles, resample

NUM_BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """The words whose confidences lie in a tenth of the range from 0 to 1."""

    num_words: int
    confidence: float  # the mean
    share_right: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """Confidences beside what became of them."""

    error: Interval  # the expected calibration error
    bins: tuple[Bin, ...]  # from the lowest confidences on; those without words are left out
    squared_error: float  # the mean (Brier score)
    auroc: float | None  # the share of pairs of one right and one wrong that confidences rank so; None without such


def measure_reliability(
    confidences: Sequence[Sequence[float]],
    is_right: Sequence[Sequence[float]],
    clusters: Sequence[str | None] | None = None,
) -> Reliability | None:
    """Measure the expected calibration error (ECE; Naeini et al., 2015) in ten bins of equal width.

    It is the mean over words of how far the mean confidence of a bin is from its share of right words. Chance alone
    makes it larger than 0, and larger again in each resample; so the interval is the basic bootstrap's, which subtracts
    from the measured value how far the resamples lie above it, and may lie mostly below that value. Utterances or
    clusters are resampled as for `bootstrap_interval`.

    Args:
        confidences: Of the words of each utterance, from 0 to 1.
        is_right: Likewise, 1 for what is right and 0 for what is wrong, or a share.
        clusters: The speaker of each utterance.

    Returns:
        None if there are no words.
    """
    found = [_sum_bins(*utterance) for utterance in zip(confidences, is_right, strict=True)]
    bins = np.array(found).reshape(-1, 3, NUM_BINS)  # (N, 3, B)
    counts, sums, right = bins.sum(axis=0)
    if not counts.any():
        return None
    statistics = np.column_stack((bins[:, 1] - bins[:, 2], bins[:, 0].sum(axis=1)))  # (N, B + 1)
    resampled = percentiles(_error(statistics.sum(axis=0)), _error(resample(statistics, clusters)))
    error = resampled.value
    values, truth = (np.concatenate([*map(np.asarray, rows)]).astype(np.float64) for rows in (confidences, is_right))
    low, high = (max(2 * error - end, 0.0) for end in (resampled.high, resampled.low))
    filled = np.flatnonzero(counts)
    return Reliability(
        Interval(error, low, high),
        tuple(Bin(int(counts[i]), float(sums[i] / counts[i]), float(right[i] / counts[i])) for i in filled),
        float(np.square(values - truth).mean()),
        _auroc(np.sort(values[truth == 1]), np.sort(values[truth == 0])),
    )


def _auroc(right: npt.NDArray[np.float64], wrong: npt.NDArray[np.float64]) -> float | None:
    """Return the area under the ROC curve of sorted confidences; ties count half."""
    if not len(right) or not len(wrong):
        return None
    below, not_above = (np.searchsorted(wrong, right, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(wrong))


def _sum_bins(confidences: Sequence[float], is_right: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the number of words, the sum of confidences and what is right in each bin, (3, B)."""
    values = np.array(confidences, np.float64)
    bins = np.minimum((values * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    weights = (np.ones_like(values), values, np.array(is_right, np.float64))
    return np.stack([np.bincount(bins, weight, NUM_BINS) for weight in weights])


def _error(statistics: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Expected calibration errors of (..., B + 1): confidences minus what is right by bin, and the number of words."""
    return np.asarray(np.abs(statistics[..., :-1]).sum(axis=-1) / np.maximum(statistics[..., -1], 1))
