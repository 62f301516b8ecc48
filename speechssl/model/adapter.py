"""A bottleneck after each layer of a transformer.

Shapes: B batch, S frames, D model dim.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """A bottleneck after a layer, which a language has for itself (Pratap et al., 2023, section 5.2)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, inner_dim)
        self.output = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to the same shape."""
        output: Tensor = self.output(F.relu(self.inner(self.norm(x))))
        return output
