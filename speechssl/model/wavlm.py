"""The context network of WavLM: a transformer whose attention is biased by gated relative positions.

Shapes: B batch, S frames, D model dim, H heads.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from speechssl.model.attention import SelfAttention
from speechssl.model.transformer import TransformerContext, TransformerSizes

_GATES = 2  # of each frame and head; each is the sum of as many outputs as are left of eight
_GATE_OUTPUTS = 8


class WavLMConfig(TransformerSizes):
    """The transformer of WavLM; the defaults are the base model's.

    Attributes:
        num_buckets: Of distances between frames, half of them for frames that come later.
        max_distance: From here on all distances are in one bucket.
    """

    kind: Literal["wavlm"] = "wavlm"
    num_buckets: int = Field(320, ge=4, multiple_of=4)
    max_distance: int = Field(800, ge=1)

    def make_attention(self) -> "GatedSelfAttention":
        """The attention of one layer."""
        return GatedSelfAttention(self.model_dim, self.num_heads, self.attention_dropout)

    def build(self, frame_dim: int) -> "WavLMContext":
        """The network for frames of C channels."""
        return WavLMContext(self, frame_dim)


class WavLMContext(TransformerContext):
    """A transformer with a learned bias for each distance between frames (Chen et al., 2022, section III-B)."""

    def __init__(self, config: WavLMConfig, frame_dim: int) -> None:
        super().__init__(config, frame_dim)
        self.max_distance = config.max_distance
        self.distance_bias = nn.Embedding(config.num_buckets, config.num_heads)
        nn.init.xavier_normal_(self.distance_bias.weight)

    def attention_bias(self, x: Tensor, valid: Tensor | None) -> Any:
        """(H, S, S) biases of (query, key), and ``valid``; one for all layers, which weigh them by their gates."""
        num_frames = x.shape[1]
        distances = torch.arange(1 - num_frames, num_frames, device=x.device)
        buckets = bucket_distances(distances, self.distance_bias.num_embeddings, self.max_distance)
        by_distance = self.distance_bias(buckets).T  # (H, 2 S - 1)
        if torch.onnx.is_in_onnx_export():  # where the width of a window is a constant
            frames = torch.arange(num_frames)
            return by_distance[:, frames[None, :] - frames[:, None] + num_frames - 1], valid
        return by_distance.unfold(1, num_frames, 1).flip(1), valid


class GatedSelfAttention(SelfAttention):
    """Attention whose bias is scaled by gates, a function of the frame that attends."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(dim, num_heads, dropout)
        self.gate = nn.Linear(dim // num_heads, _GATE_OUTPUTS)
        self.gate_scale = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def score_bias(self, x: Tensor, attention_bias: Any) -> Tensor:
        """(B, H, S, S)."""
        biases, valid = attention_bias
        heads = x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # (B, H, S, D/H)
        gates = self.gate(heads).unflatten(3, (_GATES, -1)).sum(dim=4).sigmoid()
        update, reset = gates.split(1, dim=3)  # (B, H, S, 1)
        scores: Tensor = (update * (reset * self.gate_scale - 1) + 2) * biases
        return scores if valid is None else scores.masked_fill(~valid[:, None, None, :], -math.inf)


def bucket_distances(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of each distance, key minus query: near ones alone, far ones on a logarithmic scale.

    Args:
        distances: int64, of any shape.
        num_buckets: The second half is for positive distances.
        max_distance: From here on there is one bucket.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distances.abs()
    far = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + far).to(torch.int64).clamp(max=half - 1)
    return half * (distances > 0) + torch.where(size < exact, size, far)
