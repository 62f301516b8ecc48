"""Self-attention: to all frames, or to those so far.

Shapes: B batch, S frames, D model dim, H heads.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.model.past import Past


class SelfAttention(nn.Module):
    """Scaled dot-product attention with several heads (Vaswani et al., 2017), to all frames or to those so far.

    Args:
        dim: D.
        num_heads: H.
        dropout: On the attention weights.
        is_causal: Whether a frame attends to itself and those before it alone.
        span_frames: How many these are at most, if ``is_causal``; None is all.
    """

    def __init__(
        self, dim: int, num_heads: int, dropout: float, *, is_causal: bool = False, span_frames: int | None = None
    ) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.span_frames = span_frames
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attention_bias: Any, past: Past | None = None) -> Tensor:
        """Attend from each frame: (B, S, D) to the same shape.

        Args:
            x: (B, S, D).
            attention_bias: As for `score_bias`.
            past: The frames before these, whose keys and values it holds, if ``is_causal``.
        """
        query, key, value = (
            projection(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, H, S, D/H)
            for projection in (self.query, self.key, self.value)
        )
        if past is not None:
            num_kept = None if self.span_frames is None else self.span_frames - 1
            key, value = past.extend(self.key, key, num_kept), past.extend(self.value, value, num_kept)
        dropout = self.dropout if self.training else 0.0
        # Who sees nothing later does not see padding either, which comes last.
        bias = self._so_far(query, key) if self.is_causal else self.score_bias(x, attention_bias)
        is_causal = self.is_causal and bias is None
        attended = F.scaled_dot_product_attention(query, key, value, bias, dropout, is_causal)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output

    def score_bias(self, x: Tensor, attention_bias: Any) -> Tensor | None:
        """What the network's `attention_bias` means for these frames.

        Returns:
            (B or 1, H or 1, S or 1, S): floats are added to the scaled scores of (query, key) before the softmax; bools
            say to which frames may be attended.
        """
        bias: Tensor | None = attention_bias
        return bias

    def _so_far(self, query: Tensor, key: Tensor) -> Tensor | None:
        """(S, S'') bool, the last S of S'' frames to those that they may attend to; None if PyTorch knows it."""
        num_before = key.shape[2] - query.shape[2]
        if num_before == 0 and self.span_frames is None:
            return None
        allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(num_before)
        return allowed if self.span_frames is None else allowed.triu(num_before - self.span_frames + 1)
