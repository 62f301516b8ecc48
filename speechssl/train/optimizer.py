"""AdamW and the learning rate as a function of the step."""

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
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


class ScheduleConfig(Config):
    """The learning rate over the run, in shares of its steps.

    The rate of every update is that of fairseq's scheduler of the same name, with two differences: a tri-stage decay
    lasts to the end of the run, where fairseq rounds its length down to whole steps as it does the other stages'; and a
    cosine warms up from ``start_scale``, where fairseq warms up from the end rate unless it is told otherwise.

    Attributes:
        kind: "polynomial" decays to 0 from the end of the warm-up on, "cosine" along half a period of the cosine;
            "tri_stage" holds, then decays exponentially.
        warmup: Share of the steps in which the rate rises linearly, rounded down to whole steps.
        hold: Share in which it stays at its highest (tri_stage), rounded down likewise.
        power: Of the polynomial.
        start_scale: The rate of the first update of a warm-up, as a share of the highest rate.
        end_scale: Where the decay ends (tri_stage, cosine), as a share of the highest rate.
    """

    kind: Literal["polynomial", "cosine", "tri_stage"] = "polynomial"
    warmup: float = Field(0.08, ge=0, le=1)
    hold: float = Field(0.0, ge=0, le=1)
    power: float = Field(1.0, gt=0)
    start_scale: float = Field(0.0, ge=0, le=1)
    end_scale: float = Field(0.05, gt=0, le=1)

    @model_validator(mode="after")
    def _fits_the_run(self) -> Self:
        if self.warmup + self.hold > 1:
            raise ValueError(f"warmup and hold must not exceed 1 together, found {self.warmup + self.hold}")
        if self.hold and self.kind != "tri_stage":
            raise ValueError("hold belongs to kind tri_stage")
        return self

    def scale(self, step: int, num_steps: int) -> float:
        """Return the factor on the learning rate of update ``step`` (from 0) of ``num_steps``."""
        warmup_steps = int(self.warmup * num_steps)
        if step < warmup_steps:
            return self.start_scale + (1 - self.start_scale) * step / warmup_steps
        hold_end = warmup_steps + int(self.hold * num_steps)
        if step <= hold_end:
            return 1.0
        decayed = min((step - hold_end) / max(num_steps - hold_end, 1), 1.0)
        if self.kind == "tri_stage":
            return float(self.end_scale**decayed)
        if self.kind == "cosine":
            return self.end_scale + (1 - self.end_scale) * (1 + math.cos(math.pi * decayed)) / 2
        return float((1 - decayed) ** self.power)


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
