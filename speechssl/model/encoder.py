"""The encoder that every objective trains and every task uses: waveforms to frames to context.

Shapes: B batch, T samples, S frames, C conv channels, D model dim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config import Config
from speechssl.errors import ConfigError
from speechssl.frames import FrameGeometry
from speechssl.model.causal import CausalConfig
from speechssl.model.causal_transformer import CausalTransformerConfig
from speechssl.model.data2vec import Data2VecConfig
from speechssl.model.feature_encoder import FeatureEncoder, FeatureEncoderConfig
from speechssl.model.past import Past
from speechssl.model.transformer import TransformerConfig
from speechssl.model.wavlm import WavLMConfig

SILENCE = 1e-3
"""The samples of silenced spans: inaudible, but not 0. Layers without biases leave 0 as it is, where the slope of the
norm of each is the inverse root of its epsilon: through all of them gradients were 10^7 times as large."""


class EncoderConfig(Config):
    """Feature encoder and context network; the defaults are wav2vec 2.0 base.

    Attributes:
        feature_encoder: The convolutional stack.
        context: The context network, of the kind that its ``kind`` names.
        normalize_waveforms: Bring each waveform to zero mean and unit variance first, so that neither level nor offset
            matters. A number is what is added to the variance: the recipes have 1e-8, the square of `SILENCE_PEAK`,
            with which -40 dB sounds like 0 dB and the noise of 16 bits stays faint; transformers has 1e-7. True is
            fairseq's 1e-5. In pretraining the waveform is the crop; fairseq normalizes the whole recording before it
            crops, which takes decoding all of it. A causal network may have it: through it a frame knows two numbers
            of the whole recording, its level and its offset. A stream estimates both from what it has heard.
    """

    feature_encoder: FeatureEncoderConfig = FeatureEncoderConfig()
    context: TransformerConfig | WavLMConfig | Data2VecConfig | CausalConfig | CausalTransformerConfig = Field(
        TransformerConfig(), discriminator="kind"
    )
    normalize_waveforms: bool | Annotated[float, Field(gt=0)] = False

    @model_validator(mode="after")
    def _is_causal_throughout(self) -> Self:
        norm = self.feature_encoder.norm
        if self.context.is_causal and norm != "layer":
            raise ValueError(
                f'a context network that does not see the future needs feature_encoder.norm "layer": "{norm}" '
                "normalizes over the whole recording, through which a frame knows what follows"
            )
        return self

    @property
    def mask_dim(self) -> int:
        """Channels that a channel mask chooses from."""
        return self.context.mask_dim(self.feature_encoder.dims[-1])

    @property
    def normalization_epsilon(self) -> float | None:
        """What is added to the variance of a waveform that is normalized; None if it is not."""
        if isinstance(self.normalize_waveforms, bool):
            return 1e-5 if self.normalize_waveforms else None
        return self.normalize_waveforms


@dataclass(frozen=True)
class Frames:
    """What the feature encoder gives.

    Attributes:
        values: (B, S, C), layer-normalized if the configuration says so.
        lengths: (B,) valid frames of each row, or None if every row is valid throughout.
        features: (B, S, C) before the layer norm.
    """

    values: Tensor
    lengths: Tensor | None
    features: Tensor

    @property
    def energy(self) -> Tensor:
        """(B,) mean square of the features over the valid frames: what the feature penalty weighs."""
        square = self.features.float().square().mean(dim=2)
        if self.lengths is None:
            return square.mean(dim=1)
        valid = torch.arange(square.shape[1], device=square.device) < self.lengths[:, None]
        return (square * valid).sum(dim=1) / self.lengths.clamp(min=1)

    def repeated(self, times: int) -> "Frames":
        """Return the whole batch that many times, one after another."""
        if times == 1:
            return self
        lengths = None if self.lengths is None else self.lengths.repeat(times)
        return Frames(self.values.repeat(times, 1, 1), lengths, self.features.repeat(times, 1, 1))


@dataclass(frozen=True)
class Encoded:
    """Representations of a batch.

    Attributes:
        context: (B, S, D).
        frame_lengths: (B,) int64, valid frames of each row.
    """

    context: Tensor
    frame_lengths: Tensor


class SpeechEncoder(nn.Module):
    """What pretraining trains and every task uses: a feature encoder and a context network.

    With the default configuration it is wav2vec 2.0 (Baevski et al., 2020, https://arxiv.org/abs/2006.11477) without
    its pretraining heads. Every part initializes itself; the tables are in their ``reset_parameters``.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_encoder = FeatureEncoder(config.feature_encoder)
        frame_dim = config.feature_encoder.dims[-1]
        self.frame_norm = nn.LayerNorm(frame_dim) if config.feature_encoder.frame_norm else nn.Identity()
        self.context = config.context.build(frame_dim)

    @property
    def geometry(self) -> FrameGeometry:
        """Samples to frames."""
        return self.feature_encoder.geometry

    def begin_stream(self) -> Past:
        """Return the past of a recording that is about to begin.

        Raises:
            ConfigError: a frame of this model knows what follows it.
        """
        context, norm = self.config.context, self.config.feature_encoder.norm
        if not context.is_causal:
            of_context = f', its norm "{context.norm}"' if isinstance(context, CausalConfig) else ""
            raise ConfigError(
                'stream: expected encoder.context.kind "causal_transformer" or "causal" with norm "frame", and '
                f'feature_encoder.norm "layer", found context.kind "{context.kind}"{of_context}, and "{norm}"'
            )
        return Past()

    def extract_frames(
        self,
        waveforms: Tensor,
        lengths: Tensor | None = None,
        silenced: Tensor | None = None,
        *,
        is_normalized: bool = False,
    ) -> Frames:
        """Run the feature encoder.

        Args:
            waveforms: (B, T) float32 in [-1, 1], at 16 kHz.
            lengths: (B,) int64 valid samples of each row; None if every row is valid throughout.
            silenced: (B, S) bool; every sample that a True frame sees is silent for the encoder, in waveforms already
                normalized if the configuration says so.
            is_normalized: Whether the waveforms are normalized already, if the configuration says so.
        """
        epsilon = self.config.normalization_epsilon
        if epsilon is not None and not is_normalized:
            waveforms = normalize_waveforms(waveforms, lengths, epsilon)
        if silenced is not None:
            waveforms = silence_frames(waveforms, silenced, self.geometry)
        features = self.feature_encoder(waveforms, lengths)
        scale = self.config.feature_encoder.gradient_scale
        if scale != 1 and features.requires_grad:
            features = _ScaleGradient.apply(features, scale)
        frame_lengths = None if lengths is None else self.geometry.num_frames(lengths)
        return Frames(self.frame_norm(features), frame_lengths, features)

    def contextualize(
        self,
        frames: Frames,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layer: int | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Run the context network.

        Args:
            frames: From ``extract_frames``.
            mask: (B, S) bool, True = hidden from the network; how, its own documentation says.
            channel_mask: (B, ``config.mask_dim``) bool, True = the channel is zero throughout the utterance.
            layer: Return the output of this layer (from 1; 0 is the input of the first) instead of the last.
            past: From ``begin_stream``: the frames continue a stream.

        Returns:
            (B, S, D).
        """
        if layer is not None:
            return next(islice(self.layer_outputs(frames, mask, channel_mask), layer, None))
        context: Tensor = self.context(frames.values, frames.lengths, mask, channel_mask, past)
        return context

    def layer_outputs(
        self, frames: Frames, mask: Tensor | None = None, channel_mask: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The input of the context network's first layer, then the output of each, as they are computed.

        The arguments are those of `contextualize`. A final norm of the network, which belongs to no layer, is left out.
        """
        outputs: Iterator[Tensor] = self.context.layer_outputs(frames.values, frames.lengths, mask, channel_mask)
        return outputs

    @torch.no_grad()  # not inference mode, whose tensors could train nothing on top
    def encode(self, waveforms: Tensor, lengths: Tensor | None = None, layer: int | None = None) -> Encoded:
        """Represent a batch of recordings, each as it would be alone.

        Args:
            waveforms: (B, T) float32 in [-1, 1], at 16 kHz, as read: the model's own normalization is applied here.
            lengths: (B,) valid samples of each row; None if every row is valid throughout.
            layer: The layer of the context network to return, from 1; 0 is the input of the first; None is the final
                output.

        Raises:
            ValueError: the shapes do not fit, a row is shorter than one frame, or there is no such layer.
        """
        num_layers = self.config.context.num_layers
        if waveforms.dim() != 2:
            raise ValueError(f"waveforms: expected shape (batch, samples), found {tuple(waveforms.shape)}")
        if layer is not None and not 0 <= layer <= num_layers:
            raise ValueError(f"layer: expected 0 to {num_layers}, found {layer}")
        if lengths is None:
            lengths = torch.full((waveforms.shape[0],), waveforms.shape[1])
        shortest = self.geometry.receptive_field_samples
        if lengths.shape != waveforms.shape[:1] or int(lengths.min()) < shortest or lengths.max() > waveforms.shape[1]:
            raise ValueError(
                f"lengths: expected {waveforms.shape[0]} values between {shortest} (one frame) "
                f"and {waveforms.shape[1]} samples, found {lengths.tolist()}"
            )
        device = next(self.parameters()).device
        is_padded = bool((lengths < waveforms.shape[1]).any())
        waveforms, lengths = waveforms.to(device), lengths.to(device)
        training = self.training
        self.eval()
        try:
            frames = self.extract_frames(waveforms, lengths if is_padded else None)
            return Encoded(self.contextualize(frames, layer=layer), self.geometry.num_frames(lengths))
        finally:
            self.train(training)


def normalize_waveforms(waveforms: Tensor, lengths: Tensor | None, epsilon: float = 1e-5) -> Tensor:
    """Bring each row's valid samples to zero mean and, but for the epsilon, unit variance; padding becomes 0."""
    if lengths is None:
        return F.layer_norm(waveforms, waveforms.shape[1:], eps=epsilon)
    valid = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    count = lengths.clamp(min=1)[:, None]
    centered = (waveforms - (waveforms * valid).sum(dim=1, keepdim=True) / count) * valid
    variance = centered.square().sum(dim=1, keepdim=True) / count
    return centered * torch.rsqrt(variance + epsilon)


def silence_frames(waveforms: Tensor, silenced: Tensor, geometry: FrameGeometry) -> Tensor:
    """Set to `SILENCE` every sample that a frame sees.

    Neighboring frames overlap: a frame beside a silenced span hears a part of what it would.

    Args:
        waveforms: (B, T).
        silenced: (B, S) bool, True = nothing of what the frame sees shall be heard.
        geometry: Samples to frames.
    """
    field = torch.ones(1, 1, geometry.receptive_field_samples, device=waveforms.device)
    with torch.autocast(waveforms.device.type, enabled=False):
        covered = F.conv_transpose1d(silenced[:, None].float(), field, stride=geometry.hop_samples)[:, 0]
    covered = F.pad(covered, (0, max(waveforms.shape[1] - covered.shape[1], 0)))[:, : waveforms.shape[1]]
    return waveforms.masked_fill(covered > 0.5, SILENCE)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradients[0] * ctx.scale, None
