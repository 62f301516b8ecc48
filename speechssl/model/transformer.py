"""The context network of wav2vec 2.0, a transformer that reads the whole utterance: frames to context.

Shapes: B batch, S frames, C channels of the frames, D model dim, H heads.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.config import Config
from speechssl.model.adapter import Adapter
from speechssl.model.attention import SelfAttention
from speechssl.model.cpu import Dropout
from speechssl.model.past import Past
from speechssl.model.position import PositionalConvolution


class TransformerSizes(Config):
    """What every transformer is told; the defaults are those of wav2vec 2.0 base.

    Attributes:
        ffn_dim: Inner width of the feed-forward part.
        norm_first: Normalize the input of each part (large) rather than the sum after it (base).
        position_kernel: Frames that the positional convolution sees.
        position_groups: Groups of the positional convolution.
        input_dropout: On the projected frames.
        dropout: Before the first layer and on each part's output.
        attention_dropout: On the attention weights.
        activation_dropout: Inside the feed-forward part.
        layer_drop: Share of the layers replaced by the identity in training.
        adapter_dim: Inner width of an adapter after each layer, for one language (MMS; with ``norm_first`` only).
    """

    is_causal: ClassVar[bool] = False  # whether a frame's context depends on no later frame

    num_layers: int = Field(12, ge=1, le=1_000)
    model_dim: int = Field(768, ge=1)
    num_heads: int = Field(12, ge=1)
    ffn_dim: int = Field(3072, ge=1)
    norm_first: bool = False
    position_kernel: int = Field(128, ge=1)
    position_groups: int = Field(16, ge=1)
    input_dropout: float = Field(0.1, ge=0, lt=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    activation_dropout: float = Field(0.0, ge=0, lt=1)
    layer_drop: float = Field(0.05, ge=0, lt=1)
    adapter_dim: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        for name in ("num_heads", "position_groups"):
            if self.model_dim % getattr(self, name):
                raise ValueError(f"model_dim must be a multiple of {name}, found {self.model_dim}")
        if self.adapter_dim and not self.norm_first:
            raise ValueError("adapter_dim needs norm_first")
        return self

    def mask_dim(self, frame_dim: int) -> int:
        """Channels that a channel mask chooses from: those of the projected frames."""
        return self.model_dim

    def make_position(self) -> Any:
        """What gives frames their position: (B, S, D) and (B, S) bool, True = valid, or None, to (B, S, D)."""
        return PositionalConvolution(self.model_dim, self.position_kernel, self.position_groups)

    def make_attention(self) -> SelfAttention:
        """The attention of one layer."""
        return SelfAttention(self.model_dim, self.num_heads, self.attention_dropout)


class TransformerConfig(TransformerSizes):
    """The transformer of wav2vec 2.0; the defaults are the base model's."""

    kind: Literal["transformer"] = "transformer"

    def build(self, frame_dim: int) -> "TransformerContext":
        """The network for frames of C channels."""
        return TransformerContext(self, frame_dim)


