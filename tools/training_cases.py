"""Stages in the training of the recipes' models, with a batch, on our side and on transformers'."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from speechssl.checkpoint.transformers_config import to_transformers_config
from speechssl.checkpoint.transformers_names import from_transformers
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import Example, TaskBatch
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig, normalize_waveforms
from speechssl.objective.objective import Losses
from speechssl.train.finetune import FinetuneConfig
from speechssl.train.finetune_model import FinetuneModel
from speechssl.train.labeled import LabeledCollate, RegularizationConfig
from speechssl.train.pretrain import PretrainConfig, PretrainModel

sys.path.append(str(Path(__file__).parent))  # where the other tools are

from bench_transcribe import VOCABULARY
from model_table import NO_DATA, ctc_head, model_parts

RECIPES = Path(__file__).parents[1] / "recipes"
FINETUNED_SECONDS = 20.0  # of a clip: LibriSpeech's training has few as long and none over 25
LETTERS_PER_SECOND = 15
TINY = (
    "encoder.feature_encoder.dims=[16, 16, 16, 16, 16, 16, 16]",
    "encoder.context.num_layers=2",
    "encoder.context.model_dim=32",
    "encoder.context.num_heads=2",
    "encoder.context.ffn_dim=48",
    "objective.comparison_dim=16",
    "objective.quantizer.codebook_size=8",
    "objective.quantizer.code_dim=12",
)
TINY_BATCHES = ("batches.seconds=4", "batches.max_seconds=2")
PROMPTS = RECIPES / "prompts"
WAV2VEC2 = PROMPTS / "objectives" / "wav2vec2.toml"
FILES = {  # of pretraining
    "base": (RECIPES / "models" / "wav2vec2_base.toml",),
    "large": (RECIPES / "models" / "wav2vec2_large.toml",),
    "own_data": (
        RECIPES / "own_data" / "encoder_small.toml",
        PROMPTS / "pretrain.toml",
        RECIPES / "own_data" / "small_pretrain.toml",
        WAV2VEC2,
    ),
    "prompts": (PROMPTS / "encoder.toml", PROMPTS / "pretrain.toml", WAV2VEC2),
}
# The epsilon is the one that theirs has; of the prompts, most are shorter than 3 s.
SMALL = {
    "own_data": (),
    "prompts": ("encoder.feature_encoder.norm_epsilon=1e-5", "batches.max_seconds=2"),
}
Theirs = transformers.Wav2Vec2ForPreTraining | transformers.Wav2Vec2ForCTC


@dataclass(frozen=True)
class Case(ABC):
    """A stage in the training of a model of the recipes, and a batch for it.

    Attributes:
        name: Of the model.
        pretraining: Where the model comes from.
        config: What is trained.
        examples: Clips of one length.
        collate: Puts them together, with what to predict.
        crops: Whether training cuts recordings to the length of the shortest in a batch.
    """

    crops: ClassVar[bool]

    name: str
    pretraining: PretrainConfig
    config: PretrainConfig | FinetuneConfig
    examples: list[Example]
    collate: Callable[[list[Example]], TaskBatch]

    @cached_property
    def batch(self) -> TaskBatch:
        """On the CPU."""
        return self.collate(self.examples)

    @property
    @abstractmethod
    def flops_per_second(self) -> float:
        """FLOPs of training on a second of audio."""

    @abstractmethod
    def build_ours(self) -> nn.Module:
        """Our model, whose call with (batch, step) returns ``Losses``."""

    @abstractmethod
    def compiled_part(self, ours: nn.Module) -> nn.Module:
        """What of our model is compiled."""

    @abstractmethod
    def build_theirs(self) -> Theirs:
        """Their model with the same sizes and dropouts."""

    @abstractmethod
    def their_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """The batch as they want it."""

    @abstractmethod
    def compared(self, losses: Losses, theirs: Any) -> tuple[Tensor, Tensor]:
        """Sums that are the same on both sides: of our losses and of what they return."""

    @property
    def count(self) -> float:
        """What the loss is a mean over."""
        return next(iter(self.batch.counts.values()))

    @property
    def seconds(self) -> float:
        """Audio in the batch."""
        return self.batch.audio.seconds

    @property
    def clip_seconds(self) -> float:
        """Audio in one clip."""
        return self.seconds / len(self.batch.audio.waveforms)

    @property
    def label(self) -> str:
        """The batch for a table."""
        return f"{len(self.batch.audio.waveforms)} x {self.clip_seconds:g} s"

    @property
    def their_waveforms(self) -> Tensor:
        """(B, T) float32, normalized if the model normalizes."""
        waveforms = self.batch.audio.waveforms
        return normalize_waveforms(waveforms, None) if self.pretraining.encoder.normalize_waveforms else waveforms


class PretrainCase(Case):
    """With the hidden frames and distractors that pretraining draws."""

    crops = True
    config: PretrainConfig

    @property
    def flops_per_second(self) -> float:
        return 3 * sum(part.flops for part in model_parts(self.config, self.clip_seconds)) / self.clip_seconds

    def build_ours(self) -> PretrainModel:
        return PretrainModel(self.config.encoder, self.config.objective)

    def compiled_part(self, ours: nn.Module) -> nn.Module:
        return ours.objective

    def build_theirs(self) -> transformers.Wav2Vec2ForPreTraining:
        objective, quantizer = self.config.objective, self.config.objective.quantizer
        config = transformers.Wav2Vec2Config(
            **to_transformers_config(self.config.encoder),
            feat_quantizer_dropout=objective.target_dropout,
            num_codevector_groups=quantizer.num_codebooks,
            num_codevectors_per_group=quantizer.codebook_size,
            codevector_dim=quantizer.code_dim,
            proj_codevector_dim=objective.comparison_dim,
            contrastive_logits_temperature=objective.logit_temperature,
            num_negatives=objective.num_distractors,
            diversity_loss_weight=objective.diversity_weight,
        )
        model = transformers.Wav2Vec2ForPreTraining(config)
        model.set_gumbel_temperature(quantizer.temperature(0))
        return model

    def their_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Distractors are given for all frames, by their number in the whole batch."""
        batch = self.batch
        num_rows, num_frames = batch.mask.shape
        first = num_frames * torch.arange(num_rows)[:, None, None]
        distractors = first.repeat(1, num_frames, batch.distractors.shape[2])
        is_hidden = batch.weights.bool()
        hidden = batch.hidden.gather(1, batch.distractors.flatten(1)).view_as(batch.distractors)  # of those positions
        distractors[batch.mask] += hidden[is_hidden]
        inputs = {
            "input_values": self.their_waveforms,
            "mask_time_indices": batch.mask,
            "sampled_negative_indices": distractors,
        }
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def compared(self, losses: Losses, theirs: Any) -> tuple[Tensor, Tensor]:
        return losses["contrastive"].sum, theirs.contrastive_loss


