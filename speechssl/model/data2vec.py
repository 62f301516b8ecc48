"""The context network of data2vec: a transformer with a stack of convolutions for the position.

Shapes: B batch, S frames, D model dim.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.model.transformer import TransformerContext, TransformerSizes


class Data2VecConfig(TransformerSizes):
    """The transformer of data2vec; the defaults are the base model's.

    Attributes:
        position_layers: Convolutions, one after another, of ``position_kernel`` frames each.
    """

    kind: Literal["data2vec"] = "data2vec"
    position_kernel: int = Field(19, ge=1)
    position_layers: int = Field(5, ge=1, le=1_000)

    def make_position(self) -> "PositionalStack":
        """The stack of convolutions."""
        return PositionalStack(self.model_dim, self.position_kernel, self.position_groups, self.position_layers)

    def build(self, frame_dim: int) -> TransformerContext:
        """The network for frames of C channels."""
        return TransformerContext(self, frame_dim)


class PositionalStack(nn.Module):
    """Convolutions over neighboring frames, each normalized over its channels (Baevski et al., 2022, section 4.2)."""

    def __init__(self, dim: int, kernel: int, groups: int, num_layers: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(num_layers)
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize as PyTorch does."""
        for conv in self.layers:
            assert isinstance(conv, nn.Conv1d)
            conv.reset_parameters()

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, S, D) to the same shape; between the layers padding is zero, as what lies outside a recording is."""
        for conv in self.layers:
            y = conv(x.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2)
            x = F.gelu(F.layer_norm(y, (self.dim,)))
            if valid is not None:
                x = x * valid[:, :, None]
        return x
