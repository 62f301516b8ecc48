"""Pretraining: an encoder and an objective on unlabelled audio."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn

from speechssl.checkpoint.native import ModelDescription, TrainingData, load_weights, save_model
from speechssl.checkpoint.training_state import load_progress
from speechssl.config import Config
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.loader import DataConfig, make_loader
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.data.sampler import BatchConfig, BatchSampler
from speechssl.frames import MaskConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.contrastive import (
    ContrastiveBatch,
    ContrastiveCollate,
    ContrastiveConfig,
    ContrastiveObjective,
)
from speechssl.objective.losses import Losses
from speechssl.train.distributed import Ranks, joined_ranks
from speechssl.train.optimizer import OptimizerConfig, ScheduleConfig
from speechssl.train.run import begin_or_resume, describe_run, locked_run, refuse_bad_data
from speechssl.train.trainer import TrainerConfig, train


class PretrainConfig(Config):
    """Everything about a pretraining run; the defaults are wav2vec 2.0 base.

    Attributes:
        seed: Of initialisation, order, crops, masks and noise.
    """

    seed: int = Field(0, ge=0)
    data: DataConfig
    batches: BatchConfig = BatchConfig()
    encoder: EncoderConfig = EncoderConfig()
    mask: MaskConfig = MaskConfig()
    objective: ContrastiveConfig = ContrastiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    trainer: TrainerConfig = TrainerConfig()

    @model_validator(mode="after")
    def _hides_something_of_all(self) -> Self:
        if self.mask.min_spans < 1:
            raise ValueError("mask.min_spans must be at least 1, or an update could have nothing to predict")
        shortest = self.encoder.feature_encoder.geometry.num_samples(2) / SAMPLE_RATE
        if self.batches.min_seconds < shortest:
            raise ValueError(f"batches.min_seconds must be at least {shortest}, two frames")
        return self


class PretrainModel(nn.Module):
    """An encoder with its objective."""

    def __init__(self, encoder: EncoderConfig, objective: ContrastiveConfig) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(encoder)
        self.objective = ContrastiveObjective(objective, encoder.feature_encoder.dims[-1], encoder.context.model_dim)

    def forward(self, batch: ContrastiveBatch, step: int) -> Losses:
        """The losses of a batch after ``step`` updates."""
        frames = self.encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
        context = self.encoder.contextualise(frames, batch.mask)
        losses: Losses = self.objective(frames, context, batch, step)
        return losses


class PretrainTask:
    """Masked contrastive prediction, as the trainer sees it."""

    stage = "pretrain"
    best_metric = "contrastive"
    shown_metrics: tuple[str, ...] = ("loss", "contrastive", "accuracy", "code_perplexity")

    def __init__(self, config: PretrainConfig, train_manifest: Manifest, dev_manifest: Manifest) -> None:
        self.config = config
        self.train_manifest = train_manifest
        self.dev_manifest = dev_manifest
        self.model = PretrainModel(config.encoder, config.objective)
        self.collate = ContrastiveCollate(
            self.model.encoder.geometry, config.mask, config.objective.num_distractors, config.seed
        )
        self.sampler = _sampler(train_manifest, config)
        self.dev_sampler = _sampler(dev_manifest, config)

    def train_batches(self, numbers: Iterable[int], *, pin_memory: bool) -> Iterator[ContrastiveBatch]:
        """Random crops, order and masks by (seed, epoch, utterance)."""
        return make_loader(
            self.train_manifest,
            (self.sampler[number] for number in numbers),
            self.collate,
            seed=self.config.seed,
            num_workers=self.config.data.num_workers,
            pin_memory=pin_memory,
        )

    def dev_batches(self, ranks: Ranks) -> Iterator[ContrastiveBatch]:
        """The same crops and masks at every evaluation."""
        plans = self.dev_sampler.epoch(0)[ranks.rank :: ranks.count]
        return make_loader(self.dev_manifest, plans, self.collate, seed=self.config.seed, num_workers=0)

    def set_trainable(self, step: int) -> bool:
        """Everything learns throughout."""
        return False

    def evaluate(self, batch: ContrastiveBatch, step: int) -> Mapping[str, float]:
        """Sums over the hidden frames of a dev batch."""
        losses: Losses = self.model(batch, step)
        values = {"loss": losses.sum.item(), "count": float(losses.count)}
        return values | {name: part.item() for name, part in losses.parts.items()}

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over hidden frames."""
        return {name: value / sums["count"] for name, value in sums.items() if name != "count"}

    def write_model(self, folder: Path, step: int) -> None:
        """Write encoder and objective."""
        data = TrainingData(
            stage=self.stage,
            licence=self.config.data.licence,
            hours=sum(utterance.seconds for utterance in self.train_manifest) / 3600,
            labelled=False,
        )
        description = ModelDescription(
            kind="pretrained",
            step=step,
            encoder=self.config.encoder,
            objective=self.config.objective.to_dict(),
            training_data=(data,),
        )
        save_model(folder, description, self.model.state_dict())


def pretrain(config: PretrainConfig, run: Path) -> None:
    """Pretrain into a run folder, from its latest checkpoint if it has one.

    Raises:
        SpeechSSLError: the data, the folder or the configuration do not fit, or the loss is not finite.
    """
    train_manifest, dev_manifest = read_manifest(config.data.train), read_manifest(config.data.dev)
    with joined_ranks(config.trainer.device) as ranks:
        inputs = {"train": train_manifest.digest, "dev": dev_manifest.digest}
        with locked_run(run, ranks):
            if not begin_or_resume(run, PretrainTask.stage, config, inputs, config.trainer.num_steps, ranks):
                return
            torch.manual_seed(config.seed)  # for the initialisation; the trainer seeds all noise
            task = PretrainTask(config, train_manifest, dev_manifest)
            if load_progress(run).step:
                task.model.load_state_dict(load_weights(run / "latest"))
            elif ranks.is_first:
                refuse_bad_data((train_manifest, dev_manifest), task.model.encoder.geometry, None)
            if ranks.is_first:
                describe_run(task.sampler, config.trainer, config.batches, ranks)
            train(task, config.trainer, config.optimizer, config.schedule, run, ranks, config.seed)


def _sampler(manifest: Manifest, config: PretrainConfig) -> BatchSampler:
    lengths = [utterance.num_output_samples for utterance in manifest]
    return BatchSampler(lengths, config.batches, config.seed, crop=True)