class FinetuneCase(Case):
    """With a CTC head, and convolutions that stay as they are."""

    crops = False
    config: FinetuneConfig

    @property
    def flops_per_second(self) -> float:
        parts = [part for part in model_parts(self.pretraining, self.clip_seconds) if part.name.startswith("encoder.")]
        frozen = sum(part.flops for part in parts if part.name.startswith("encoder.feature_encoder."))
        head = ctc_head(self.pretraining, self.batch.mask.shape[1])
        return (3 * sum(part.flops for part in (*parts, head)) - 2 * frozen) / self.clip_seconds

    @property
    def encoder(self) -> EncoderConfig:
        """That of pretraining with fine-tuning's dropouts."""
        return self.config.regularization.apply(self.pretraining.encoder)

    def build_ours(self) -> FinetuneModel:
        model = FinetuneModel(CTCModel(self.encoder, len(VOCABULARY)), RegularizationConfig(), VOCABULARY.blank_id)
        model.ctc.encoder.feature_encoder.requires_grad_(False)
        return model

    def compiled_part(self, ours: nn.Module) -> nn.Module:
        return ours.ctc

    def build_theirs(self) -> transformers.Wav2Vec2ForCTC:
        config = transformers.Wav2Vec2Config(
            **to_transformers_config(self.encoder), vocab_size=len(VOCABULARY), apply_spec_augment=False
        )
        model = transformers.Wav2Vec2ForCTC(config)
        model.freeze_feature_encoder()
        return model

    def their_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Labels are rows as long as the longest, with -100 behind their end."""
        rows = self.batch.labels.split(self.batch.num_labels)
        labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        return {"input_values": self.their_waveforms.to(device), "labels": labels.to(device)}

    def compared(self, losses: Losses, theirs: Any) -> tuple[Tensor, Tensor]:
        return losses["ctc"].sum, theirs.loss


def make_case(stage: str, name: str, batch_seconds: float | None, is_tiny: bool) -> Case:
    """The batch has as many of the longest clips as training has in one, of noise."""
    batches = TINY_BATCHES if is_tiny else ()
    pretraining = PretrainConfig.load(
        FILES[name], [*NO_DATA, *SMALL.get(name, ()), *(TINY if is_tiny else ()), *batches]
    )
    geometry = pretraining.encoder.feature_encoder.geometry
    if stage == "pretrain":
        examples = make_examples(batch_seconds or pretraining.batches.seconds, pretraining.batches.max_seconds)
        collate = pretraining.objective.make_collate(geometry, pretraining.seed)
        return PretrainCase(name, pretraining, pretraining, examples, collate)
    files = [RECIPES / "librispeech" / "finetune" / f"{file}.toml" for file in (name, f"{name}_100h")]
    config = FinetuneConfig.load(files, [*NO_DATA, "init=none", *batches])
    clip_seconds = min(config.batches.max_seconds, FINETUNED_SECONDS)
    examples = make_examples(batch_seconds or config.batches.seconds, clip_seconds)
    collate = LabeledCollate(geometry, pretraining.encoder.mask_dim, VOCABULARY, regularization=None, seed=config.seed)
    return FinetuneCase(name, pretraining, config, examples, collate)


def make_examples(seconds: float, clip_seconds: float) -> list[Example]:
    """As many clips as fit, of noise, with any letters."""
    clip_seconds = min(seconds, clip_seconds)
    num_clips = int(seconds // clip_seconds)
    generator = np.random.default_rng(0)
    waveforms = 0.1 * generator.standard_normal((num_clips, round(clip_seconds * SAMPLE_RATE)), np.float32)
    letters = generator.choice(VOCABULARY.symbols[2:], (num_clips, round(clip_seconds * LETTERS_PER_SECOND)))
    pairs = zip(waveforms, letters, strict=True)
    return [Example(index, 0, waveform, "".join(row)) for index, (waveform, row) in enumerate(pairs)]


def convert(theirs: Theirs, ours: PretrainModel | FinetuneModel) -> None:
    """Give our model their weights."""
    weights = from_transformers(theirs.state_dict())
    if isinstance(ours, FinetuneModel):
        ours.ctc.load_state_dict(weights)
        return
    codebooks = "objective.quantizer.codebooks"
    weights[codebooks] = weights[codebooks].view_as(ours.objective.quantizer.codebooks)
    ours.load_state_dict(weights)
