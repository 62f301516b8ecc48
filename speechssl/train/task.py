"""What is trained: a model, its batches and what its losses mean, as values."""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from speechssl.data.batches import DataConfig, Example, TaskBatch, make_loader
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import BatchConfig, BatchSampler
from speechssl.objective.objective import Losses

B = TypeVar("B", bound=TaskBatch)


@dataclass(frozen=True)
class Batches(Generic[B]):
    """The batches of a split: which utterances each has, and what becomes of them.

    Attributes:
        manifest: The utterances.
        sampler: Which of them make a batch.
        collate: Makes a batch of its examples; runs in the loader's workers.
        data: Says how many workers there are.
        seed: Of crops.
    """

    manifest: Manifest
    sampler: BatchSampler
    collate: Callable[[list[Example]], B]
    data: DataConfig
    seed: int

    @classmethod
    def of_manifest(
        cls,
        manifest: Manifest,
        config: BatchConfig,
        collate: Callable[[list[Example]], B],
        data: DataConfig,
        seed: int,
        *,
        crop: bool,
    ) -> "Batches[B]":
        """Put the utterances of a manifest together, cropped to equal lengths or padded."""
        lengths = [utterance.num_output_samples for utterance in manifest]
        return cls(manifest, BatchSampler(lengths, config, seed, crop=crop), collate, data, seed)

    def read(self, numbers: Iterable[int], *, pin_memory: bool = False) -> Generator[B, None, None]:
        """Read the batches with these numbers, counted across epochs."""
        return make_loader(
            self.manifest,
            (self.sampler[number] for number in numbers),
            self.collate,
            seed=self.seed,
            num_workers=self.data.num_workers,
            pin_memory=pin_memory,
        )

    def read_share(self, rank: int, count: int) -> Generator[B, None, None]:
        """Read a rank's share of the first epoch: the same crops and masks each time."""
        plans = self.sampler.epoch(0)[rank::count]
        return make_loader(self.manifest, plans, self.collate, seed=self.seed, num_workers=0)


@dataclass(frozen=True)
class Measured:
    """What a batch of the dev set gives.

    Attributes:
        losses: Sums to report.
        counts: What they are divided by.
    """

    losses: Losses
    counts: Mapping[str, float]


@dataclass(frozen=True)
class Task(Generic[B]):
    """What the trainer trains.

    Attributes:
        stage: Its name on the console.
        model: A module whose call with (batch, step) returns ``Losses``.
        saved_module: What of it the model's files hold, and a resumed run reads.
        train: The batches to train on.
        dev: The batches to measure progress on.
        evaluate: Measures a dev batch after so many updates, the model being in evaluation mode.
        best_metric: The dev metric, lower being better, that chooses the ``best`` checkpoint.
        shown_metrics: What of the log is shown on the console, in this order.
        frozen: The modules that do not learn in an update.
        after_update: Called after each update with the updates done.
        write_model: Writes the model's files after so many updates into a folder.
    """

    stage: str
    model: nn.Module
    saved_module: nn.Module
    train: Batches[B]
    dev: Batches[B]
    evaluate: Callable[[B, int], Measured]
    best_metric: str
    shown_metrics: tuple[str, ...]
    frozen: Callable[[int], tuple[nn.Module, ...]]
    after_update: Callable[[int], None]
    write_model: Callable[[int, Path], None]
