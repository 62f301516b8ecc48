"""The predictors of DirectPred and DirectCopy: linear, and set from the correlation of their inputs, never trained.

Tian, Chen and Ganguli, 2021, https://arxiv.org/abs/2102.06810; the formulas are those of its published code.

Shapes: G groups, N frames of a group, E width of the projections.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.objective.objective import AllReduce

_FLOOR = 1e-4  # of the predictor's eigenvalues


class DirectPredictor(nn.Module):
    """A symmetric matrix that follows the moving correlation F of its inputs, which are not centered.

    With "direct", for F = U diag(s) U', it is U diag(sqrt(s / max s) + epsilon) U'; with "copy" it is F + epsilon I.
    Before the first update it is the identity. Matrix and correlation are buffers: no optimizer sees them.
    """

    weight: Tensor
    correlation: Tensor

    def __init__(self, dim: int, rule: Literal["direct", "copy"], decay: float, epsilon: float) -> None:
        super().__init__()
        self.rule = rule
        self.decay = decay
        self.epsilon = epsilon
        self.register_buffer("weight", torch.eye(dim))
        self.register_buffer("correlation", torch.zeros(dim, dim))
        self._gathered: Tensor | None = None  # (E + 1, E): products of the inputs of an update; below, their number

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(G, N, E) to the same shape in float32; ``valid`` (G, N) is 1 for frames and 0 for padding."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.training:
                self._gather(x.detach() * valid[:, :, None], valid)
            return x @ self.weight  # which is symmetric

    def _gather(self, x: Tensor, valid: Tensor) -> None:
        flat = x.flatten(0, 1)
        sums = torch.cat((flat.T @ flat, valid.sum().expand(1, flat.shape[1])))
        self._gathered = sums if self._gathered is None else self._gathered + sums

    @torch.no_grad()
    def follow(self, step: int, all_reduce: AllReduce) -> None:
        """Set the matrix after the ``step``-th update, from what all processes gathered for it.

        The first update sets the correlation, where later ones move it. On a GPU the eigenvectors of "direct" make the
        host wait.
        """
        sums = self._gathered
        assert sums is not None
        self._gathered = None
        all_reduce(sums)
        with torch.autocast(sums.device.type, enabled=False):
            found = sums[:-1] / sums[-1:].clamp(min=1)
            self.correlation.lerp_((found + found.T) / 2, 1.0 if step == 1 else 1 - self.decay)
            if self.rule == "copy":
                self.weight.copy_(self.correlation + self.epsilon * torch.eye(len(found), device=found.device))
                return
            values, vectors = torch.linalg.eigh(self.correlation)
            values = values.clamp(min=0)
            scales = (values / values[-1:].clamp(min=torch.finfo(values.dtype).tiny)).sqrt() + self.epsilon
            self.weight.copy_((vectors * scales.clamp(min=_FLOOR)) @ vectors.T)
