"""Pretraining: an encoder and an objective on unlabeled audio."""

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from speechssl.checkpoint.kmeans_files import read_any_clusters
from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.saved_model import ModelDescription, SavedModel, TrainingData
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import Example, TaskBatch
from speechssl.data.check import check_before_training
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.data.mixing import MixingCollate, MixingConfig
from speechssl.data.sampler import BatchConfig
from speechssl.errors import ConfigError
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.contrastive import ContrastiveConfig
from speechssl.objective.kinds import AnyObjective
from speechssl.objective.objective import AllReduce, Losses, Objective, ObjectiveConfig, TargetSource
from speechssl.terminal import print_status
from speechssl.train.parallel import Ranks, joined_ranks
from speechssl.train.record import RunConfig
from speechssl.train.run import train_in_folder
from speechssl.train.task import Batches, Measured, Task

STAGE = "pretrain"


class PretrainConfig(RunConfig):
    """Everything about a pretraining run; the defaults are wav2vec 2.0 base."""

    # The model whose encoder goes on learning, as for `read_model`; the section encoder then stays out.
    init: Path | str | None = None
    encoder: EncoderConfig = EncoderConfig()
    objective: AnyObjective = Field(ContrastiveConfig(), discriminator="kind")
    mixing: MixingConfig | None = None  # None leaves the recordings as they are

    @model_validator(mode="after")
    def _has_something_to_predict(self) -> Self:
        problem = find_short_batches(self.objective, self.batches, self.encoder.feature_encoder.geometry)
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _objective_fits_the_encoder(self) -> Self:
        if self.init is None or self.encoder != EncoderConfig():  # or else the encoder is still to be read
            self.objective.check_encoder(self.encoder)
        return self


def find_short_batches(objective: ObjectiveConfig, batches: BatchConfig, geometry: FrameGeometry) -> str | None:
    """Say what is wrong if utterances could be too short to have something to predict."""
    num_frames = objective.min_frames(geometry)
    shortest = geometry.num_samples(num_frames) / SAMPLE_RATE
    if batches.min_seconds >= shortest:
        return None
    return f"batches.min_seconds must be at least {shortest}, {num_frames} frames"


class PretrainModel(nn.Module):
    """An encoder with its objective."""

    def __init__(self, encoder: EncoderConfig, objective: ObjectiveConfig, source: TargetSource | None = None) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(encoder)
        self.objective = objective.build(encoder)
        if source is not None:
            self.objective.take(source)

    def forward(self, batch: TaskBatch, step: int) -> Losses:
        """The losses of a batch after ``step`` updates."""
        losses: Losses = self.objective(self.encoder, batch, step)
        return losses


def read_target_source(config: PretrainConfig) -> TargetSource | None:
    """Read the model, and the clusters, that the objective's targets are made with; None if it needs neither.

    Raises:
        SpeechSSLError: there are no such files, or the shortest utterances are shorter than the model's frames.
    """
    files = config.objective.target_files
    if files is None:
        return None
    saved = read_model(files.model)
    shortest = saved.description.encoder.feature_encoder.geometry.receptive_field_samples / SAMPLE_RATE
    if config.batches.min_seconds < shortest:
        raise ConfigError(
            f"batches.min_seconds: expected at least {shortest}, a frame of {files.model}, "
            f"found {config.batches.min_seconds}"
        )
    clusters = None if files.clusters is None else read_any_clusters(files.clusters)
    return TargetSource(files.model, saved.digest, saved.encoder("cpu"), clusters)


