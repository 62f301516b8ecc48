"""Teachers: copies of networks that never train but follow by moving averages (Tarvainen and Valpola, 2017)."""

from typing import Any, Self

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A network without gradients and noise, of which an objective takes targets.

    Its weights are saved with the training state and not with the model.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay without noise."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *arguments: Any) -> Any:
        """Call the network."""
        return self.network(*arguments)

    @torch.no_grad()
    def follow(self, student: nn.Module, decay: float) -> None:
        """Move every weight towards the student's: ``decay`` times the old one plus the rest of the new one.

        0 copies the student. What does not train, such as the statistics in buffers, is copied.
        """
        for name, weight in self.network.named_parameters():
            weight.lerp_(student.get_parameter(name).to(weight.dtype), 1 - decay)
        for name, buffer in self.network.named_buffers():
            buffer.copy_(student.get_buffer(name))


class FrozenTeacher(Teacher):
    """A teacher that does not follow: it is read again when a run resumes, so no checkpoint holds it."""


def teachers_to_save(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the teachers of a model that follow, by full name."""
    frozen = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, FrozenTeacher))
    return {name: weight for name, weight in split_weights(model)[1].items() if not name.startswith(frozen)}


def split_weights(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a model without those of its teachers, and those of the teachers, by full name."""
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Teacher))
    weights = model.state_dict()
    teachers = {name: weights.pop(name) for name in list(weights) if prefixes and name.startswith(prefixes)}
    return weights, teachers
