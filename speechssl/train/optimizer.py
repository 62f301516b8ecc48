"""AdamW and its settings."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from speechssl.config import Config

_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter, 2019) with decay on every parameter, norms and biases included, as fairseq does."""

    learning_rate: float = Field(5e-4, gt=0)  # its highest value
    betas: tuple[_Decay, _Decay] = (0.9, 0.98)
    epsilon: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.01, ge=0)  # decoupled, times the learning rate
    max_gradient_norm: float | None = Field(None, gt=0)  # gradients are scaled down to it; None leaves them


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """Make AdamW over the parameters; the trainer sets the learning rate before each update."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )
