"""What is trained: a model, its batches and what its losses mean, as values."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from torch import Tensor, nn

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batch_reader import BatchReader
from speechssl.data.batches import Example, TaskBatch, load_batches
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import BatchConfig, BatchPlan, BatchSampler
from speechssl.objective.objective import AllReduce, Limit, Losses

B = TypeVar("B", bound=TaskBatch)


@dataclass(frozen=True)
class Batches(Generic[B]):
    """The batches of a split: which utterances each has, and what becomes of them."""

    manifest: Manifest
    sampler: BatchSampler
    collate: Callable[[list[Example]], B]  # runs in the loader's workers
    num_workers: int
    seed: int  # of crops
    skips_unreadable: bool = False  # as for `BatchReader`

    @classmethod
    def of_manifest(
        cls,
        manifest: Manifest,
        config: BatchConfig,
        collate: Callable[[list[Example]], B],
        num_workers: int,
        seed: int,
        *,
        crop: bool,
        microbatches: int = 1,
    ) -> "Batches[B]":
        """Put the utterances of a manifest together, cropped to equal lengths or padded, as `BatchSampler`."""
        sampler = BatchSampler(manifest.num_output_samples, config, seed, crop=crop, microbatches=microbatches)
        return cls(manifest, sampler, collate, num_workers, seed)

    @property
    def streams(self) -> "tuple[Batches[Any], ...]":
        """The data sets that each batch has audio of, in the order of `TaskBatch.audios`."""
        return (self,)

    @property
    def reader(self) -> BatchReader[B]:
        """What reads a batch as planned."""
        min_samples = math.ceil(self.sampler.config.min_seconds * SAMPLE_RATE)
        return BatchReader(self.manifest, self.collate, self.seed, self.skips_unreadable, min_samples)

    def skipping_unreadable(self) -> Self:
        """Return the same batches, in which others take the place of utterances that cannot be read."""
        return replace(self, skips_unreadable=True)

    def read(self, numbers: Iterable[int], *, pin_memory: bool = False) -> Generator[B, None, None]:
        """Read the batches with these numbers, counted across epochs."""
        return self._load((self.sampler[number] for number in numbers), pin_memory)

    def read_share(self, rank: int, count: int, *, pin_memory: bool = False) -> Generator[B, None, None]:
        """Read a rank's share of the first epoch: the same crops and masks each time."""
        return self._load(self.sampler.epoch(0)[rank::count], pin_memory)

    def _load(self, plans: Iterable[BatchPlan], pin_memory: bool) -> Generator[B, None, None]:
        return load_batches(self.reader, self.reader.where, plans, num_workers=self.num_workers, pin_memory=pin_memory)


@dataclass(frozen=True, order=True)
class Sample:
    """What a model says of an utterance of the dev set, which has this number in the manifest."""

    utterance: int
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Measured:
    """What a batch of the dev set gives."""

    losses: Losses
    counts: Mapping[str, float]  # what the sums of the losses are divided by
    samples: tuple[Sample, ...] = ()  # of a few utterances, the same ones in every evaluation


@dataclass(frozen=True)
class Task(Generic[B]):
    """What the trainer trains."""

    stage: str
    model: nn.Module  # its call with (batch, step) returns ``Losses``
    saved_module: nn.Module  # what of it the model's files hold, and a resumed run reads
    compiled: tuple[nn.Module, ...]  # the parts of it whose calls are compiled if ``trainer.compile`` says so
    train: Batches[B]
    dev: Batches[B]
    evaluate: Callable[[B, int], Measured]  # of a dev batch after so many updates, the model being in evaluation mode
    best_metric: str | None  # of the dev set, lower being better; chooses the ``best`` checkpoint; None: the latest
    shown_metrics: tuple[str, ...]  # on the console, in this order
    frozen: Callable[[int], tuple[nn.Module, ...]]  # the modules that do not learn in an update
    after_update: Callable[[int, AllReduce], None]  # is told the updates done, as `Objective.after_update`
    write_model: Callable[
        [int, Path, Mapping[str, Tensor]], None
    ]  # after so many updates, into a folder, these weights
    limits: tuple[Limit, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)  # values for limits that no update changes
    chance: Mapping[str, float] = field(default_factory=dict)  # metrics of a model that guesses