class TransformerContext(nn.Module):
    """Mask embedding, positional convolution and transformer (Baevski et al., 2020, section 2)."""

    def __init__(self, config: TransformerSizes, frame_dim: int) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.layer_drop = config.layer_drop
        self.projection = nn.Linear(frame_dim, config.model_dim)
        self.input_dropout = Dropout(config.input_dropout)
        self.mask_embedding = nn.Parameter(torch.empty(config.model_dim))
        self.position = config.make_position()
        self.norm = nn.LayerNorm(config.model_dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize every parameter as published.

        | parameter | weight | bias |
        |---|---|---|
        | projection of the frames | PyTorch's | PyTorch's |
        | mask embedding | uniform [0, 1) | |
        | positional convolution | normal, deviation sqrt(4 / (kernel x D)) | 0 |
        | linear maps of the layers | normal, deviation 0.02 | 0 |
        | norms | 1 | 0 |
        """
        self.projection.reset_parameters()
        nn.init.uniform_(self.mask_embedding)
        self.position.reset_parameters()
        self.norm.reset_parameters()
        for module in self.layers.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

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
            mask: (B, S) bool, True = hidden: the projected frame is replaced by the mask embedding.
            channel_mask: (B, D) bool, True = the channel is zero throughout the utterance, in hidden frames too.
            past: The frames before these, none of which is padding; for causal networks only.

        Returns:
            (B, S, D).
        """
        for output in self.layer_outputs(frames, frame_lengths, mask, channel_mask, past):
            x = output
        return self.norm(x) if self.norm_first else x

    def layer_outputs(
        self,
        frames: Tensor,
        frame_lengths: Tensor | None = None,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Iterator[Tensor]:
        """The input of the first layer, then the output of each, (B, S, D), as they are computed; as for `forward`."""
        x, attention_bias = self._first_input(frames, frame_lengths, mask, channel_mask, past)
        yield x
        for output, _ in self._run_layers(x, attention_bias, past):
            yield output

    def feed_forward_outputs(
        self, frames: Tensor, frame_lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> Iterator[Tensor]:
        """What the feed-forward part of each layer adds to its input, (B, S, D), without dropout; as for `forward`."""
        for _, added in self._run_layers(*self._first_input(frames, frame_lengths, mask, None)):
            yield added

    @property
    def after_last_feed_forward(self) -> tuple[nn.Module, ...]:
        """The modules that no `feed_forward_outputs` depend on."""
        last = self.layers[-1]
        assert isinstance(last, TransformerLayer)
        if not self.norm_first:
            return (last.feed_forward_norm,)
        return (self.norm,) if last.adapter is None else (self.norm, last.adapter)

    def _first_input(
        self,
        frames: Tensor,
        frame_lengths: Tensor | None,
        mask: Tensor | None,
        channel_mask: Tensor | None,
        past: Past | None = None,
    ) -> tuple[Tensor, Any]:
        """The input of the first layer, and what `attention_bias` returns."""
        x: Tensor = self.input_dropout(self.projection(frames))
        if mask is None and self.training:  # the mask embedding takes part in every step, on every rank
            mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        if mask is not None:
            x = torch.where(mask[:, :, None], self.mask_embedding.type_as(x), x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None, :], 0)
        valid = None
        if frame_lengths is not None:
            valid = torch.arange(x.shape[1], device=x.device) < frame_lengths[:, None]
            x = x * valid[:, :, None]
        attention_bias = self.attention_bias(x, valid)
        x = x + (self.position(x, valid) if past is None else self.position.extend(x, past))
        if not self.norm_first:
            x = self.norm(x)
        return self.dropout(x), attention_bias

    def _run_layers(self, x: Tensor, attention_bias: Any, past: Past | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The output of each layer and what its feed-forward part added, (B, S, D), as they are computed."""
        drops_layers = self.training and self.layer_drop > 0
        for transform in self.layers:
            keep = torch.rand((), device=x.device) >= self.layer_drop if drops_layers else None
            output, added = transform(x, attention_bias, past)
            # Selected rather than skipped: every parameter takes part in every step, on every rank.
            x = output if keep is None else torch.where(keep, output, x)
            yield x, added

    def attention_bias(self, x: Tensor, valid: Tensor | None) -> Any:
        """What `SelfAttention` takes beside (B, S, D), for all layers; ``valid`` is (B, S) bool or None."""
        return None if valid is None else valid[:, None, None, :]


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward part, each with a residual connection."""

    def __init__(self, config: TransformerSizes) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = config.make_attention()
        self.attention_norm = nn.LayerNorm(config.model_dim)
        self.feed_forward = FeedForward(config.model_dim, config.ffn_dim, config.activation_dropout)
        self.feed_forward_norm = nn.LayerNorm(config.model_dim)
        self.dropout = Dropout(config.dropout)
        self.adapter = Adapter(config.model_dim, config.adapter_dim) if config.adapter_dim else None

    def forward(self, x: Tensor, attention_bias: Any, past: Past | None = None) -> tuple[Tensor, Tensor]:
        """(B, S, D) to the layer's output and that of its feed-forward part; the others are as for `SelfAttention`."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), attention_bias, past))
            added = self.feed_forward(self.feed_forward_norm(x))
            x = x + self.dropout(added)
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, attention_bias, past)))
            added = self.feed_forward(x)
            x = self.feed_forward_norm(x + self.dropout(added))
        return x if self.adapter is None else x + self.adapter(x), added


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, dim: int, inner_dim: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, inner_dim)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to the same shape."""
        output: Tensor = self.output(self.dropout(F.gelu(self.inner(x))))
        return output