def make_task(
    config: PretrainConfig,
    train_manifest: Manifest,
    dev_manifest: Manifest,
    saved: SavedModel | None = None,
    source: TargetSource | None = None,
) -> Task[TaskBatch]:
    """Make the task of pretraining the encoder of a saved model, or a fresh one."""
    model = PretrainModel(config.encoder, config.objective, source)
    if saved is not None:
        model.encoder.load_state_dict(saved.encoder("cpu").state_dict())
    collate = config.objective.make_collate(config.encoder.feature_encoder.geometry, config.seed)
    train_collate: Callable[[list[Example]], TaskBatch] = collate
    if config.mixing is not None:
        train_collate = MixingCollate(collate, config.mixing, config.mixing.read_noise(), config.seed)

    def batches_of(
        manifest: Manifest, collate: Callable[[list[Example]], TaskBatch], microbatches: int = 1
    ) -> Batches[TaskBatch]:
        """Put utterances together, cropped to equal lengths."""
        workers, seed = config.data.num_workers, config.seed
        return Batches.of_manifest(
            manifest, config.batches, collate, workers, seed, crop=True, microbatches=microbatches
        )

    def evaluate(batch: TaskBatch, step: int) -> Measured:
        return Measured(model(batch, step), batch.counts)

    def after_update(step: int, all_reduce: AllReduce) -> None:
        model.objective.after_update(model.encoder, step, all_reduce)

    def write_model(step: int, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the model with all that it was trained on."""
        data = TrainingData.of(STAGE, config.data.license, train_manifest, labeled=False)
        description = ModelDescription(
            kind="pretrained",
            step=step,
            encoder=config.encoder,
            objective=config.objective.to_dict(),
            training_data=(*(saved.description.training_data if saved else ()), data),
        )
        save_model(folder, description, weights)

    return Task(
        stage=STAGE,
        model=model,
        saved_module=model,
        compiled=(model.objective,),
        train=batches_of(train_manifest, train_collate, config.trainer.microbatches),
        dev=batches_of(dev_manifest, collate),
        evaluate=evaluate,
        best_metric=config.objective.best_metric,
        shown_metrics=config.objective.shown_metrics,
        frozen=lambda step: model.objective.frozen(model.encoder, step),
        after_update=after_update,
        limits=config.objective.limits,
        chance=config.objective.chance,
        write_model=write_model,
    )


def pretrain(config: PretrainConfig, folder: Path) -> None:
    """Pretrain into a run folder, from its latest checkpoint if it has one.

    Raises:
        SpeechSSLError: the data, the folder or the configuration do not fit, the loss is not finite, or a signal
            stopped the run.
    """
    with joined_ranks(config.trainer.device) as ranks:
        manifests = ranks.share(lambda: (read_manifest(config.data.train), read_manifest(config.data.dev)))
        _pretrain(config, folder, ranks, *manifests)


def _pretrain(config: PretrainConfig, folder: Path, ranks: Ranks, *manifests: Manifest) -> None:
    inputs = {"train": manifests[0].digest, "dev": manifests[1].digest}
    saved = None
    if config.init is not None:
        saved = read_model(config.init)
        inputs["init"] = saved.digest
        config = _with_encoder(config, saved.description.encoder)
    source = read_target_source(config)
    if source is not None:
        inputs["objective.targets.model"] = source.digest
        if source.clusters is not None:
            inputs["objective.targets.clusters"] = source.clusters.digest
    geometry = config.encoder.feature_encoder.geometry
    noise = None if config.mixing is None else config.mixing.read_noise()
    if noise is not None:
        inputs["noise"] = noise.digest if isinstance(noise, Manifest) else noise
    to_check = [*manifests, noise] if isinstance(noise, Manifest) else manifests

    def prepare(task: Task[TaskBatch], ranks: Ranks) -> None:
        model = task.model
        assert isinstance(model, PretrainModel)
        prepare_objective(model.objective, model.encoder, task.train, config.seed, ranks, STAGE)

    train_in_folder(
        folder,
        STAGE,
        config,
        ranks,
        inputs,
        lambda: [problem for manifest in to_check for problem in check_before_training(manifest, geometry, None, 0)],
        lambda: make_task(config, manifests[0], manifests[1], saved, source),
        prepare,
    )


def prepare_objective(
    objective: Objective, encoder: SpeechEncoder, train: Batches[TaskBatch], seed: int, ranks: Ranks, stage: str
) -> None:
    """Let an objective find its targets in the first training batches.

    Every rank finds them by itself, the same ones: none waits for another that computes.
    """
    seconds = objective.prepare_seconds
    if seconds and ranks.is_first:
        print_status(f"{stage}: finding targets in up to {seconds:.0f} s of audio")
    # The first batch of each update, then the second: those of one update are of one length.
    numbers = sorted(range(train.sampler.num_batches), key=lambda number: number % train.sampler.microbatches)
    with closing(train.read(numbers[: math.ceil(seconds / train.sampler.config.seconds)])) as batches:
        objective.prepare(encoder, batches, seed)


def _with_encoder(config: PretrainConfig, encoder: EncoderConfig) -> PretrainConfig:
    if config.encoder not in (EncoderConfig(), encoder):
        raise ConfigError(f"encoder: expected no such section beside init, found one that differs from {config.init}")
    return PretrainConfig.from_dict({**config.to_dict(), "encoder": encoder.to_dict()}, "init")
