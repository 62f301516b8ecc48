"""What stops a run that cannot go on."""

import torch
from torch import Tensor

from speechssl.data.batches import TaskBatch
from speechssl.data.manifest import Manifest
from speechssl.errors import TrainingError


class FiniteGuard:
    """Stops the run at a number that is not finite, one update late so that a GPU is never waited for."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.losses: list[tuple[int, tuple[int, ...], Tensor]] = []
        self.norms: list[tuple[int, Tensor]] = []

    def watch(self, step: int, batch: TaskBatch, loss: Tensor) -> None:
        """Remember a loss, to be looked at later."""
        self.losses.append((step, batch.audio.indices, loss.detach()))

    def watch_gradient(self, step: int, norm: Tensor) -> None:
        """A gradient can be infinite though its loss is not, or because of another rank's loss."""
        self.norms.append((step, norm))

    def check(self, before_step: int) -> None:
        """Look at the losses and gradients of the updates before this one."""
        for step, indices, loss in self.losses:
            if step < before_step and not torch.isfinite(loss):
                where = ", ".join(self.manifest.where(index) for index in indices)
                raise TrainingError(f"step {step + 1}: expected a finite loss, found {loss.item()} on {where}")
        for step, norm in self.norms:
            if step < before_step and not torch.isfinite(norm):
                raise TrainingError(f"step {step + 1}: expected a finite gradient, found one of norm {norm.item()}")
        self.losses = [entry for entry in self.losses if entry[0] >= before_step]
        self.norms = [entry for entry in self.norms if entry[0] >= before_step]
