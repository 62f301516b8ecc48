"""The context network of wav2vec, a stack of causal convolutions: frames to context.

Shapes: B batch, S frames, C channels of the frames, D model dim.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config import Config
from speechssl.model.cpu import Dropout
from speechssl.model.norm import FrameNorm, Norm, UtteranceNorm
from speechssl.model.past import Past


class CausalConfig(Config):
    """Causal convolutions; the defaults are wav2vec large's.

    Attributes:
        kernels: Frames that each layer sees, its own and those before it.
        residual: Whether each layer adds its input to its output (large) or does not (base).
        dropout: After each convolution.
        norm: "utterance" normalizes over channels and time together (wav2vec), so that each frame knows two numbers of
            those that follow; "frame" normalizes each frame over its channels, so that it knows nothing of them.
    """

    kind: Literal["causal"] = "causal"
    model_dim: int = Field(512, ge=1)
    kernels: tuple[int, ...] = tuple(range(2, 14))
    residual: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)
    norm: Literal["utterance", "frame"] = "utterance"

    @model_validator(mode="after")
    def _has_layers(self) -> Self:
        if not self.kernels or min(self.kernels) < 1:
            raise ValueError("kernels needs a positive value a layer")
        return self

    @property
    def is_causal(self) -> bool:
        """Whether a frame's context depends on no later frame."""
        return self.norm == "frame"

    @property
    def num_layers(self) -> int:
        """Layers of the network."""
        return len(self.kernels)

    def mask_dim(self, frame_dim: int) -> int:
        """Channels that a channel mask chooses from: those of the frames."""
        return frame_dim

    def build(self, frame_dim: int) -> "CausalContext":
        """The network for frames of C channels."""
        return CausalContext(self, frame_dim)


class CausalContext(nn.Module):
    """Convolutions over a frame and those before it (Schneider et al., 2019, section 2).

    The convolutions are causal, but the published norm takes its mean and variance over the whole utterance: through
    these two numbers a frame sees what comes after it, so a stream cannot be followed exactly.
    """

    def __init__(self, config: CausalConfig, frame_dim: int) -> None:
        super().__init__()
        dims = pairwise((frame_dim, *[config.model_dim] * config.num_layers))
        self.layers = nn.ModuleList(
            CausalLayer(in_dim, out_dim, kernel, config)
            for (in_dim, out_dim), kernel in zip(dims, config.kernels, strict=True)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize every parameter as published: convolutions as PyTorch does, norms with 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | Norm):
                module.reset_parameters()

    def forward(
        self,
        frames: Tensor,
        frame_lengths: Tensor | None = None,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Contextualize frames.

        Args:
            frames: (B, S, C).
            frame_lengths: (B,) valid frames of each row; None if every row is valid throughout.
            mask: (B, S) bool, True = hidden: the frame is zero, for want of a mask embedding in this model.
            channel_mask: (B, C) bool, True = the channel is zero throughout the utterance.
            past: The frames before these, none of which is padding; for a network that ``is_causal``.

        Returns:
            (B, S, D).
        """
        for output in self.layer_outputs(frames, frame_lengths, mask, channel_mask, past):
            x = output
        return x

    def layer_outputs(
        self,
        frames: Tensor,
        frame_lengths: Tensor | None = None,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Iterator[Tensor]:
        """The input of the first layer, (B, S, C), then the output of each, (B, S, D), as they are computed.

        The arguments are those of `forward`.
        """
        if mask is not None:
            frames = frames.masked_fill(mask[:, :, None], 0)
        if channel_mask is not None:
            frames = frames.masked_fill(channel_mask[:, None, :], 0)
        x = frames.transpose(1, 2)
        yield frames
        for transform in self.layers:
            x = transform(x, frame_lengths, past)
            yield x.transpose(1, 2)


class CausalLayer(nn.Module):
    """A causal convolution, its norm and ReLU, with or without a residual connection."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, config: CausalConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, kernel)
        self.dropout = Dropout(config.dropout)
        self.norm = UtteranceNorm(out_dim) if config.norm == "utterance" else FrameNorm(out_dim)
        self.residual: nn.Module | None = None
        if config.residual:
            self.residual = nn.Identity() if in_dim == out_dim else nn.Conv1d(in_dim, out_dim, 1, bias=False)

    def forward(self, x: Tensor, lengths: Tensor | None, past: Past | None = None) -> Tensor:
        """(B, C, S) to (B, D, S); ``lengths`` (B,) are the valid frames, ``past`` holds those before."""
        num_before = self.conv.kernel_size[0] - 1
        start = x[:, :, :1].expand(-1, -1, num_before)  # the first frame stands for those before it
        y = self.conv(torch.cat((start, x), dim=2) if past is None else past.extend(self, x, num_before, start))
        y = F.relu(self.norm(self.dropout(y), lengths))
        return y if self.residual is None else (y + self.residual(x)) * 0.5**0.5
