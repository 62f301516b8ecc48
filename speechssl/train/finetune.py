"""Fine-tuning: an encoder, pretrained or fresh, learns to transcribe with CTC."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.saved_model import ModelDescription, SavedModel, TrainingData
from speechssl.data.batches import DataConfig
from speechssl.data.check import Problem, check_before_training
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.data.sampler import BatchConfig
from speechssl.data.units import Units
from speechssl.data.units_file import load_units
from speechssl.errors import ConfigError, ManifestError
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.objective.objective import AllReduce
from speechssl.train.finetune_model import FinetuneModel
from speechssl.train.health import BLANK, SHIFTED, length_agreement
from speechssl.train.joint import JointBatches, JointModel, Part
from speechssl.train.joint_objective import JointConfig, JointObjective, make_streams
from speechssl.train.labeled import LabeledBatch, LabeledCollate, RegularizationConfig
from speechssl.train.optimizer import OptimizerConfig
from speechssl.train.parallel import Ranks, joined_ranks
from speechssl.train.pseudo_labels import STREAM, PseudoLabels, PseudoLabelsConfig, make_stream
from speechssl.train.record import RunConfig
from speechssl.train.run import train_in_folder
from speechssl.train.schedule import ScheduleConfig
from speechssl.train.task import Batches, Task
from speechssl.train.trainer_config import TrainerConfig
from speechssl.train.vocabulary import make_vocabulary

STAGE = "finetune"
_NUM_SAMPLES = 8  # utterances of the dev set whose transcripts are kept at each evaluation


class FinetuneDataConfig(DataConfig):
    """What to train on, and to measure progress on: manifests."""

    unlabeled: Path | None = None  # more to learn from; its texts, if it has any, are not learned


class FinetuneConfig(RunConfig):
    """Everything about a fine-tuning run; the defaults are wav2vec 2.0 base's for 10 minutes to 10 hours of labels.

    The dev error rate that chooses the ``best`` checkpoint is that of words, or of characters while a model is too weak
    for whole words and in scripts that have no spaces, or of phonemes.
    """

    init: Path | str | None = None  # the model whose encoder is fine-tuned, as for `read_model`
    language: str | None = None  # of init, as for `read_model`
    units: Path | Literal["letters", "phonemes"] = "letters"  # of the texts, or a file that `speechssl units` wrote
    keep_head: bool = False  # whether the head and the vocabulary of init, which is fine-tuned already, go on learning
    encoder: EncoderConfig | None = None  # the architecture, to start from scratch instead
    feature_encoder_is_frozen: bool = True
    head_only_steps: int = Field(0, ge=0)  # updates at the start in which nothing but the head learns
    best_metric: Literal["wer", "cer", "per"] = "wer"  # per for phonemes alone
    data: FinetuneDataConfig
    joint: JointConfig | None = None  # an objective of pretraining on data.unlabeled, in the same updates
    pseudo_labels: PseudoLabelsConfig | None = None  # what a moving average of the model says there
    batches: BatchConfig = BatchConfig(seconds=140.0, min_seconds=0.0, max_seconds=30.0)
    regularization: RegularizationConfig = RegularizationConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5, epsilon=1e-8, weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(kind="tri_stage", warmup=0.1, hold=0.4, start_scale=0.01)
    trainer: TrainerConfig = TrainerConfig(num_steps=13_000, microbatches=8, evaluate_steps=500)

    @model_validator(mode="after")
    def _one_encoder(self) -> Self:
        if (self.init is None) == (self.encoder is None):
            raise ValueError("give either init, a model to start from, or encoder, the architecture to start afresh")
        if self.init is None and (self.keep_head or self.language):
            raise ValueError("keep_head and language need init, a model to start from")
        if self.keep_head and self.units != "letters":
            raise ValueError("keep_head goes on with the units of init: give one of keep_head and units")
        return self

    @model_validator(mode="after")
    def _uses_unlabeled_speech(self) -> Self:
        if (self.data.unlabeled is None) != (self.joint is None and self.pseudo_labels is None):
            raise ValueError("data.unlabeled and what learns from it, joint or pseudo_labels, need each other")
        start_step = None if self.pseudo_labels is None else self.pseudo_labels.start_step
        if start_step == 0 and not self.keep_head:
            raise ValueError(
                "pseudo_labels need a model that says something: give init with keep_head, or pseudo_labels.start_step"
            )
        if start_step is not None and start_step >= self.trainer.num_steps:
            raise ValueError(f"pseudo_labels.start_step must be below trainer.num_steps, found {start_step}")
        return self


def make_task(
    config: FinetuneConfig,
    saved: SavedModel | None,
    vocabulary: Units,
    train_manifest: Manifest,
    dev_manifest: Manifest,
    unlabeled_manifest: Manifest | None = None,
) -> Task[Any]:
    """Make the task of fine-tuning the encoder of a saved model, or a fresh one."""
    ctc = _make_model(config, saved, len(vocabulary))
    labeled = FinetuneModel(ctc, config.regularization, vocabulary.blank_id)

    def batches_of(
        manifest: Manifest, batches: BatchConfig, regularization: RegularizationConfig | None, microbatches: int = 1
    ) -> Batches[LabeledBatch]:
        """Put utterances together; without regularization as they are."""
        workers, seed, encoder = config.data.num_workers, config.seed, ctc.encoder
        collate = LabeledCollate(encoder.geometry, encoder.config.mask_dim, vocabulary, regularization, seed)
        return Batches.of_manifest(manifest, batches, collate, workers, seed, crop=False, microbatches=microbatches)

    def write_model(step: int, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the CTC model with all that it was trained on."""
        data = () if saved is None else saved.description.training_data
        data += (TrainingData.of(STAGE, config.data.license, train_manifest, labeled=True),)
        if unlabeled_manifest is not None:
            data += (TrainingData.of(STAGE, config.data.license, unlabeled_manifest, labeled=False),)
        description = ModelDescription(kind="ctc", step=step, encoder=ctc.encoder.config, training_data=data)
        save_model(folder, description, weights, vocabulary)

    model: FinetuneModel | JointModel = labeled
    train: Batches[Any] = batches_of(train_manifest, config.batches, config.regularization, config.trainer.microbatches)
    parts: list[Part] = []
    if unlabeled_manifest is not None:
        parts, streams = _make_parts(config, ctc, vocabulary, train, unlabeled_manifest)
        model, train = JointModel(labeled, parts), JointBatches(**vars(train), others=streams)

    def after_update(step: int, all_reduce: AllReduce) -> None:
        for part in parts:
            part.after_update(ctc, step, all_reduce)

    of_parts = [name for part in parts for name in part.shown_metrics]
    of_phonemes = ["per"] if vocabulary.kind == "phonemes" else []
    agreement = length_agreement(train_manifest)
    sampled = _spread_out(dev_manifest)
    return Task(
        stage=STAGE,
        model=model,
        saved_module=ctc,
        compiled=(ctc, *(module for part in parts for module in part.compiled)),  # CTC's loss stays outside
        train=train,
        dev=batches_of(
            dev_manifest, BatchConfig(seconds=config.batches.seconds, min_seconds=0.0, max_seconds=float(2**31)), None
        ),
        evaluate=lambda batch, step: labeled.evaluate(batch, vocabulary, sampled),
        best_metric=config.best_metric,
        shown_metrics=("loss", "loss_per_label", *of_parts, *of_phonemes, "wer", "cer"),
        frozen=partial(_frozen, config, ctc, parts),
        after_update=after_update,
        write_model=write_model,
        limits=(*(limit for part in parts for limit in part.limits), BLANK, SHIFTED),
        facts={} if agreement is None else {"length_agreement": agreement},
    )


