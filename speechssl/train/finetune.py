"""Fine-tuning: an encoder, pretrained or fresh, learns to transcribe with CTC."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn

from speechssl.checkpoint.native import (
    ModelDescription,
    TrainingData,
    load_description,
    load_encoder,
    load_weights,
    save_model,
)
from speechssl.checkpoint.training_state import load_progress
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.data.sampler import BatchConfig
from speechssl.data.units import Letters, Units, list_characters
from speechssl.decode.greedy import greedy_path
from speechssl.errors import ConfigError, ManifestError
from speechssl.model.ctc import CTCModel, CTCOutput, consistency_losses, ctc_losses
from speechssl.model.encoder import EncoderConfig
from speechssl.objective.objective import Losses
from speechssl.scoring.error_rates import score
from speechssl.train.labeled import LabeledBatch, LabeledCollate, RegularizationConfig
from speechssl.train.optimizer import OptimizerConfig, ScheduleConfig
from speechssl.train.run import RunConfig, digest_model, opened_run, refuse_bad_data, train_in_run
from speechssl.train.task import CorpusTask, make_sampler
from speechssl.train.trainer import TrainerConfig


class FinetuneConfig(RunConfig):
    """Everything about a fine-tuning run; the defaults are wav2vec 2.0 base's for 10 minutes to 10 hours of labels.

    Attributes:
        init: The model whose encoder is fine-tuned; None starts from scratch.
        encoder: The architecture, if from scratch.
        feature_encoder_is_frozen: Whether the convolutions stay as they are.
        head_only_steps: Updates at the start in which nothing but the head learns.
        best_metric: The dev error rate that chooses the ``best`` checkpoint: of words, or of characters while a model
            is too weak for whole words.
    """

    init: Path | None = None
    encoder: EncoderConfig | None = None
    feature_encoder_is_frozen: bool = True
    head_only_steps: int = Field(0, ge=0)
    best_metric: Literal["wer", "cer"] = "wer"
    batches: BatchConfig = BatchConfig(seconds=200.0, min_seconds=0.0, max_seconds=30.0)
    regularization: RegularizationConfig = RegularizationConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5, epsilon=1e-8, weight_decay=0.0)
    schedule: ScheduleConfig = ScheduleConfig(kind="tri_stage", warmup=0.1, hold=0.4, start_scale=0.01)
    trainer: TrainerConfig = TrainerConfig(num_steps=13_000, microbatches=8, evaluate_steps=500)

    @model_validator(mode="after")
    def _one_encoder(self) -> Self:
        if (self.init is None) == (self.encoder is None):
            raise ValueError("give either init, a model to start from, or encoder, the architecture to start afresh")
        return self


class FinetuneModel(nn.Module):
    """A CTC model with its loss.

    Args:
        ctc: The model.
        regularization: Says how many views of a batch there are and what their consistency weighs.
        blank_id: Of the model's units.
    """

    def __init__(self, ctc: CTCModel, regularization: RegularizationConfig, blank_id: int) -> None:
        super().__init__()
        self.ctc, self.blank_id = ctc, blank_id
        self.num_views = regularization.num_views
        self.consistency = regularization.consistency

    def forward(self, batch: LabeledBatch, step: int) -> Losses:
        """The CTC loss and what the views are apart, summed over utterances; of views the mean."""
        output = self.ctc(batch.audio.waveforms, batch.audio.lengths, batch.mask, batch.channel_mask)
        labels, lengths = batch.labels.repeat(self.num_views), batch.label_lengths.repeat(self.num_views)
        total = ctc_losses(output, labels, lengths, self.blank_id).sum() / self.num_views
        # A part beside the loss that utterances of all lengths share.
        parts = {"loss_per_label": total.detach() * len(batch.texts) / batch.label_lengths.sum()}
        if self.consistency:
            apart = consistency_losses(output).sum()
            parts["consistency"] = apart.detach()
            total = total + self.consistency * apart
        return Losses(total, len(batch.texts), parts)


class FinetuneTask(CorpusTask[LabeledBatch]):
    """CTC fine-tuning, as the trainer sees it."""

    stage = "finetune"
    shown_metrics: tuple[str, ...] = ("loss", "loss_per_label", "wer", "cer")

    def __init__(
        self,
        config: FinetuneConfig,
        ctc: CTCModel,
        vocabulary: Units,
        past_data: tuple[TrainingData, ...],
        train_manifest: Manifest,
        dev_manifest: Manifest,
    ) -> None:
        mask_dim = ctc.encoder.config.mask_dim
        regularization = config.regularization
        everything = BatchConfig(seconds=config.batches.seconds, min_seconds=0.0, max_seconds=float(2**31))
        super().__init__(
            config.data,
            train_manifest,
            dev_manifest,
            make_sampler(train_manifest, config.batches, config.seed, crop=False),
            make_sampler(dev_manifest, everything, config.seed, crop=False),
            LabeledCollate(ctc.encoder.geometry, mask_dim, vocabulary, regularization, config.seed),
            LabeledCollate(ctc.encoder.geometry, mask_dim, vocabulary, None, config.seed),
            config.seed,
        )
        self.config = config
        self.best_metric: str = config.best_metric
        self.vocabulary = vocabulary
        self.past_data = past_data
        self.model = FinetuneModel(ctc, regularization, vocabulary.blank_id)
        self._trains_encoder: bool | None = None

    def set_trainable(self, step: int) -> bool:
        """The head alone at first, then the encoder too, less its convolutions if they are frozen."""
        trains_encoder = step >= self.config.head_only_steps
        if trains_encoder == self._trains_encoder:
            return False
        self._trains_encoder = trains_encoder
        self.model.ctc.encoder.requires_grad_(trains_encoder)
        if self.config.feature_encoder_is_frozen:
            self.model.ctc.encoder.feature_encoder.requires_grad_(False)
        return True

    def evaluate(self, batch: LabeledBatch, step: int) -> Mapping[str, float]:
        """Loss and errors of the greedy path over a dev batch."""
        output: CTCOutput = self.model.ctc(batch.audio.waveforms, batch.audio.lengths)
        blank_id = self.vocabulary.blank_id
        loss = ctc_losses(output, batch.labels, batch.label_lengths, blank_id).sum().item()
        rows = zip(output.log_probs.cpu(), output.frame_lengths.tolist(), strict=True)
        paths = (greedy_path([row[:length]], blank_id) for row, length in rows)
        hypotheses = [self.vocabulary.decode(token.symbol_id for token in path) for path in paths]
        result = score(batch.texts, hypotheses)
        return {
            "loss": loss,
            "utterances": float(len(hypotheses)),
            "word_errors": float(result.words.total),
            "words": float(result.words.reference_length),
            "character_errors": float(result.characters.total),
            "characters": float(result.characters.reference_length),
        }

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Word and character error rates and the mean loss."""
        return {
            "loss": sums["loss"] / sums["utterances"],
            "wer": sums["word_errors"] / sums["words"],
            "cer": sums["character_errors"] / sums["characters"],
        }

    def write_model(self, folder: Path, step: int) -> None:
        """Write the CTC model with its vocabulary."""
        description = ModelDescription(
            kind="ctc",
            step=step,
            encoder=self.model.ctc.encoder.config,
            training_data=(*self.past_data, self.training_data(self.stage, labeled=True)),
        )
        save_model(folder, description, self.model.ctc.state_dict(), self.vocabulary)


