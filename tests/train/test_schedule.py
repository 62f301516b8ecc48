"""The learning rate over the run, and AdamW."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.errors import ConfigError
from speechssl.train.finetune import FinetuneConfig
from speechssl.train.pretrain import PretrainConfig
from speechssl.train.schedule import Course, LearningRate, ScheduleConfig

Rates = npt.NDArray[np.float64]

TRI_STAGE = ScheduleConfig(kind="tri_stage", warmup=0.1, hold=0.4, start_scale=0.01, end_scale=0.05)


def polynomial_rates(peak: float, warmup: int, total: int) -> Rates:
    """The rate of every update under fairseq's polynomial_decay with its defaults: power 1, down to 0."""
    updates = np.arange(total)
    return peak * np.where(updates <= warmup, updates / warmup, (total - updates) / (total - warmup))


def cosine_rates(peak: float, warmup: int, total: int, first: float, last: float) -> Rates:
    """The same of its cosine, whose one period is what the warm-up leaves of the run."""
    updates = np.arange(total)
    turn = np.pi * (updates - warmup) / (total - warmup)
    return np.where(
        updates < warmup, first + updates * (peak - first) / warmup, last + (peak - last) / 2 * (1 + np.cos(turn))
    )


def tri_stage_rates(peak: float, shares: tuple[float, float, float], total: int) -> Rates:
    """The same of its tri_stage, from 0.01 to 0.05 of the peak, its stages given as a phase_ratio."""
    warmup, hold, decay = (int(total * share) for share in shares)
    updates = np.arange(total)
    rising = 0.01 + updates / max(warmup, 1) * (1 - 0.01)
    falling = np.exp(-(updates - warmup - hold) * -np.log(0.05) / decay)
    stages = [updates < warmup, updates < warmup + hold, updates <= warmup + hold + decay]
    return peak * np.select(stages, [rising, np.ones(total), falling], 0.05)


def rates(config: PretrainConfig | FinetuneConfig) -> Rates:
    num_steps, schedule = config.trainer.num_steps, config.schedule
    return config.optimizer.learning_rate * np.array([schedule.scale(step, num_steps) for step in range(num_steps)])


DATA = ["data.train=none", "data.dev=none", "data.license=none"]
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("wav2vec2_base", polynomial_rates(5e-4, 32_000, 400_000)),
        ("wav2vec2_large", polynomial_rates(3e-4, 32_000, 1_000_000)),
        ("wav2vec_base", cosine_rates(5e-3, 500, 400_000, 1e-7, 1e-6)),
        ("wav2vec_large", cosine_rates(5e-3, 500, 400_000, 1e-7, 1e-6)),
    ],
    ids=["wav2vec2_base", "wav2vec2_large", "wav2vec_base", "wav2vec_large"],
)
def test_every_update_of_pretraining_has_fairseqs_rate(model: str, expected: Rates) -> None:
    found = rates(PretrainConfig.load([RECIPES / "models" / f"{model}.toml"], DATA))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("name", "peak", "updates"),
    [("base_10min", 5e-5, 13_000), ("base_10h", 5e-5, 20_000), ("base_100h", 3e-5, 80_000)],
)
def test_every_update_of_fine_tuning_has_fairseqs_rate(name: str, peak: float, updates: int) -> None:
    found = rates(FinetuneConfig.load([RECIPES / "librispeech" / "finetune" / f"{name}.toml"], [*DATA, "init=none"]))
    np.testing.assert_allclose(found, tri_stage_rates(peak, (0.1, 0.4, 0.5), updates), rtol=1e-9, atol=0)


@given(
    kind=st.sampled_from(["polynomial", "cosine", "tri_stage"]),
    warmup=st.floats(0, 0.5),
    hold=st.floats(0, 0.5),
    start_scale=st.floats(0, 1),
    end_scale=st.floats(0.001, 1),
    power=st.floats(0.1, 3),
    num_steps=st.integers(1, 60),
)
def test_every_schedule_rises_holds_and_falls(kind: Any, hold: float, num_steps: int, **values: float) -> None:
    hold = hold if kind == "tri_stage" else 0.0
    schedule = ScheduleConfig(kind=kind, hold=hold, **values)
    scales = [schedule.scale(step, num_steps) for step in range(num_steps + 2)]
    peak = int(values["warmup"] * num_steps)
    held = peak + int(hold * num_steps)
    assert scales[0] == (values["start_scale"] if peak else 1)
    assert all(earlier <= later <= 1 for earlier, later in pairwise(scales[: peak + 1]))
    assert scales[peak : held + 1] == [1.0] * (held + 1 - peak)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(scales[held:]))
    last = {"polynomial": 0, "cosine": values["end_scale"], "tri_stage": values["end_scale"]}[kind]
    assert scales[num_steps:] == pytest.approx([last] * 2) or held == num_steps
    assert all(scale > 0 for scale in scales[1:num_steps])


