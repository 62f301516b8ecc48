"""The encoder that every objective trains and every task uses: waveforms to frames to context.

Shapes: B batch, T samples, S frames, C conv channels, D model dim.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from speechssl.config import Config
from speechssl.frames import FrameGeometry
from speechssl.model.context import ContextConfig, ContextNetwork, PositionalConvolution
from speechssl.model.dropout import Dropout
from speechssl.model.feature_encoder import ChannelNorm, ConvLayer, FeatureEncoder, FeatureEncoderConfig, FrameNorm


class EncoderConfig(Config):
    """Feature encoder and context network; the defaults are wav2vec 2.0 base.

    Attributes:
        feature_encoder: The convolutional stack.
        context: The transformer.
        input_dropout: On the projected frames, before the transformer.
        normalize_waveforms: Bring each waveform to zero mean and unit variance first (large models).
    """

    feature_encoder: FeatureEncoderConfig = FeatureEncoderConfig()
    context: ContextConfig = ContextConfig()
    input_dropout: float = Field(0.1, ge=0, lt=1)
    normalize_waveforms: bool = False


@dataclass(frozen=True)
class Frames:
    """What the feature encoder gives.

    Attributes:
        values: (B, S, C), layer-normalised.
        lengths: (B,) valid frames of each row, or None if every row is valid throughout.
        energy: (B,) mean square over the valid frames before the layer norm, what the feature penalty weighs.
    """

    values: Tensor
    lengths: Tensor | None
    energy: Tensor


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
    """wav2vec 2.0 without its pretraining heads (Baevski et al., 2020, https://arxiv.org/abs/2006.11477)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        conv_dim, model_dim = config.feature_encoder.dims[-1], config.context.model_dim
        self.feature_encoder = FeatureEncoder(config.feature_encoder)
        self.frame_norm = nn.LayerNorm(conv_dim)
        self.projection = nn.Linear(conv_dim, model_dim)
        self.input_dropout = Dropout(config.input_dropout)
        self.mask_embedding = nn.Parameter(torch.empty(model_dim))
        self.context = ContextNetwork(config.context)
        self.reset_parameters()

    @property
    def geometry(self) -> FrameGeometry:
        """Samples to frames."""
        return self.feature_encoder.geometry

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every parameter as published.

        | parameter | weight | bias |
        |---|---|---|
        | convolutions of the feature encoder | normal, Kaiming (fan in, gain sqrt 2) | PyTorch's |
        | all norms | 1 | 0 |
        | projection of the frames | PyTorch's | PyTorch's |
        | mask embedding | uniform [0, 1) | |
        | positional convolution | normal, deviation sqrt(4 / (kernel x D)) | 0 |
        | linear maps of the transformer | normal, deviation 0.02 | 0 |
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.LayerNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, ConvLayer):
                nn.init.kaiming_normal_(module.conv.weight)
            elif isinstance(module, ChannelNorm | FrameNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, PositionalConvolution):
                kernel = module.conv.kernel_size[0]
                deviation = (4 / (kernel * module.conv.in_channels)) ** 0.5
                module.conv.weight = torch.randn_like(module.conv.weight) * deviation  # sets both parts of the norm
                nn.init.zeros_(module.conv.bias)
        for module in self.context.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.uniform_(self.mask_embedding)

    def extract_frames(self, waveforms: Tensor, lengths: Tensor | None = None) -> Frames:
        """Run the feature encoder.

        Args:
            waveforms: (B, T) float32 in [-1, 1], at 16 kHz.
            lengths: (B,) int64 valid samples of each row; None if every row is valid throughout.
        """
        if self.config.normalize_waveforms:
            waveforms = normalize_waveforms(waveforms, lengths)
        features = self.feature_encoder(waveforms, lengths)
        scale = self.config.feature_encoder.gradient_scale
        if scale != 1 and features.requires_grad:
            features = _ScaleGradient.apply(features, scale)
        square = features.float().square().mean(dim=2)
        frame_lengths = None if lengths is None else self.geometry.num_frames(lengths)
        if frame_lengths is None:
            energy = square.mean(dim=1)
        else:
            valid = torch.arange(square.shape[1], device=square.device) < frame_lengths[:, None]
            energy = (square * valid).sum(dim=1) / frame_lengths.clamp(min=1)
        return Frames(self.frame_norm(features), frame_lengths, energy)

    def contextualise(
        self,
        frames: Frames,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layer: int | None = None,
    ) -> Tensor:
        """Run the context network.

        Args:
            frames: From ``extract_frames``.
            mask: (B, S) bool, True = hidden: the frame is replaced by the mask embedding.
            channel_mask: (B, D) bool, True = the channel is zero throughout the utterance.
            layer: Return the output of this layer (from 1; 0 is the input of the first) instead of the last.

        Returns:
            (B, S, D).
        """
        x = self.input_dropout(self.projection(frames.values))
        if mask is not None:
            x = torch.where(mask[:, :, None], self.mask_embedding.type_as(x), x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None, :], 0)
        return self.context(x, frames.lengths, layer)  # type: ignore[no-any-return]

    @torch.no_grad()  # not inference mode, whose tensors could train nothing on top
    def encode(self, waveforms: Tensor, lengths: Tensor | None = None, layer: int | None = None) -> Encoded:
        """Represent a batch of recordings, each as it would be alone.

        Args:
            waveforms: (B, T) float32 in [-1, 1], at 16 kHz, as read: the model's own normalisation is applied here.
            lengths: (B,) valid samples of each row; None if every row is valid throughout.
            layer: The transformer layer to return, from 1; 0 is the input of the first; None is the final output.

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
        device = self.mask_embedding.device
        is_padded = bool((lengths < waveforms.shape[1]).any())
        waveforms, lengths = waveforms.to(device), lengths.to(device)
        training = self.training
        self.eval()
        try:
            frames = self.extract_frames(waveforms, lengths if is_padded else None)
            return Encoded(self.contextualise(frames, layer=layer), self.geometry.num_frames(lengths))
        finally:
            self.train(training)


def normalize_waveforms(waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """Bring each row's valid samples to zero mean and unit variance (epsilon 1e-5); padding becomes 0."""
    if lengths is None:
        return nn.functional.layer_norm(waveforms, waveforms.shape[1:])
    valid = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    count = lengths.clamp(min=1)[:, None]
    centred = (waveforms - (waveforms * valid).sum(dim=1, keepdim=True) / count) * valid
    variance = centred.square().sum(dim=1, keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-5)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradients[0] * ctx.scale, None
