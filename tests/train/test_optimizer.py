"""The learning rate over the run, and AdamW."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speechssl.errors import ConfigError
from speechssl.train.finetune import FinetuneConfig
from speechssl.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer

TRI_STAGE = ScheduleConfig(kind="tri_stage", warmup=0.1, hold=0.4, start_scale=0.01, end_scale=0.05)


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
    scales = [schedule.scale(step, num_steps) for step in range(num_steps)]
    assert all(0 < scale <= 1 + 1e-12 for scale in scales)
    rising = [step for step in range(num_steps) if step < values["warmup"] * num_steps]
    assert all(scales[step] >= scales[step - 1] - 1e-12 for step in rising[1:])
    falling = range(len(rising) + 1, num_steps)
    assert all(scales[step] <= scales[step - 1] + 1e-12 for step in falling)
    if rising:
        assert scales[rising[-1]] == pytest.approx(1, abs=1 / len(rising))
        assert scales[0] >= values["start_scale"]


def test_polynomial_warms_up_over_its_share_and_falls_to_0() -> None:
    schedule = ScheduleConfig(warmup=0.08)
    scales = [schedule.scale(step, 100) for step in range(101)]
    assert scales[:9] == pytest.approx([(step + 1) / 8 for step in range(8)] + [1.0])
    # As fairseq's polynomial_decay: (1 - steps since the warm-up / steps after it).
    assert scales[8:] == pytest.approx([1 - (step - 8) / 92 for step in range(8, 101)])
    assert scales[100] == 0
    squared = ScheduleConfig(warmup=0.08, power=2.0)
    assert squared.scale(54, 100) == pytest.approx(0.25)


def test_cosine_warms_up_over_its_share_and_falls_to_its_end() -> None:
    schedule = ScheduleConfig(kind="cosine", warmup=0.2, start_scale=0.1, end_scale=0.02)
    scales = [schedule.scale(step, 100) for step in range(101)]
    assert scales[:20] == pytest.approx([0.1 + 0.9 * (step + 1) / 20 for step in range(20)])
    assert scales[20] == 1
    assert scales[40] == pytest.approx(0.02 + 0.98 * (1 + 0.5**0.5) / 2)  # an eighth of the period
    assert scales[60] == pytest.approx(0.51)
    assert scales[100] == pytest.approx(0.02)
    downhill = [earlier - later for earlier, later in pairwise(scales[20:])]
    assert downhill == pytest.approx(downhill[::-1])


def test_tri_stage_has_fairseqs_shares_and_ends() -> None:
    scales = [TRI_STAGE.scale(step, 1000) for step in range(1001)]
    assert scales[0] == pytest.approx(0.01 + 0.99 / 100)  # fairseq is one update later: it starts at 0.01
    assert scales[49] == pytest.approx(0.01 + 0.99 / 2)
    assert scales[98] < 1
    assert scales[99:501] == [1.0] * 402
    assert scales[501] < 1
    assert scales[750] == pytest.approx(0.05**0.5)  # exponential: half way down is the geometric mean
    assert scales[1000] == pytest.approx(0.05)
    ratios = [later / earlier for earlier, later in pairwise(scales[500:])]
    assert ratios == pytest.approx([0.05 ** (1 / 500)] * 500)


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


def test_adamw_is_as_configured_and_decays_every_parameter() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    config = OptimizerConfig(learning_rate=0.5, betas=(0.8, 0.9), epsilon=1e-3, weight_decay=0.2)
    optimizer = make_optimizer(config, model.parameters())
    defaults = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    assert defaults == {"lr": 0.5, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2}
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        assert torch.allclose(parameter, torch.tensor(1 - 0.5 * 0.2))
