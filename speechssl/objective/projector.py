"""Multilayer perceptrons on frames, with batch norm over the frames that are no padding.

Shapes: G groups, N frames of a group, C channels.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ValidNorm(nn.Module):
    """Batch norm (Ioffe and Szegedy, 2015) without running statistics: in evaluation a batch has its own, too.

    Each group of frames has its own mean and variance. They are those of one process's batch: so several processes
    compute what one does, if they have the same batches.
    """

    def __init__(self, dim: int, *, affine: bool = True) -> None:
        super().__init__()
        self.affine = affine
        if affine:
            self.weight = nn.Parameter(torch.ones(dim))
            self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(G, N, C) to the same shape in float32; ``valid`` (G, N) is 1 (true) for frames and 0 for padding."""
        with torch.autocast(x.device.type, enabled=False):
            weights = (valid / valid.sum(dim=1, keepdim=True).clamp(min=1))[:, :, None]
            centered = x.float() - (x.float() * weights).sum(dim=1, keepdim=True)
            variance = (centered.square() * weights).sum(dim=1, keepdim=True)
            normalized = centered * torch.rsqrt(variance + 1e-5)
            return normalized * self.weight + self.bias if self.affine else normalized


class Perceptron(nn.Module):
    """Linear layers, with a norm and ReLU after each but the last, which can have a norm without scale and shift."""

    def __init__(self, dims: tuple[int, ...], *, norm_output: bool = False) -> None:
        super().__init__()
        *hidden, (in_dim, out_dim) = pairwise(dims)
        self.layers = nn.ModuleList(nn.Linear(*dims, bias=False) for dims in hidden)
        self.norms = nn.ModuleList(ValidNorm(dim) for _, dim in hidden)
        self.output = nn.Linear(in_dim, out_dim, bias=not norm_output)
        self.output_norm = ValidNorm(out_dim, affine=False) if norm_output else None

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(G, N, C) to (G, N, C'); ``valid`` (G, N) is 1 for frames and 0 for padding."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x), valid))
        x = self.output(x)
        return x if self.output_norm is None else self.output_norm(x, valid)