def test_a_power_bends_the_polynomial() -> None:
    assert ScheduleConfig(warmup=0.08, power=2.0).scale(54, 100) == pytest.approx(0.25)


def test_shares_are_cut_to_whole_steps_and_the_decay_lasts_to_the_end() -> None:
    """Of 13 updates fairseq would warm up in 1, hold for 5, decay in 6 and stay at the final rate for one."""
    scales = [TRI_STAGE.scale(step, 13) for step in range(14)]
    assert scales[:8] == pytest.approx([0.01, *[1.0] * 6, 0.05 ** (1 / 7)])
    assert scales[13] == pytest.approx(0.05)


def test_fine_tuning_uses_the_tri_stage_schedule_by_default() -> None:
    assert FinetuneConfig.model_fields["schedule"].default == TRI_STAGE


def test_without_warm_up_the_first_update_has_the_full_rate() -> None:
    assert ScheduleConfig(warmup=0.0).scale(0, 10) == 1
    assert ScheduleConfig(warmup=0.01).scale(0, 10) == 1
    assert ScheduleConfig(kind="tri_stage", warmup=0.0, hold=1.0).scale(9, 10) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "tri_stage", "warmup": 0.7, "hold": 0.6}, "warmup and hold must not exceed 1"),
        ({"hold": 0.1}, "hold belongs to kind tri_stage"),
        ({"kind": "cosine", "hold": 0.1}, "hold belongs to kind tri_stage"),
        ({"warmup": 1.5}, "warmup"),
        ({"end_scale": 0.0}, "end_scale"),
        ({"kind": "linear"}, "kind"),
    ],
)
def test_impossible_schedules_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScheduleConfig.from_dict(values, "test")


def rates_of(course: Course, schedule: ScheduleConfig = TRI_STAGE) -> list[float]:
    return [LearningRate(2.0, schedule, course)(step) for step in range(course.num_steps)]


@given(num_steps=st.integers(1, 1_000_000), share=st.floats(0, 1, exclude_max=True))
def test_a_run_that_was_never_extended_is_at_its_own_step(num_steps: int, share: float) -> None:
    step = int(share * num_steps)
    assert Course(length=num_steps, num_steps=num_steps).position_of(step) == step


def test_the_rest_of_a_schedule_is_spread_over_the_updates_that_are_left() -> None:
    planned = Course(length=100, num_steps=100)
    before, after = rates_of(planned), rates_of(planned.extended(60, 180, "continue"))
    # From 60 on three updates go as far as one did.
    assert after[60::3] == pytest.approx(before[60:], rel=1e-12)
    assert after[60] == before[60]
    # Extended again, and again without a jump.
    again = planned.extended(60, 180, "continue").extended(120, 240, "continue")
    assert rates_of(again)[120::6] == pytest.approx(before[80:], rel=1e-12)


@pytest.mark.parametrize("kind", ["tri_stage", "cosine"])
@pytest.mark.parametrize("step", [100, 180])
def test_a_finished_schedule_stays_at_its_end(kind: Any, step: int) -> None:
    course = Course(length=100, num_steps=100).extended(60, 180, "continue") if step == 180 else None
    course = course or Course(length=100, num_steps=100)
    schedule = ScheduleConfig(kind=kind, end_scale=0.05)
    assert rates_of(course.extended(step, 300, "continue"), schedule)[step:] == [0.1] * (300 - step)


def test_a_restarted_schedule_begins_again_over_the_updates_that_are_left() -> None:
    restarted = Course(length=100, num_steps=100).extended(80, 120, "restart")
    assert rates_of(restarted)[80:] == rates_of(Course(length=40, num_steps=40))
