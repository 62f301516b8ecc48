"""Which utterances go into which batch: a pure function of (lengths, seed, epoch)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from speechssl.config import Config
from speechssl.data.audio import SAMPLE_RATE
from speechssl.errors import ManifestError
from speechssl.rng import keyed_generator

_ORDER = 0  # the purpose of the generator that shuffles, beside those of masks and crops


class BatchConfig(Config):
    """How utterances are put together; the defaults are wav2vec 2.0 base's for one GPU.

    Attributes:
        seconds: Audio in a batch at most, padding included. One longer utterance is still a batch.
        min_seconds: Shorter utterances are left out.
        max_seconds: Longer utterances are cropped in pretraining, left out in fine-tuning.
        num_buckets: Groups of similar length; a batch comes from one.
    """

    seconds: float = Field(87.5, gt=0)
    min_seconds: float = Field(2.0, ge=0)
    max_seconds: float = Field(15.625, gt=0)
    num_buckets: int = Field(16, ge=1)


@dataclass(frozen=True)
class BatchPlan:
    """One batch before it is read.

    Attributes:
        epoch: The pass over the data it belongs to.
        indices: Its utterances, by their number in the manifest.
        crop_samples: The length at 16 kHz that all are cropped to; None if they are read whole and padded.
    """

    epoch: int
    indices: tuple[int, ...]
    crop_samples: int | None


class BatchSampler:
    """The endless sequence of batches of a data set, indexed by number across epochs.

    Every epoch has the same number of batches and every utterance once. What is left over in one bucket moves to the
    next in which it loses least: to a shorter crop in pretraining, to a longer padding otherwise.

    Args:
        lengths: Samples at 16 kHz of each utterance.
        config: Bounds.
        seed: Of the shuffling.
        crop: Whether utterances are cropped to their bucket's length (pretraining) or padded (fine-tuning).

    Raises:
        ManifestError: no utterance has an admitted length.
    """

    def __init__(self, lengths: npt.ArrayLike, config: BatchConfig, seed: int, *, crop: bool) -> None:
        self.seed = seed
        self.crop = crop
        all_lengths = np.asarray(lengths, dtype=np.int64)
        shortest, longest = config.min_seconds * SAMPLE_RATE, round(config.max_seconds * SAMPLE_RATE)
        admitted = (all_lengths >= shortest) & (crop | (all_lengths <= longest))
        self.left_out: tuple[int, ...] = tuple(np.flatnonzero(~admitted).tolist())
        kept = np.flatnonzero(admitted)
        if not kept.size:
            raise ManifestError(
                f"expected utterances of {config.min_seconds} to {config.max_seconds} seconds, found none "
                f"among {len(all_lengths)}"
            )
        usable = np.minimum(all_lengths, longest)
        self._buckets = _make_buckets(kept, usable, config.num_buckets)
        if crop:
            self._buckets.reverse()  # leftovers move to shorter crops
        self._bucket_lengths = [int(usable[b].min() if crop else usable[b].max()) for b in self._buckets]
        self._batch_samples = config.seconds * SAMPLE_RATE
        self.seconds_per_epoch = float(usable[kept].sum()) / SAMPLE_RATE
        self._current = self.epoch(0)
        self.num_batches = len(self._current)

    def __getitem__(self, number: int) -> BatchPlan:
        epoch, position = divmod(number, self.num_batches)
        if self._current[0].epoch != epoch:
            self._current = self.epoch(epoch)
        return self._current[position]

    def epoch(self, epoch: int) -> list[BatchPlan]:
        """All batches of one pass over the data, in order."""
        generator = keyed_generator(self.seed, epoch, _ORDER)
        plans: list[BatchPlan] = []
        waiting: list[int] = []
        for bucket, length in zip(self._buckets, self._bucket_lengths, strict=True):
            waiting += generator.permutation(bucket).tolist()
            size = max(int(self._batch_samples // length), 1)
            num_full = len(waiting) // size * size
            plans += [self._plan(epoch, waiting[first : first + size], length) for first in range(0, num_full, size)]
            del waiting[:num_full]
        if waiting:
            plans.append(self._plan(epoch, waiting, self._bucket_lengths[-1]))
        return [plans[number] for number in generator.permutation(len(plans))]

    def _plan(self, epoch: int, indices: list[int], length: int) -> BatchPlan:
        return BatchPlan(epoch, tuple(indices), length if self.crop else None)


def _make_buckets(
    kept: npt.NDArray[np.intp], lengths: npt.NDArray[np.int64], num_buckets: int
) -> list[npt.NDArray[np.intp]]:
    """Split utterances, shortest first, into groups of about equal total duration; equal lengths stay together."""
    ordered = kept[np.argsort(lengths[kept], kind="stable")]
    sorted_lengths = lengths[ordered]
    shares = np.cumsum(sorted_lengths) / sorted_lengths.sum()
    numbers = np.minimum((shares * num_buckets).astype(np.int64), num_buckets - 1)
    first_of_length = np.searchsorted(sorted_lengths, sorted_lengths, side="left")
    numbers = numbers[first_of_length]
    return [ordered[numbers == number] for number in np.unique(numbers)]