def finetune(config: FinetuneConfig, run: Path) -> None:
    """Fine-tune into a run folder, from its latest checkpoint if it has one.

    Raises:
        SpeechSSLError: the data, the folder or the configuration do not fit, or the loss is not finite.
    """
    train_manifest, dev_manifest = read_manifest(config.data.train), read_manifest(config.data.dev)
    inputs = {"train": train_manifest.digest, "dev": dev_manifest.digest}
    if config.init is not None:
        inputs["init"] = digest_model(config.init)
    with opened_run(run, FinetuneTask.stage, config, inputs) as ranks:
        if ranks is None:
            return
        task = _make_task(config, train_manifest, dev_manifest)
        ctc = task.model.ctc
        if load_progress(run).step:
            ctc.load_state_dict(load_weights(run / "latest"))
        elif ranks.is_first:
            refuse_bad_data((train_manifest, dev_manifest), ctc.encoder.geometry, task.vocabulary)
        train_in_run(task, task.sampler, config, run, ranks)


def _make_task(config: FinetuneConfig, train_manifest: Manifest, dev_manifest: Manifest) -> FinetuneTask:
    for manifest in (train_manifest, dev_manifest):
        if all(utterance.text is None for utterance in manifest):
            raise ManifestError(f"{manifest.path}: expected transcripts in a column text, found none")
    vocabulary = _make_vocabulary(train_manifest, dev_manifest)
    past_data: tuple[TrainingData, ...] = ()
    if config.init is not None:
        description = load_description(config.init)
        encoder, past_data = description.encoder, description.training_data
    elif config.encoder is not None:
        encoder = config.encoder
    else:
        raise ConfigError("finetune: expected init or encoder")
    ctc = CTCModel(config.regularization.apply(encoder), len(vocabulary))
    if config.init is not None:
        ctc.encoder.load_state_dict(load_encoder(config.init, "cpu").state_dict())
    return FinetuneTask(config, ctc, vocabulary, past_data, train_manifest, dev_manifest)


def _make_vocabulary(train_manifest: Manifest, dev_manifest: Manifest) -> Letters:
    """The letters of both manifests: ten minutes of labels may lack a rare one, which dev then counts as an error."""
    texts = [utterance.text or "" for utterance in (*train_manifest, *dev_manifest)]
    vocabulary = Letters.from_texts(texts)
    learned = Letters.from_texts(texts[: len(train_manifest)]).symbols
    unlearned = [letter for letter in vocabulary.symbols if letter not in learned]
    if unlearned:
        lacking = f"letters that {train_manifest.path} lacks cannot be learned: {list_characters(unlearned)}"
        warnings.warn(f"{dev_manifest.path}: {lacking}", stacklevel=3)
    return vocabulary
