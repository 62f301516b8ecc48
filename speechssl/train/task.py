"""What every task on manifests has: its batches for training and for the dev set."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic

from speechssl.checkpoint.native import TrainingData
from speechssl.data.batches import BatchType, DataConfig, Example, make_loader
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import BatchConfig, BatchSampler
from speechssl.train.parallel import Ranks


class CorpusTask(Generic[BatchType]):
    """A task whose batches come from a training and a dev manifest.

    Args:
        data: License and workers.
        train_manifest: What to train on.
        dev_manifest: What to measure progress on.
        sampler: The batches of the training manifest.
        dev_sampler: The batches of the dev manifest.
        collate: Makes a training batch of its examples; runs in the loader's workers.
        dev_collate: Makes a dev batch.
        seed: Of crops.
    """

    def __init__(
        self,
        data: DataConfig,
        train_manifest: Manifest,
        dev_manifest: Manifest,
        sampler: BatchSampler,
        dev_sampler: BatchSampler,
        collate: Callable[[list[Example]], BatchType],
        dev_collate: Callable[[list[Example]], BatchType],
        seed: int,
    ) -> None:
        self.data = data
        self.train_manifest = train_manifest
        self.dev_manifest = dev_manifest
        self.sampler = sampler
        self.dev_sampler = dev_sampler
        self.collate = collate
        self.dev_collate = dev_collate
        self.seed = seed

    def train_batches(self, numbers: Iterable[int], *, pin_memory: bool) -> Iterator[BatchType]:
        """Read the training batches with these numbers."""
        return make_loader(
            self.train_manifest,
            (self.sampler[number] for number in numbers),
            self.collate,
            seed=self.seed,
            num_workers=self.data.num_workers,
            pin_memory=pin_memory,
        )

    def dev_batches(self, ranks: Ranks) -> Iterator[BatchType]:
        """This rank's share of the dev set, the same crops and masks at every evaluation."""
        plans = self.dev_sampler.epoch(0)[ranks.rank :: ranks.count]
        return make_loader(self.dev_manifest, plans, self.dev_collate, seed=self.seed, num_workers=0)

    def training_data(self, stage: str, *, labeled: bool) -> TrainingData:
        """What a model of this task says it was trained on."""
        hours = sum(self.train_manifest.seconds.tolist()) / 3600
        return TrainingData(stage=stage, license=self.data.license, hours=hours, labeled=labeled)


def make_sampler(manifest: Manifest, batches: BatchConfig, seed: int, *, crop: bool) -> BatchSampler:
    """The batches of a manifest, cropped to equal lengths or padded."""
    return BatchSampler(manifest.num_output_samples, batches, seed, crop=crop)
