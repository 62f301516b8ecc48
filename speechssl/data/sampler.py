"""Decide which utterances go into which batch: a pure function of (lengths, seed, epoch).

All of it is arrays: an epoch of 10^7 utterances is shuffled at once, and a batch is cut out when it is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from speechssl.config import Config
from speechssl.data.audio import SAMPLE_RATE
from speechssl.errors import ManifestError
from speechssl.rng import keyed_generator

Lengths = npt.NDArray[np.int64]  # in samples at 16 kHz
Numbers = npt.NDArray[np.signedinteger[Any]]
_ORDER = 0  # the purpose of the generator that shuffles, beside those of masks and crops
_MOST_BUCKETS = 256
_MOST_SECONDS = float(2**31)  # whose samples can be counted
_BEARABLE_LOSS = 0.01  # of the audio, to crops or padding; fewer buckets mix utterances more freely


class BatchConfig(Config):
    """How utterances are put together; the defaults are wav2vec 2.0 base's for one GPU."""

    seconds: float = Field(87.5, gt=0, le=_MOST_SECONDS)  # in a batch, with padding; a longer utterance is one alone
    max_utterances: int | None = Field(None, ge=1)  # in a batch
    min_seconds: float = Field(2.0, ge=0)  # shorter utterances are left out
    max_seconds: float = Field(15.625, gt=0, le=_MOST_SECONDS)  # longer ones are cropped, in fine-tuning left out
    # A batch comes from one bucket of similar lengths. None takes the fewest, a power of two up to 256, with which
    # crops to the shortest of a bucket (or padding to its longest) cost less than 1 % of the audio.
    num_buckets: int | None = Field(None, ge=1, le=2**20)
    # All shapes follow from the bucket, which a GPU's allocator and compiled graphs like: hidden frames and labels are
    # filled up to the most that a recording of that length can have, batches of fine-tuning to the longest recording of
    # the bucket. One batch an epoch, of what is left over, has fewer rows.
    fixed_shapes: bool = False

    @model_validator(mode="after")
    def _admits_a_length(self) -> Self:
        if self.max_seconds < self.min_seconds:
            raise ValueError(f"max_seconds must be at least min_seconds, {self.min_seconds}, found {self.max_seconds}")
        return self


@dataclass(frozen=True)
class BatchPlan:
    """One batch before it is read; lengths are at 16 kHz."""

    epoch: int
    indices: tuple[int, ...]  # of its utterances in the manifest
    crop_samples: int | None  # that all are cropped to; None if they are read whole and padded
    fixed_samples: int | None = None  # of the batch; None if it is as long as its longest utterance


@dataclass(frozen=True)
class _Bucket:
    """The utterances [first, stop) of all in order of length, and how long they are in a batch."""

    first: int
    stop: int
    length: int


@dataclass(frozen=True)
class _Epoch:
    """The order of one pass over the data."""

    number: int
    utterances: Numbers  # their numbers in the manifest, one batch after another
    batches: Numbers  # which of these is at each position of the epoch


