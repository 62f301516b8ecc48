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
            follow(weight, student.get_parameter(name), decay)
        for name, buffer in self.network.named_buffers():
            buffer.copy_(student.get_buffer(name))


def follow(average: Tensor, weight: Tensor, decay: float) -> None:
    """Make a moving average ``decay`` times itself plus the rest of a weight."""
    average.lerp_(weight.to(average.dtype), 1 - decay)


class FrozenTeacher(Teacher):
    """A teacher that does not follow: it is read again when a run resumes, so no checkpoint holds it."""


def weights_beside(model: nn.Module, saved: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the weights that a training state has to hold beside a model's files, by full name."""
    frozen = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, FrozenTeacher))
    return {name: weight for name, weight in split_weights(model, saved)[1].items() if not name.startswith(frozen)}


def split_weights(model: nn.Module, saved: nn.Module | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a model that its files hold, and those that belong to its training alone, by full name.

    The latter are those of its teachers and, if ``saved`` is a part of it, of all that is outside of this part.
    """
    modules = dict(model.named_modules())
    teachers = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Teacher))
    inside = next(f"{name}." if name else "" for name, module in modules.items() if module is (saved or model))
    weights = model.state_dict()
    others = {
        name: weights.pop(name) for name in list(weights) if name.startswith(teachers) or not name.startswith(inside)
    }
    return weights, others
