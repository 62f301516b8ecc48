"""The learning rate as a function of the step, in runs that may get more updates than they were begun with."""

import math
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from speechssl.config import Config


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
        on_extend: What the rate does when a run that has begun gets more updates. "continue": no jump; what is left of
            the schedule is spread over the updates that are left, and at its end the rate stays as it is. "restart":
            the schedule begins again over the updates that are left, and the rate jumps.
    """

    kind: Literal["polynomial", "cosine", "tri_stage"] = "polynomial"
    warmup: float = Field(0.08, ge=0, le=1)
    hold: float = Field(0.0, ge=0, le=1)
    power: float = Field(1.0, gt=0)
    start_scale: float = Field(0.0, ge=0, le=1)
    end_scale: float = Field(0.05, gt=0, le=1)
    on_extend: Literal["continue", "restart"] = "continue"

    @model_validator(mode="after")
    def _fits_the_run(self) -> Self:
        if self.warmup + self.hold > 1:
            raise ValueError(f"warmup and hold must not exceed 1 together, found {self.warmup + self.hold}")
        if self.hold and self.kind != "tri_stage":
            raise ValueError("hold belongs to kind tri_stage")
        return self

    def scale(self, step: float, num_steps: int) -> float:
        """Return the factor on the learning rate of update ``step`` (from 0) of a schedule for ``num_steps``."""
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


class Course(Config):
    """How a run passes through its schedule; a run that gets more updates takes another course.

    Update ``first_step`` is at ``position`` of a schedule made for ``length`` updates, of which the rest is spread
    evenly over the updates up to ``num_steps``.
    """

    first_step: int = 0
    position: float = 0.0
    length: int
    num_steps: int
    roll_backs: tuple[int, ...] = ()  # the updates that the run went back to; after each its rate is half as high

    def position_of(self, step: int) -> float:
        """Return where in the schedule an update is: in a run that was never extended, exactly at its own number."""
        share_left = (self.length - self.position) * (self.num_steps - step) / (self.num_steps - self.first_step)
        return self.length - share_left

    def extended(self, step: int, num_steps: int, on_extend: Literal["continue", "restart"]) -> "Course":
        """Return the course of a run that gets more updates after ``step``."""
        if on_extend == "restart":
            changes = {"position": 0.0, "length": num_steps - step}
        else:
            changes = {"position": self.position_of(step)}
        return self.model_copy(update={"first_step": step, "num_steps": num_steps, **changes})


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of every update of a run."""

    peak: float
    schedule: ScheduleConfig
    course: Course

    def __call__(self, step: int) -> float:
        """Return the rate of update ``step``, from 0."""
        slower = 0.5 ** sum(step >= back for back in self.course.roll_backs)
        return slower * self.peak * self.schedule.scale(self.course.position_of(step), self.course.length)
