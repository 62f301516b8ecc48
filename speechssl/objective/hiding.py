"""What objectives with hidden spans share: which frames are hidden, and in what place.

Shapes: B batch, T samples, S frames, C conv channels, D model dim, M places for hidden frames (the batch's
most, or with fixed shapes the most there can be).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from speechssl.config import Config
from speechssl.data.batches import Example, TaskBatch, collate_audio, stack_rows
from speechssl.frames import FrameGeometry, MaskConfig, draw_masks, most_hidden
from speechssl.model.encoder import Frames, SpeechEncoder
from speechssl.objective.mfcc import MFCC_GEOMETRY, Mfcc
from speechssl.objective.objective import Losses, ObjectiveConfig, Term
from speechssl.objective.targets import Cepstra, LogMel
from speechssl.rng import keyed_generator

_HIDE = 2  # the purpose of the generator that hides frames


class SilencedSpansConfig(Config):
    """Hide the spans in the waveform instead of behind the feature encoder.

    Every sample that a hidden frame sees is set to `SILENCE` before the feature encoder (after the waveform's
    normalization, if there is one); frames beside a span share samples with it and hear only the rest of theirs. The
    context network gets what the feature encoder makes of that. Targets come from the recording as it sounds, by a
    second pass of the feature encoder. A penalty on the features weighs the silenced pass alone.

    Attributes:
        mask_embedding: Whether the context network gets its mask embedding for the hidden frames too. Otherwise it
            sees frames of silence and is not told which pauses are the speaker's own.
        target_gradient: Whether targets send gradients into the feature encoder, through the second pass, as they do
            without silence. Otherwise that pass costs no backward pass, and the feature encoder learns from the
            silenced recording alone.
    """

    mask_embedding: bool = False
    target_gradient: bool = True


class HidingConfig(ObjectiveConfig):
    """What the configurations of objectives with hidden spans share."""

    mask: MaskConfig = MaskConfig()
    silence: SilencedSpansConfig | None = None  # None hides the spans from the context network alone

    @model_validator(mode="after")
    def _hides_something(self) -> Self:
        if self.mask.min_spans < 1:
            raise ValueError("mask.min_spans must be at least 1, or an update could have nothing to predict")
        return self

    def min_frames(self, geometry: FrameGeometry) -> int:
        """Two, of which one is hidden."""
        return 2


class SpectralTargetsConfig(HidingConfig):
    """What the configurations share in which the context of every frame is compared, and visible frames may count."""

    best_metric: ClassVar[str] = "hidden_loss"
    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "hidden_loss", "hidden_accuracy", "visible_accuracy")

    # Each with its changes. Cepstra are standardized; MFCC are Kaldi's, which has 23 mel bands.
    spectra: Literal["log_mel", "cepstra", "mfcc"] = "log_mel"
    num_bands: int = Field(40, ge=1)  # mel bands of the spectra
    comparison_dim: int = Field(256, ge=1)
    logit_temperature: float = Field(0.1, gt=0)  # divides cosine similarities
    visible_weight: float = Field(0.0, ge=0)  # of a visible frame in the loss, where a hidden one has 1
    penalty_weight: float = Field(10.0, ge=0)  # of the mean square of the feature encoder's output

    def make_collate(self, geometry: FrameGeometry, seed: int) -> "MaskedCollate":
        """What hides frames."""
        return MaskedCollate(geometry, self.mask, seed, self.visible_weight)

    def min_frames(self, geometry: FrameGeometry) -> int:
        """Two, of which one is hidden, and as many as last as long as a spectrum."""
        shortest = MFCC_GEOMETRY.num_samples(1) if self.spectra == "mfcc" else 0
        behind_first = max(shortest - geometry.receptive_field_samples, 0)
        return max(super().min_frames(geometry), 1 + -(-behind_first // geometry.hop_samples))

    def make_spectrum(self, geometry: FrameGeometry) -> LogMel | Cepstra | Mfcc:
        """What analyzes the samples of each frame."""
        kinds: dict[str, type[LogMel | Cepstra | Mfcc]] = {"log_mel": LogMel, "cepstra": Cepstra, "mfcc": Mfcc}
        return kinds[self.spectra](geometry, self.num_bands)


@dataclass(frozen=True)
class MaskedBatch(TaskBatch):
    """Audio and what to hide of it; its counts are "hidden", "visible" and "frames", both by weight."""

    mask: Tensor  # (B, S) bool, True = hidden
    hidden: Tensor  # (B, M) int64 positions of the hidden frames, filled up with 0
    weights: Tensor  # (B, M) float32, 1 for hidden frames and 0 for filling


@dataclass(frozen=True)
class MaskedCollate:
    """Makes a batch in the loader's worker: what is hidden depends on (seed, epoch, utterance), by `draw_masks`."""

    geometry: FrameGeometry
    mask: MaskConfig
    seed: int
    visible_weight: float = 0.0

    def __call__(self, examples: Sequence[Example]) -> MaskedBatch:
        """Draw the masks and stack the audio."""
        lengths = [self.geometry.num_frames(len(example.waveform)) for example in examples]
        generators = [keyed_generator(self.seed, example.epoch, example.index, _HIDE) for example in examples]
        mask = stack_rows(draw_masks(lengths, self.mask, generators), max(lengths))
        counts = mask.sum(dim=1)
        has_fixed_shape = examples[0].fixed_samples is not None
        num_places = most_hidden(mask.shape[1], self.mask) if has_fixed_shape else int(counts.max())
        weights = (torch.arange(num_places) < counts[:, None]).float()
        hidden = torch.zeros(weights.shape, dtype=torch.int64)
        hidden[weights.bool()] = torch.from_numpy(np.nonzero(mask.numpy())[1])
        num_hidden = int(counts.sum())
        num_visible = sum(lengths) - num_hidden
        num_frames = num_hidden + self.visible_weight * num_visible
        totals = {"hidden": num_hidden, "visible": num_visible, "frames": num_frames}
        return MaskedBatch(collate_audio(examples), totals, mask, hidden, weights)


