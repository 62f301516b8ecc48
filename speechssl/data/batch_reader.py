"""Reading what a plan of a batch says, and what is read in the place of an utterance that cannot be."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic

import numpy as np
import numpy.typing as npt

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import BatchType, Example, Unreadable
from speechssl.data.manifest import Manifest, Utterance, read_utterance
from speechssl.data.sampler import BatchPlan
from speechssl.errors import AudioError
from speechssl.rng import keyed_generator

_CROP = 1  # the purpose of the generator that places crops
_MOST_TRIED = 10  # utterances in the place of an unreadable one: after more the whole store is out of reach


@dataclass(frozen=True)
class BatchReader(Generic[BatchType]):
    """Reads a batch as planned: what it holds depends on its plan and the seed of the crops alone.

    With ``skips_unreadable`` another utterance that fits takes the place of one that cannot be read:
    the batch keeps its shape, and what it holds depends on nothing else but on which can be read.
    """

    manifest: Manifest
    collate: Callable[[list[Example]], BatchType]
    seed: int
    skips_unreadable: bool = False
    min_samples: int = 0  # of an utterance that takes another's place

    def __call__(self, plan: BatchPlan) -> BatchType:
        """Read the recordings and make the batch of them; an AudioError says that they cannot be read."""
        return self.collate([self._read_or_replace(plan, index) for index in plan.indices])

    def where(self, plan: BatchPlan) -> str:
        """Return where the recordings of a batch stand in the manifest."""
        return ", ".join(self.manifest.where(index) for index in plan.indices)

    def _read_or_replace(self, plan: BatchPlan, index: int) -> Example:
        try:
            return self._read(plan, index)
        except AudioError as error:
            if not self.skips_unreadable:
                raise
            unreadable = [Unreadable(index, str(error))]
        for other in self._others(plan, index):
            try:
                return replace(self._read(plan, other), unreadable=tuple(unreadable))
            except AudioError as error:
                unreadable.append(Unreadable(other, str(error)))
        tried = f"nor can any of {len(unreadable) - 1} others that fit in its place"
        raise AudioError(f"{self.manifest.where(index)}: {unreadable[0].problem}; {tried}")

    def _others(self, plan: BatchPlan, index: int) -> list[int]:
        """Return what fits in the place of an utterance: those after it in the manifest and then from its start.

        Others of the batch come last.
        """
        lengths = self.manifest.num_output_samples
        planned = list(plan.indices)
        if plan.crop_samples is None:
            fits = (lengths >= self.min_samples) & (lengths <= lengths[planned].max())
        else:
            fits = lengths >= plan.crop_samples
        fits[planned] = False
        others = np.flatnonzero(fits)
        others = np.roll(others, -np.searchsorted(others, index))[:_MOST_TRIED]
        return [*others.tolist(), *(other for other in planned if other != index)]

    def _read(self, plan: BatchPlan, index: int) -> Example:
        utterance = self.manifest[index]
        if plan.crop_samples is None:
            waveform = read_utterance(utterance)
        else:
            spare = utterance.num_output_samples - plan.crop_samples
            offset = int(keyed_generator(self.seed, plan.epoch, index, _CROP).integers(spare + 1))
            waveform = read_crop(utterance, offset, plan.crop_samples)
        return Example(index, plan.epoch, waveform, utterance.text, plan.fixed_samples)


def read_crop(utterance: Utterance, offset: int, length: int) -> npt.NDArray[np.float32]:
    """Read the samples [offset, offset + length) at 16 kHz, decoding no more of the file than they need."""
    first = offset * utterance.sample_rate // SAMPLE_RATE
    wanted = -(-length * utterance.sample_rate // SAMPLE_RATE)
    wanted = min(wanted, utterance.num_samples - first)
    part = replace(utterance, start=utterance.start + first, num_samples=wanted)
    return read_utterance(part)[:length]  # other rates can give a sample too many, never too few
