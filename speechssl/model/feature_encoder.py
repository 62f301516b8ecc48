"""The convolutional feature encoder: waveforms to frames.

Shapes: B batch, T samples, S frames, C conv channels.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config import Config
from speechssl.frames import FrameGeometry
from speechssl.model import cpu
from speechssl.model.norm import ChannelNorm, FrameNorm, Norm, UtteranceNorm

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class FeatureEncoderConfig(Config):
    """A stack of convolutions without padding; the defaults are wav2vec 2.0's.

    Attributes:
        dims: Output channels of each layer.
        kernels: Width of each layer, in its input's steps.
        strides: Step of each layer.
        norm: "group" normalizes each channel over time after the first layer only (base); "layer" normalizes each
            frame over its channels after every layer (large); "utterance" normalizes over channels and time together
            after every layer (wav2vec).
        norm_epsilon: What the norms add to a variance. With normalized waveforms and "layer" it sets what is silence:
            at 1e-5, whatever is 50 dB quieter than the recording as a whole.
        activation: After each layer (wav2vec: "relu").
        bias: Whether the convolutions have a bias.
        log_compression: Whether the last layer's output x becomes log(|x| + 1) (wav2vec).
        frame_norm: Whether each frame is layer-normalized after the stack (not in wav2vec).
        gradient_scale: Factor on the gradient that reaches the encoder (0.1 in base, 1 in large).
    """

    dims: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    norm: Literal["group", "layer", "utterance"] = "group"
    norm_epsilon: float = Field(1e-5, gt=0)
    activation: Literal["gelu", "relu"] = "gelu"
    bias: bool = False
    log_compression: bool = False
    frame_norm: bool = True
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
    """Waveforms to frames (Schneider et al., 2019, section 2; Baevski et al., 2020, section 2)."""

    def __init__(self, config: FeatureEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = config.geometry
        self.layers = nn.ModuleList()
        for number, (in_dim, out_dim) in enumerate(pairwise((1, *config.dims))):
            norm: Norm | None = None
            if config.norm == "layer":
                norm = FrameNorm(out_dim, config.norm_epsilon)
            elif config.norm == "utterance":
                norm = UtteranceNorm(out_dim, config.norm_epsilon)
            elif number == 0:
                norm = ChannelNorm(out_dim, config.norm_epsilon)
            conv = nn.Conv1d(in_dim, out_dim, config.kernels[number], config.strides[number], bias=config.bias)
            self.layers.append(ConvLayer(conv, norm, _ACTIVATIONS[config.activation]))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize every parameter as published.

        | parameter | norm | weight | bias |
        |---|---|---|---|
        | convolutions | "group" or "layer" (wav2vec 2.0) | normal, Kaiming (fan in, gain sqrt 2) | PyTorch's |
        | convolutions | "utterance" (wav2vec) | PyTorch's | PyTorch's |
        | norms | any | 1 | 0 |
        """
        for module in self.modules():
            if isinstance(module, nn.Conv1d | Norm):
                module.reset_parameters()
            if isinstance(module, nn.Conv1d) and self.config.norm != "utterance":
                nn.init.kaiming_normal_(module.weight)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode a batch, each row as it would be alone.

        Args:
            waveforms: (B, T) float32.
            lengths: (B,) valid samples of each row; None if every row is valid throughout.

        Returns:
            (B, S, C); what lies past an utterance's own number of frames has no meaning.
        """
        if cpu.is_inference(waveforms) and self.config.norm != "utterance":
            x = cpu.encode_in_slices(waveforms, self.geometry, self._layers_without_time(waveforms, lengths))
        else:
            layer_lengths = [None] * len(self.layers) if lengths is None else self.geometry.layer_lengths(lengths)
            x = waveforms[:, None, :]
            for layer, layer_length in zip(self.layers, layer_lengths, strict=True):
                x = layer(x, layer_length)
        if self.config.log_compression:
            x = torch.log1p(x.abs())
        return x.transpose(1, 2)

    def _layers_without_time(self, waveforms: Tensor, lengths: Tensor | None) -> list[Callable[[Tensor, None], Tensor]]:
        """The layers, of which a norm over time has become a scale and a shift."""
        layers: list[Callable[[Tensor, None], Tensor]] = list(self.layers)
        first = self.layers[0]
        assert isinstance(first, ConvLayer)
        if isinstance(first.norm, ChannelNorm):
            scale, shift = first.norm.scale_and_shift(*cpu.output_statistics(first.conv, waveforms, lengths))
            layers[0] = cpu.scaled_convolution(first.conv, scale, shift, first.activation)
        return layers


class ConvLayer(nn.Module):
    """Convolution, normalization over the valid frames, activation."""

    def __init__(self, conv: nn.Conv1d, norm: Norm | None, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, S) to (B, C', S'); ``lengths`` (B,) are the valid output frames."""
        if isinstance(self.norm, FrameNorm):  # channels last in memory from here to the next layer's convolution
            frames: Tensor = self.norm(cpu.convolve_pieces(self.conv, x), lengths).transpose(1, 2)
            return self.activation(frames).transpose(1, 2)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, lengths)
        return self.activation(x)
