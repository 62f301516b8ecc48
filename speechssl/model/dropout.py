"""Dropout whose masks are cheap to draw on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014); on a CPU the probability is rounded to 1/65536.

    PyTorch draws one 64-bit number for an element, which takes a fifth of a small model's training step on a CPU.
    Here one such number decides over four elements.

    Args:
        probability: Share of the elements set to zero in training.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of ``x`` at random and scale the others up; the identity in evaluation."""
        if not self.training or self.probability == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        dropped = round(self.probability * _LEVELS)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = draws[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
        return x * keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"probability={self.probability}"