def masked_input(
    encoder: SpeechEncoder, batch: MaskedBatch, silence: SilencedSpansConfig | None
) -> tuple[Frames, Tensor | None]:
    """Return what the context network gets: the frames out of the feature encoder, and what to hide of them."""
    audio = batch.audio
    masked_frames = encoder.extract_frames(audio.waveforms, audio.lengths, None if silence is None else batch.mask)
    hides_frames = silence is None or silence.mask_embedding
    return masked_frames, batch.mask if hides_frames else None


def masked_context(
    encoder: SpeechEncoder, batch: MaskedBatch, silence: SilencedSpansConfig | None
) -> tuple[Frames, Tensor]:
    """Return the frames out of the feature encoder, and the context (B, S, D), with the spans hidden."""
    masked_frames, mask = masked_input(encoder, batch, silence)
    return masked_frames, encoder.contextualize(masked_frames, mask)


def clean_frames(
    encoder: SpeechEncoder, batch: MaskedBatch, silence: SilencedSpansConfig | None, masked_frames: Frames
) -> Tensor:
    """Return the frames (B, S, C) of the recordings with nothing hidden and nothing added, for targets."""
    audio = batch.audio
    if silence is None and audio.clean is None:  # the waveform is as it was
        return masked_frames.values
    learns = silence is None or silence.target_gradient
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        return encoder.extract_frames(audio.clean_waveforms, audio.lengths).values


def gather_frames(values: Tensor, positions: Tensor) -> Tensor:
    """(B, S, C) values at (B, M) positions to (B, M, C)."""
    return values.gather(1, positions[:, :, None].expand(-1, -1, values.shape[2]))


def chance_among(number: int) -> Mapping[str, float]:
    """Return what of `prediction_terms` a model has that finds so many answers equally likely."""
    return {"hidden_loss": math.log(number), **dict.fromkeys(("hidden_accuracy", "visible_accuracy"), 1 / number)}


def prediction_terms(
    losses: Tensor,
    correct: Tensor,
    masked_frames: Frames,
    batch: MaskedBatch,
    visible_weight: float,
    penalty_weight: float,
) -> Losses:
    """Add up (B, S) losses and successes (bool, or shares) of frames, of which visible ones may count too."""
    hidden = batch.mask
    visible = ~hidden
    if masked_frames.lengths is not None:
        visible = visible & (torch.arange(hidden.shape[1], device=hidden.device) < masked_frames.lengths[:, None])
    weights = hidden + visible_weight * visible
    terms = {
        "prediction": Term((torch.where(weights > 0, losses, 0) * weights).sum(), "frames", 1.0),
        "hidden_loss": Term(torch.where(hidden, losses, 0).sum(), "hidden"),
        "hidden_accuracy": Term((correct * hidden).sum(), "hidden"),
        "visible_accuracy": Term((correct * visible).sum(), "visible"),
    }
    if penalty_weight:
        # Weighed by each utterance's own frames, so that the sum does not depend on what shares its batch.
        penalty = (masked_frames.energy * weights.sum(dim=1)).sum()
        terms["penalty"] = Term(penalty, "frames", penalty_weight)
    return terms
