"""What the log says of a run's speed: planted times and FLOPs."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from speechssl.train import guard
from speechssl.train.log import read_log
from speechssl.train.parallel import Ranks
from speechssl.train.pretrain import pretrain
from speechssl.train.throughput import Throughput


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class Twins(Ranks):
    """Two ranks, of which the other one waited three times as long."""

    def sum_named(self, values: Mapping[str, float]) -> dict[str, float]:
        return {name: value * (4 if name.startswith("waiting") else 2) for name, value in values.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def product(size: int) -> None:
    torch.ones(size, size) @ torch.ones(size, size)  # 2 size^3


def test_the_time_is_shared_out(clock: Clock) -> None:
    throughput = Throughput(Ranks(0, 1, torch.device("cpu")), torch.float32)
    for _ in range(2):
        with throughput.waiting("waiting_for_data"):
            clock.pass_by(1)
        with throughput.waiting("waiting_for_data", lambda: False):  # the device computes meanwhile
            clock.pass_by(2)
        with throughput.computing(12.0):
            clock.pass_by(5)
            product(100)
    found = throughput.means()
    assert found == pytest.approx(
        {"audio_seconds_per_second": 24 / 16, "waiting_for_data": 2 / 16, "gflop_per_second": 2 * 2e-3 / 16}
    )
    clock.pass_by(10)
    assert set(throughput.means().values()) == {0.0}


def test_flops_are_counted_once_for_what_learns(clock: Clock) -> None:
    throughput = Throughput(Ranks(0, 1, torch.device("cpu")), torch.float32)
    for size, gigaflop in ((100, 2e-3), (200, 2e-3)):  # the second is not looked at
        with throughput.computing(1.0):
            product(size)
        clock.pass_by(1)
        assert throughput.means()["gflop_per_second"] == pytest.approx(gigaflop)
    throughput.count_flops_again()
    with throughput.computing(1.0):
        product(200)
    clock.pass_by(1)
    assert throughput.means()["gflop_per_second"] == pytest.approx(16e-3)


def test_flops_of_what_is_compiled_are_not_counted(clock: Clock) -> None:
    """Nothing looks on: under a counter nothing would be compiled."""
    throughput = Throughput(Ranks(0, 1, torch.device("cpu")), torch.float32, counts_flops=False)
    with throughput.computing(1.0):
        assert not _get_current_dispatch_mode_stack()
    clock.pass_by(1)
    assert throughput.means() == {"audio_seconds_per_second": 1.0, "waiting_for_data": 0.0}


def test_several_gpus_are_measured_against_the_peak_of_all(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    throughput = Throughput(Twins(0, 2, torch.device("cuda")), torch.bfloat16)
    with throughput.computing(3.0):
        product(1000)
    with throughput.waiting("waiting_for_ranks"):
        clock.pass_by(1)
    clock.pass_by(3)
    found = throughput.means()
    assert found["audio_seconds_per_second"] == 2 * 3 / 4
    assert found["waiting_for_ranks"] == 4 * 1 / 4 / 2
    assert found["gflop_per_second"] == pytest.approx(2 * 2 / 4)
    assert found["mfu"] == pytest.approx(2 * 2e9 / 4 / (2 * 756e12))


def test_a_slow_reader_shows_unless_the_device_is_busy(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Never:
        def query(self) -> bool:
            return False

        def synchronize(self) -> None: ...

    config = corpus.pretrain_config("trainer.num_steps=4", "trainer.log_steps=2")
    pretrain(config, tmp_path / "idle")
    monkeypatch.setattr(guard, "_copy_to_host", lambda values: (values, Never()))
    pretrain(config, tmp_path / "busy")
    idle, busy = (read_log(tmp_path / run)[1] for run in ("idle", "busy"))
    assert 0 < idle["waiting_for_data"] < 1
    assert busy["waiting_for_data"] == 0
    assert busy["gflop_per_second"] > 0
