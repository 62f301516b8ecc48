"""The convolutional feature encoder of wav2vec 2.0: waveforms to frames.

Shapes: B batch, T samples, S frames, C conv channels.
"""

from itertools import pairwise
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config import Config
from speechssl.frames import FrameGeometry

_EPSILON = 1e-5


class FeatureEncoderConfig(Config):
    """A stack of convolutions without padding; the defaults are wav2vec 2.0's.

    Attributes:
        dims: Output channels of each layer.
        kernels: Width of each layer, in its input's steps.
        strides: Step of each layer.
        norm: "group" normalises each channel over time after the first layer only (base); "layer" normalises each
            frame over its channels after every layer (large).
        bias: Whether the convolutions have a bias.
        gradient_scale: Factor on the gradient that reaches the encoder (0.1 in base, 1 in large).
    """

    dims: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    norm: Literal["group", "layer"] = "group"
    bias: bool = False
    gradient_scale: float = Field(0.1, gt=0)

    @model_validator(mode="after")
    def _same_number_of_layers(self) -> Self:
        if not len(self.dims) == len(self.kernels) == len(self.strides) > 0:
            raise ValueError("dims, kernels and strides need one value a layer")
        if min(*self.dims, *self.kernels, *self.strides) < 1:
            raise ValueError("dims, kernels and strides must be positive")
        return self

    @property
    def geometry(self) -> FrameGeometry:
        """Samples to frames."""
        return FrameGeometry(self.kernels, self.strides)


class FeatureEncoder(nn.Module):
    """Waveforms to frames (Baevski et al., 2020, section 2)."""

    def __init__(self, config: FeatureEncoderConfig) -> None:
        super().__init__()
        self.geometry = config.geometry
        self.layers = nn.ModuleList()
        for number, (in_dim, out_dim) in enumerate(pairwise((1, *config.dims))):
            norm: nn.Module | None = None
            if config.norm == "layer":
                norm = FrameNorm(out_dim)
            elif number == 0:
                norm = ChannelNorm(out_dim)
            conv = nn.Conv1d(in_dim, out_dim, config.kernels[number], config.strides[number], bias=config.bias)
            self.layers.append(ConvLayer(conv, norm))

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode a batch.

        Args:
            waveforms: (B, T) float32.
            lengths: (B,) valid samples of each row; None if every row is valid throughout.

        Returns:
            (B, S, C); what lies past an utterance's own number of frames has no meaning.
        """
        layer_lengths = [None] * len(self.layers) if lengths is None else self.geometry.layer_lengths(lengths)
        x = waveforms[:, None, :]
        for layer, layer_length in zip(self.layers, layer_lengths, strict=True):
            x = layer(x, layer_length)
        return x.transpose(1, 2)


class ConvLayer(nn.Module):
    """Convolution, normalisation over the valid frames, GELU."""

    def __init__(self, conv: nn.Conv1d, norm: nn.Module | None) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, S) to (B, C', S'); ``lengths`` (B,) are the valid output frames."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, lengths)
        return F.gelu(x)


class ChannelNorm(nn.Module):
    """Group norm with a group a channel: each channel over its utterance's valid frames, in float32.

    The published models take the statistics over padding too, so that a recording's features depend on what it is
    batched with. Here they do not.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, S) to the same shape; ``lengths`` (B,) None if nothing is padding."""
        dim = self.weight.shape[0]
        if lengths is None:
            return F.group_norm(x.float(), dim, self.weight, self.bias, _EPSILON).type_as(x)
        valid = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None, :]
        count = lengths.clamp(min=1)[:, None, None]
        values = x.float()
        mean = (values * valid).sum(dim=2, keepdim=True) / count
        centred = values - mean
        variance = (centred.square() * valid).sum(dim=2, keepdim=True) / count
        scale = torch.rsqrt(variance + _EPSILON) * self.weight[:, None]
        return torch.addcmul(self.bias[:, None], centred, scale).type_as(x)


class FrameNorm(nn.Module):
    """Layer norm of each frame over its channels, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, S) to the same shape; padding does not matter to it."""
        frames = x.transpose(1, 2).float()
        return F.layer_norm(frames, self.weight.shape, self.weight, self.bias, _EPSILON).transpose(1, 2).type_as(x)
