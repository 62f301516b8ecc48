"""tools/scale.py, with numbers that were planted."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from programs import TOOLS, load_tool
from torch import nn

from speechssl.errors import ConfigError
from speechssl.train.pretrain import PretrainConfig

TINY = """
[encoder.feature_encoder]
dims = [16, 24, 32]
kernels = [20, 8, 4]
strides = [10, 8, 4]

[encoder.context]
num_layers = 3
model_dim = 32
num_heads = 2
ffn_dim = 64
position_kernel = 8
position_groups = 2
layer_drop = 0.0
"""


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return load_tool("scale")


@pytest.fixture
def load(tmp_path: Path, scale: ModuleType) -> Callable[..., PretrainConfig]:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return lambda *overrides: PretrainConfig.load([file], [*scale.NO_DATA, *overrides])


def test_memory_of_replicas_and_shards(scale: ModuleType) -> None:
    layers = nn.ModuleList(
        [nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False), nn.Linear(10, 30, bias=False)]
    )
    model = nn.Module()
    model.encoder = nn.Module()
    model.encoder.context = nn.Module()
    model.encoder.context.layers = layers
    model.head = nn.Linear(10, 50, bias=False)

    def found(gpus: int, is_sharded: bool) -> tuple[float, float, float]:
        memory = scale.memory(model, 77, gpus, is_sharded=is_sharded)
        return memory.state, memory.exchange, memory.kept

    assert found(1, False) == (16_000, 0, 77)
    assert found(8, False) == (16_000, 4_000, 77)
    # The head and twice the largest layer are together: 500 + 2 x 300 weights and as many gradients.
    assert found(8, True) == (2_000, 8_800, 77)
    assert found(64, True) == (250, 8_800, 77)
    # Of two microbatches each all gradients are.
    assert scale.memory(model, 77, 8, is_sharded=True, microbatches=16).exchange == 4_400 + 4_000


def test_what_the_backward_pass_needs_is_counted_once(scale: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU(), nn.Linear(20, 30, bias=False))
    inputs = torch.zeros(5, 10)
    # In bfloat16: the input, the output of ReLU, which it and the next layer share, and the last layer's weights.
    assert scale.kept_bytes(model, lambda: model(inputs).sum()) == 2 * (5 * 10 + 5 * 20 + 20 * 30)


def test_layers_and_rows_add_the_same_each(scale: ModuleType, load: Callable[..., PretrainConfig]) -> None:
    of_rows = [scale.count_kept(load, rows, 2.0) for rows in (1, 2, 3)]
    # As many frames but for how many are hidden, which is drawn.
    assert of_rows[2] - of_rows[1] == pytest.approx(of_rows[1] - of_rows[0], rel=0.1)
    assert of_rows[0] == scale._count_kept(load(), 1, 2.0)


def test_time_interruptions_and_cost(scale: ModuleType, load: Callable[..., PretrainConfig]) -> None:
    config = load("trainer.num_steps=1000", "trainer.microbatches=64", "batches.seconds=90")
    speed = ["--peak-tflops=1", "--utilization=0.5", "--scaling=0.5"]
    failures = ["--hours-between-failures=800", "--checkpoint-minutes=60", "--restart-minutes=30"]
    options = scale.parse(["none", *speed, *failures, "--gpu-hour-cost=3"])
    eight, many = (scale.training(1e9, options, config, gpus) for gpus in (8, 64))
    assert (eight.audio_per_second, many.audio_per_second) == (4000, 16_000)
    # 1,600 hours of audio take 0.4 hours; one failure in 100 hours, which costs half an interval and a start: 1 %.
    assert eight.hours == pytest.approx(0.4 / 0.99)
    assert eight.lost_hours == pytest.approx(0.01 * eight.hours)
    assert eight.interruptions == pytest.approx(eight.hours / 100)
    assert eight.cost == pytest.approx(24 * eight.hours)
    assert many.lost_hours == pytest.approx(0.08 * many.hours)
    with pytest.raises(ConfigError, match=r"^1024 GPUs: expected to advance between failures, found 1 hours lost"):
        scale.training(1e9, options, config, 1024)


def test_the_command_prints_three_tables(
    scale: ModuleType,
    load: Callable[..., PretrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(tmp_path / "tiny.toml"), "--hours", "1000", "--gpus", "8", "64", "--shard-mib", "1000"]
    monkeypatch.setattr(sys, "argv", ["scale.py", *arguments, "--batch-seconds", "30", "--core-speed", "100"])
    scale.main()
    data, memory, training = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in capsys.readouterr().out.split("\n\n")
    )
    assert data[2] == ["wav", "256", "0.1", "110"]  # 1,000 x 3,600 x 32,000 bytes
    assert [row[:2] for row in memory[2:]] == [
        [gpus, model] for gpus in ("8", "64") for model in ("replicated (ddp)", "sharded (fsdp)")
    ]
    assert memory[0][4] == "kept of 1 x 15.625 s"
    update = load().trainer.microbatches * load().batches.seconds
    assert [row[1] for row in training[2:]] == [f"{update / gpus:.1f}" for gpus in (8, 64)]
    for row in training[2:]:
        assert int(row[3]) == pytest.approx(float(row[2].replace(",", "")) / 100, abs=1)