class BatchSampler:
    """The endless sequence of batches of a data set, indexed by number across epochs.

    Every epoch has the same number of batches and every utterance once. What is left over in one bucket moves to the
    next in which it loses least: to a shorter crop in pretraining, to a longer padding otherwise.

    The batches of an update, those with the numbers from i * ``microbatches`` on, come from one bucket, so that
    processes which share them have the same to do and need not wait for each other. What the buckets have left over
    for this joins in the order of length: an update of it has neighboring buckets.

    Args:
        lengths: Samples at 16 kHz of each utterance.
        config: Bounds.
        seed: Of the shuffling.
        crop: Whether utterances are cropped to their bucket's length (pretraining) or padded (fine-tuning).
        microbatches: Batches in an update.

    Raises:
        ManifestError: no utterance has an admitted length.
    """

    def __init__(
        self, lengths: npt.ArrayLike, config: BatchConfig, seed: int, *, crop: bool, microbatches: int = 1
    ) -> None:
        self.seed = seed
        self.crop = crop
        self.config = config
        self.microbatches = microbatches
        all_lengths = np.asarray(lengths, dtype=np.int64)
        shortest, longest = config.min_seconds * SAMPLE_RATE, round(config.max_seconds * SAMPLE_RATE)
        admitted = (all_lengths >= shortest) & (crop | (all_lengths <= longest))
        self.left_out = np.flatnonzero(~admitted)  # by their number in the manifest
        kept = np.flatnonzero(admitted).astype(np.min_scalar_type(-len(all_lengths)))
        if not kept.size:
            raise ManifestError(
                f"expected utterances of {config.min_seconds} to {config.max_seconds} seconds, found none "
                f"among {len(all_lengths)}"
            )
        usable = np.minimum(all_lengths[kept], longest)
        order = np.argsort(usable, kind="stable")
        self._by_length = kept[order]
        self._buckets = self._choose_buckets(usable[order])
        self._firsts, self._bucket_numbers = self._cut()
        self.num_batches = len(self._bucket_numbers)
        self.num_shapes = len(self._buckets) + 1  # of batches, with fixed shapes: one an epoch is of what is left over
        self._grouped = self._group()
        num_samples = int(all_lengths[kept].sum())
        in_batches = self._samples_in_batches(self._buckets) if crop else num_samples
        self.cropped_share = 1 - in_batches / num_samples  # of the audio that is not left out
        self.seconds_per_epoch = in_batches / SAMPLE_RATE  # without padding
        self._current = self._shuffle(0)

    def __getitem__(self, number: int) -> BatchPlan:
        epoch, position = divmod(number, self.num_batches)
        if self._current.number != epoch:
            self._current = self._shuffle(epoch)
        return self._plan(self._current, position)

    def epoch(self, epoch: int) -> list[BatchPlan]:
        """Return all batches of one pass over the data, in order."""
        shuffled = self._shuffle(epoch)
        return [self._plan(shuffled, position) for position in range(self.num_batches)]

    def _plan(self, epoch: _Epoch, position: int) -> BatchPlan:
        batch = epoch.batches[position]
        indices = epoch.utterances[self._firsts[batch] : self._firsts[batch + 1]]
        length = self._buckets[self._bucket_numbers[batch]].length
        fixed_samples = length if self.config.fixed_shapes else None
        return BatchPlan(epoch.number, tuple(indices.tolist()), length if self.crop else None, fixed_samples)

    def _shuffle(self, epoch: int) -> _Epoch:
        """Shuffle the utterances of each bucket, and then the updates.

        An epoch begins and ends within an update if its batches are no multiple of one. It gives to both from the end
        of the order of length, so that these updates have similar lengths too.
        """
        generator = keyed_generator(self.seed, epoch, _ORDER)
        buckets = [generator.permutation(self._by_length[bucket.first : bucket.stop]) for bucket in self._buckets]
        num_before = min(-epoch * self.num_batches % self.microbatches, self.num_batches)
        num_whole = (self.num_batches - num_before) // self.microbatches * self.microbatches
        whole, rest = np.split(self._grouped, [num_whole])
        order = generator.permutation(num_whole // self.microbatches)
        whole = whole.reshape(-1, self.microbatches)[order].ravel()
        batches = np.concatenate([rest[:num_before], whole, rest[num_before:]])
        return _Epoch(epoch, np.concatenate(buckets), batches)

    def _cut(self) -> tuple[Numbers, Numbers]:
        """Return where each batch begins in the order of the buckets, and where the last one ends; and its bucket."""
        firsts: list[Numbers] = []
        waiting = position = 0
        for bucket in self._buckets:
            waiting += bucket.stop - bucket.first
            size = self._batch_size(bucket)
            firsts.append(position + size * np.arange(waiting // size))
            position += waiting // size * size
            waiting %= size
        if waiting:
            firsts[-1] = np.append(firsts[-1], position)
        counts = [len(of_bucket) for of_bucket in firsts]
        return np.append(np.concatenate(firsts), position + waiting), np.repeat(np.arange(len(counts)), counts)

    def _group(self) -> Numbers:
        """Return the batches in the order of the buckets, those that are not enough for an update of one behind."""
        counts = np.bincount(self._bucket_numbers, minlength=len(self._buckets))
        starts = np.cumsum(counts) - counts
        within = np.arange(self.num_batches) - starts[self._bucket_numbers]
        is_over = within >= (counts // self.microbatches * self.microbatches)[self._bucket_numbers]
        return np.concatenate([np.flatnonzero(~is_over), np.flatnonzero(is_over)])

    def _batch_size(self, bucket: _Bucket) -> int:
        size = max(int(self.config.seconds * SAMPLE_RATE // bucket.length), 1)
        return min(size, self.config.max_utterances or size)

    def _choose_buckets(self, sorted_lengths: Lengths) -> list[_Bucket]:
        """Make as many buckets as the configuration says, or as the data asks for by what they lose."""
        if self.config.num_buckets is not None:
            return self._make_buckets(sorted_lengths, self.config.num_buckets)
        num_samples = int(sorted_lengths.sum())
        num_buckets = 1
        while True:
            buckets = self._make_buckets(sorted_lengths, num_buckets)
            in_batches = self._samples_in_batches(buckets)
            lost = abs(num_samples - in_batches) / max(num_samples, in_batches)
            if lost < _BEARABLE_LOSS or num_buckets == _MOST_BUCKETS:
                return buckets
            num_buckets *= 2

    def _make_buckets(self, sorted_lengths: Lengths, num_buckets: int) -> list[_Bucket]:
        """Make groups of about equal total duration, in the order in which leftovers move; equal lengths share one."""
        distinct = np.flatnonzero(np.diff(sorted_lengths, prepend=-1))  # the first utterance of each length
        shares = np.cumsum(sorted_lengths)[distinct] / sorted_lengths.sum()
        numbers = np.minimum((shares * num_buckets).astype(np.int64), num_buckets - 1)
        starts = distinct[np.flatnonzero(np.diff(numbers, prepend=-1))].tolist()
        bounds = zip(starts, [*starts[1:], len(sorted_lengths)], strict=True)
        if self.crop:
            return [_Bucket(first, stop, int(sorted_lengths[first])) for first, stop in bounds][::-1]
        return [_Bucket(first, stop, int(sorted_lengths[stop - 1])) for first, stop in bounds]

    def _samples_in_batches(self, buckets: Sequence[_Bucket]) -> int:
        """Count the samples in an epoch's batches: cropped, or padded to the longest of each bucket."""
        total = waiting = 0
        for bucket in buckets:
            waiting += bucket.stop - bucket.first
            left_over = waiting % self._batch_size(bucket)
            total += (waiting - left_over) * bucket.length
            waiting = left_over
        return total + waiting * buckets[-1].length
