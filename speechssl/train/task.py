"""What is trained: a model, its batches and what its losses mean, as values."""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from speechssl.data.batches import BatchReader, Example, TaskBatch, load_batches
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import BatchConfig, BatchSampler
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
    ) -> "Batches[B]":
        """Put the utterances of a manifest together, cropped to equal lengths or padded."""
        lengths = [utterance.num_output_samples for utterance in manifest]
        return cls(manifest, BatchSampler(lengths, config, seed, crop=crop), collate, num_workers, seed)

    @property
    def streams(self) -> "tuple[Batches[Any], ...]":
        """The data sets that each batch has audio of, in the order of `TaskBatch.audios`."""
        return (self,)

    @property
    def reader(self) -> BatchReader[B]:
        """What reads a batch as planned."""
        return BatchReader(self.manifest, self.collate, self.seed)

    def read(self, numbers: Iterable[int], *, pin_memory: bool = False) -> Generator[B, None, None]:
        """Read the batches with these numbers, counted across epochs."""
        plans = (self.sampler[number] for number in numbers)
        return load_batches(self.reader, plans, num_workers=self.num_workers, pin_memory=pin_memory)

    def read_share(self, rank: int, count: int) -> Generator[B, None, None]:
        """Read a rank's share of the first epoch: the same crops and masks each time."""
        return load_batches(self.reader, self.sampler.epoch(0)[rank::count], num_workers=0)


@dataclass(frozen=True)
class Measured:
    """What a batch of the dev set gives."""

    losses: Losses
    counts: Mapping[str, float]  # what the sums of the losses are divided by


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
    write_model: Callable[[int, Path], None]  # after so many updates, into a folder
    limits: tuple[Limit, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)  # values for limits that no update changes
