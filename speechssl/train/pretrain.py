"""Pretraining: an encoder and an objective on unlabeled audio."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from torch import nn

from speechssl.checkpoint.native import ModelDescription, load_weights, save_model
from speechssl.checkpoint.training_state import load_progress
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import TaskBatch
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.contrastive import ContrastiveConfig
from speechssl.objective.masked_prediction import MaskedPredictionConfig
from speechssl.objective.objective import FittedObjective, Losses, ObjectiveConfig
from speechssl.objective.spectral_contrast import SpectralContrastConfig
from speechssl.objective.wav2vec import Wav2vecConfig
from speechssl.terminal import print_status
from speechssl.train.parallel import Ranks
from speechssl.train.run import RunConfig, opened_run, refuse_bad_data, train_in_run
from speechssl.train.task import CorpusTask, make_sampler


class PretrainConfig(RunConfig):
    """Everything about a pretraining run; the defaults are wav2vec 2.0 base.

    Attributes:
        encoder: The architecture.
        objective: What is learned, of the kind that its ``kind`` names.
    """

    encoder: EncoderConfig = EncoderConfig()
    objective: ContrastiveConfig | MaskedPredictionConfig | SpectralContrastConfig | Wav2vecConfig = Field(
        ContrastiveConfig(), discriminator="kind"
    )

    @model_validator(mode="after")
    def _has_something_to_predict(self) -> Self:
        geometry = self.encoder.feature_encoder.geometry
        num_frames = self.objective.min_frames(geometry)
        shortest = geometry.num_samples(num_frames) / SAMPLE_RATE
        if self.batches.min_seconds < shortest:
            raise ValueError(f"batches.min_seconds must be at least {shortest}, {num_frames} frames")
        return self


class PretrainModel(nn.Module):
    """An encoder with its objective."""

    def __init__(self, encoder: EncoderConfig, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(encoder)
        self.objective = objective.build(encoder)

    def forward(self, batch: TaskBatch, step: int) -> Losses:
        """The losses of a batch after ``step`` updates."""
        losses: Losses = self.objective(self.encoder, batch, step)
        return losses


class PretrainTask(CorpusTask[TaskBatch]):
    """A self-supervised objective on unlabeled audio, as the trainer sees it."""

    stage = "pretrain"

    def __init__(self, config: PretrainConfig, train_manifest: Manifest, dev_manifest: Manifest) -> None:
        geometry = config.encoder.feature_encoder.geometry
        collate = config.objective.make_collate(geometry, config.seed)
        super().__init__(
            config.data,
            train_manifest,
            dev_manifest,
            make_sampler(train_manifest, config.batches, config.seed, crop=True),
            make_sampler(dev_manifest, config.batches, config.seed, crop=True),
            collate,
            collate,
            config.seed,
        )
        self.config = config
        self.best_metric: str = config.objective.best_metric
        self.shown_metrics: tuple[str, ...] = config.objective.shown_metrics
        self.model = PretrainModel(config.encoder, config.objective)

    def fit_targets(self, ranks: Ranks) -> None:
        """Find the targets of an objective that takes them from the training data, the same on every rank."""
        objective = self.model.objective
        if not isinstance(objective, FittedObjective):
            return
        if ranks.is_first:
            print_status(f"{self.stage}: finding targets in up to {objective.fit_seconds:.0f} s of audio")
        number = min(math.ceil(objective.fit_seconds / self.config.batches.seconds), self.sampler.num_batches)
        objective.fit((batch.audio for batch in self.train_batches(range(number), pin_memory=False)), self.config.seed)

    def set_trainable(self, step: int) -> bool:
        """Everything learns throughout."""
        return False

    def evaluate(self, batch: TaskBatch, step: int) -> Mapping[str, float]:
        """Sums over what a dev batch has to predict."""
        losses: Losses = self.model(batch, step)
        values = {"loss": losses.sum.item(), "count": float(losses.count)}
        return values | {name: part.item() for name, part in losses.parts.items()}

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over what was predicted."""
        return {name: value / sums["count"] for name, value in sums.items() if name != "count"}

    def write_model(self, folder: Path, step: int) -> None:
        """Write encoder and objective."""
        description = ModelDescription(
            kind="pretrained",
            step=step,
            encoder=self.config.encoder,
            objective=self.config.objective.to_dict(),
            training_data=(self.training_data(self.stage, labeled=False),),
        )
        save_model(folder, description, self.model.state_dict())


def pretrain(config: PretrainConfig, run: Path) -> None:
    """Pretrain into a run folder, from its latest checkpoint if it has one.

    Raises:
        SpeechSSLError: the data, the folder or the configuration do not fit, or the loss is not finite.
    """
    train_manifest, dev_manifest = read_manifest(config.data.train), read_manifest(config.data.dev)
    inputs = {"train": train_manifest.digest, "dev": dev_manifest.digest}
    with opened_run(run, PretrainTask.stage, config, inputs) as ranks:
        if ranks is None:
            return
        task = PretrainTask(config, train_manifest, dev_manifest)
        if load_progress(run).step:
            task.model.load_state_dict(load_weights(run / "latest"))
        else:
            if ranks.is_first:
                refuse_bad_data((train_manifest, dev_manifest), task.model.encoder.geometry, None)
            task.fit_targets(ranks)
        train_in_run(task, task.sampler, config, run, ranks)
