"""Pretraining: an encoder and an objective on unlabelled audio."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import model_validator
from torch import nn

from speechssl.checkpoint.native import ModelDescription, load_weights, save_model
from speechssl.checkpoint.training_state import load_progress
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.frames import MaskConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.contrastive import (
    ContrastiveBatch,
    ContrastiveCollate,
    ContrastiveConfig,
    ContrastiveObjective,
)
from speechssl.objective.losses import Losses
from speechssl.train.corpus_task import CorpusTask, make_sampler
from speechssl.train.run import RunConfig, opened_run, refuse_bad_data, train_in_run


class PretrainConfig(RunConfig):
    """Everything about a pretraining run; the defaults are wav2vec 2.0 base.

    Attributes:
        encoder: The architecture.
        mask: What is hidden.
        objective: What is learnt.
    """

    encoder: EncoderConfig = EncoderConfig()
    mask: MaskConfig = MaskConfig()
    objective: ContrastiveConfig = ContrastiveConfig()

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


class PretrainTask(CorpusTask[ContrastiveBatch]):
    """Masked contrastive prediction, as the trainer sees it."""

    stage = "pretrain"
    best_metric = "contrastive"
    shown_metrics: tuple[str, ...] = ("loss", "contrastive", "accuracy", "code_perplexity")

    def __init__(self, config: PretrainConfig, train_manifest: Manifest, dev_manifest: Manifest) -> None:
        geometry = config.encoder.feature_encoder.geometry
        super().__init__(
            config.data,
            train_manifest,
            dev_manifest,
            make_sampler(train_manifest, config.batches, config.seed, crop=True),
            make_sampler(dev_manifest, config.batches, config.seed, crop=True),
            ContrastiveCollate(geometry, config.mask, config.objective.num_distractors, config.seed),
            config.seed,
        )
        self.config = config
        self.model = PretrainModel(config.encoder, config.objective)

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
        description = ModelDescription(
            kind="pretrained",
            step=step,
            encoder=self.config.encoder,
            objective=self.config.objective.to_dict(),
            training_data=(self.training_data(self.stage, labelled=False),),
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
        elif ranks.is_first:
            refuse_bad_data((train_manifest, dev_manifest), task.model.encoder.geometry, None)
        train_in_run(task, task.sampler, config, run, ranks)