def _make_model(config: FinetuneConfig, saved: SavedModel | None, num_units: int) -> CTCModel:
    ctc = CTCModel(config.regularization.apply(_encoder(config, saved)), num_units)
    if saved is not None and config.keep_head:
        ctc.load_state_dict(saved.ctc("cpu").model.state_dict())
    elif saved is not None:
        ctc.encoder.load_state_dict(saved.encoder("cpu").state_dict())
    return ctc


def _encoder(config: FinetuneConfig, saved: SavedModel | None) -> EncoderConfig:
    encoder = config.encoder if saved is None else saved.description.encoder
    assert encoder is not None, "the configuration has one of the two"
    return encoder


def _spread_out(manifest: Manifest) -> list[int]:
    """Return the numbers of a few utterances with text, spread over a manifest."""
    with_text = [number for number, utterance in enumerate(manifest) if utterance.text]
    num_samples = min(_NUM_SAMPLES, len(with_text))
    return [with_text[part * len(with_text) // num_samples] for part in range(num_samples)]


def _frozen(config: FinetuneConfig, ctc: CTCModel, parts: Sequence[Part], step: int) -> tuple[nn.Module, ...]:
    """Let the head alone learn at first, then the encoder too, less its convolutions if they are frozen."""
    if step < config.head_only_steps:
        return (ctc.encoder,)
    own = (ctc.encoder.feature_encoder,) if config.feature_encoder_is_frozen else ()
    return (*own, *(module for part in parts for module in part.frozen(ctc, step)))


def _make_parts(
    config: FinetuneConfig, ctc: CTCModel, vocabulary: Units, train: Batches[LabeledBatch], unlabeled: Manifest
) -> tuple[list[Part], dict[str, Batches[Any]]]:
    """What is learned beside the labels, and the batches for it."""
    parts: list[Part] = []
    streams: dict[str, Batches[Any]] = {}
    if config.joint is not None:
        parts.append(JointObjective(config.joint, ctc.encoder.config))
        streams |= make_streams(config.joint, train, unlabeled, ctc.encoder.geometry, config.seed)
    if config.pseudo_labels is not None:
        has_texts = unlabeled.has_texts and any(utterance.text for utterance in unlabeled)
        parts.append(
            PseudoLabels(
                config.pseudo_labels, ctc, config.regularization, vocabulary, config.trainer, has_texts=has_texts
            )
        )
        streams[STREAM] = make_stream(config.pseudo_labels, train, unlabeled, config.seed)
    return parts, streams


def finetune(config: FinetuneConfig, folder: Path) -> None:
    """Fine-tune into a run folder, from its latest checkpoint if it has one.

    Raises:
        SpeechSSLError: the data, the folder or the configuration do not fit, the loss is not finite, or a signal
            stopped the run.
    """
    with joined_ranks(config.trainer.device) as ranks:
        manifests = ranks.share(lambda: (read_manifest(config.data.train), read_manifest(config.data.dev)))
        _finetune(config, folder, ranks, *manifests)


def _finetune(config: FinetuneConfig, folder: Path, ranks: Ranks, *manifests: Manifest) -> None:
    inputs = {"train": manifests[0].digest, "dev": manifests[1].digest}
    for manifest in manifests:
        if all(utterance.text is None for utterance in manifest):
            raise ManifestError(f"{manifest.path}: expected transcripts in a column text, found none")
    saved = None
    if config.init is not None:
        saved = read_model(config.init, config.language)
        inputs["init"] = saved.digest
    vocabulary = _find_vocabulary(config, saved, manifests)
    if isinstance(config.units, Path):
        inputs["units"] = hashlib.sha256(config.units.read_bytes()).hexdigest()
    elif config.units != "letters":  # of which earlier runs have no note
        inputs["units"] = config.units
    unlabeled = None
    if config.data.unlabeled is not None:
        unlabeled = ranks.share(partial(read_manifest, config.data.unlabeled))
        inputs["unlabeled"] = unlabeled.digest
    geometry = _encoder(config, saved).feature_encoder.geometry

    def find_problems() -> Sequence[Problem]:
        needs = [
            *((manifest, vocabulary) for manifest in manifests),
            *([] if unlabeled is None else [(unlabeled, None)]),
        ]
        return [found for manifest, units in needs for found in check_before_training(manifest, geometry, units, 0)]

    def prepare(task: Task[Any], ranks: Ranks) -> None:
        if isinstance(task.model, JointModel) and isinstance(task.train, JointBatches):
            task.model.prepare(task.train.others, config.seed, ranks)

    train_in_folder(
        folder,
        STAGE,
        config,
        ranks,
        inputs,
        find_problems,
        lambda: make_task(config, saved, vocabulary, manifests[0], manifests[1], unlabeled),
        prepare,
    )


def _find_vocabulary(config: FinetuneConfig, saved: SavedModel | None, manifests: Sequence[Manifest]) -> Units:
    vocabulary: Units | None
    if saved is not None and config.keep_head:
        vocabulary = saved.vocabulary
        if vocabulary is None:
            raise ConfigError(f"keep_head: expected a fine-tuned model with a vocabulary, found none in {config.init}")
    elif isinstance(config.units, Path):
        vocabulary = load_units(config.units)
    else:
        vocabulary = make_vocabulary(config.units, *manifests)
    if config.best_metric == "per" and vocabulary.kind != "phonemes":
        raise ConfigError(f"best_metric: expected wer or cer for {vocabulary.kind}, found per, that of phonemes")
    return vocabulary
