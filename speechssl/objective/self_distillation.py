"""What objectives share that predict a moving average of their own context network (Baevski et al., 2022).

The student gets frames of which spans are hidden. The teacher follows it by a moving average, gets all frames and has
no noise. Targets come from the output of the feed-forward part of its last layers, before that is added to the part's
input, with each channel normalized over the utterance's frames.

Shapes: B batch, S frames, D model dim, L target layers.
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from speechssl.config import Config
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig, Frames, SpeechEncoder
from speechssl.model.transformer import TransformerContext, TransformerSizes
from speechssl.objective.hiding import HidingConfig, MaskedBatch, MaskedCollate, clean_frames, gather_frames
from speechssl.objective.teacher import Teacher

_EPSILON = 1e-5  # added to the variance of a channel over time
_SMALLEST_STEP = 1e-7  # a teacher that would follow by less rests


class LinearDecay(Config):
    """A decay that rises linearly, then stays; the defaults are data2vec base's."""

    start: float = Field(0.999, ge=0, le=1)
    end: float = Field(0.9999, ge=0, le=1)
    num_steps: int = Field(30_000, ge=1)  # updates until it stays

    def at(self, step: int) -> float:
        """Return the decay after the ``step``-th update."""
        return self.start + (self.end - self.start) * min(step / self.num_steps, 1.0)


class ExponentialDecay(Config):
    """A decay that approaches 1 exponentially; the defaults are SpidR's."""

    start: float = Field(0.999, ge=0, le=1)
    num_steps: int = Field(20_000, ge=1)  # updates in which the distance to 1 shrinks to 1 / e

    def at(self, step: int) -> float:
        """Return the decay after the ``step``-th update: 1 where it would be nearer to 1 than 1e-7."""
        distance = (1 - self.start) * math.exp(-step / self.num_steps)
        return 1 - distance if distance > _SMALLEST_STEP else 1.0


class SelfDistillationConfig(HidingConfig):
    """What the configurations share."""

    best_metric = None

    num_target_layers: int = Field(8, ge=1)  # the last ones
    check_from_step: int = Field(5000, ge=1)  # updates before a collapse ends the run

    def check_encoder(self, encoder: EncoderConfig) -> None:
        """Raise ValueError unless it has a transformer of enough layers."""
        context = encoder.context
        if not isinstance(context, TransformerSizes):
            raise ValueError(f"this objective needs a transformer, found encoder.context.kind {context.kind!r}")
        if self.num_target_layers > context.num_layers:
            raise ValueError(
                f"objective.num_target_layers must be at most the {context.num_layers} of encoder.context.num_layers, "
                f"found {self.num_target_layers}"
            )

    def make_collate(self, geometry: FrameGeometry, seed: int) -> MaskedCollate:
        """What hides frames."""
        return MaskedCollate(geometry, self.mask, seed)


class ContextTeacher(Teacher):
    """A context network that follows the student's.

    What comes before its layers is shared with the student: it gets the frames of the student's feature encoder, and
    has the student's own projection and positional convolution.
    """

    network: TransformerContext

    def __init__(self, encoder: EncoderConfig, num_layers: int) -> None:
        context = encoder.context.build(encoder.feature_encoder.dims[-1])
        assert isinstance(context, TransformerContext)
        super().__init__(context)
        self.first_layer = len(context.layers) - num_layers

    @torch.no_grad()
    def forward(self, frames: Frames) -> Tensor:
        """Return the normalized outputs of the feed-forward parts of the last layers: (L, B, S, D) float32."""
        outputs = list(self.network.feed_forward_outputs(frames.values, frames.lengths))
        return normalize_over_time(torch.stack(outputs[self.first_layer :]), frames.lengths)

    def follow(self, student: nn.Module, decay: float) -> None:
        """Move every weight of the layers towards the student's, as `Teacher.follow`; 1 lets them rest.

        As published, the positional convolution rests with them.
        """
        if decay < 1:
            super().follow(student, decay)
            _copy(student, self.network, "position")
        _copy(student, self.network, "projection")

    def share(self, student: nn.Module) -> None:
        """Take what is shared from the student, and leave the layers as they are."""
        for name in ("position", "projection"):
            _copy(student, self.network, name)


def _copy(student: nn.Module, teacher: nn.Module, name: str) -> None:
    teacher.get_submodule(name).load_state_dict(student.get_submodule(name).state_dict())


def normalize_over_time(x: Tensor, frame_lengths: Tensor | None) -> Tensor:
    """Bring each channel of each utterance to mean 0 and variance 1 over its valid frames.

    Args:
        x: (..., B, S, D).
        frame_lengths: (B,) valid frames; None if every frame is valid.

    Returns:
        The same shape, float32; what is not valid has no meaning.
    """
    x = x.float()
    if frame_lengths is None:
        variance, mean = torch.var_mean(x, dim=-2, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + _EPSILON)
    valid = (torch.arange(x.shape[-2], device=x.device) < frame_lengths[:, None])[:, :, None]
    count = frame_lengths.clamp(min=1)[:, None, None]
    centered = x - (x * valid).sum(dim=-2, keepdim=True) / count
    variance = (centered * valid).square().sum(dim=-2, keepdim=True) / count
    return centered * torch.rsqrt(variance + _EPSILON)


@torch.no_grad()
def hidden_targets(
    teacher: ContextTeacher, encoder: SpeechEncoder, batch: MaskedBatch, config: HidingConfig, masked_frames: Frames
) -> Tensor:
    """Return what the teacher makes of the hidden frames of the clean recordings: (L, B, M, D) float32."""
    values = clean_frames(encoder, batch, config.silence, masked_frames)
    outputs = teacher(Frames(values, masked_frames.lengths, masked_frames.features))
    return torch.stack([gather_frames(output, batch.hidden) for output in outputs])
