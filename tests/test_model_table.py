import sys
from pathlib import Path
from types import ModuleType

import pytest
from programs import load_tool

from speechssl.errors import ConfigError
from speechssl.train.pretrain import PretrainConfig

PROGRAM = Path(__file__).parents[1] / "tools" / "model_table.py"
LARGE = """
[encoder.feature_encoder]
norm = "layer"
bias = true

[encoder.context]
num_layers = 24
model_dim = 1024
num_heads = 16
ffn_dim = 4096
norm_first = true

[objective]
comparison_dim = 768

[objective.quantizer]
code_dim = 768
"""


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_tool("model_table")


def load(folder: Path, text: str) -> PretrainConfig:
    file = folder / "config.toml"
    file.write_text(text)
    return PretrainConfig.load([file], ["data.train=none", "data.dev=none", "data.license=none"])


def flops(parts: list, *names: str) -> float:
    """GFLOP a second of the parts whose names contain any of these, in 15 seconds."""
    return sum(part.flops for part in parts if any(name in part.name for name in names)) / 15e9


@pytest.mark.parametrize(
    ("text", "encoder", "whole", "transformer", "position", "total"),
    [
        pytest.param("", 94_371_712, 95_044_608, 8.49, 0.47, 15.3, id="base"),
        pytest.param(LARGE, 315_438_720, 317_390_592, 30.20, 0.84, 39.8, id="large"),
    ],
)
def test_totals_are_those_of_the_published_models(
    program: ModuleType,
    tmp_path: Path,
    text: str,
    encoder: int,
    whole: int,
    transformer: float,
    position: float,
    total: float,
) -> None:
    parts = program.model_parts(load(tmp_path, text), 15.0)
    assert sum(part.num_parameters for part in parts) == whole
    assert sum(part.num_parameters for part in parts if part.name.startswith("encoder.")) == encoder
    assert flops(parts, "feature_encoder") == pytest.approx(4.91, rel=0.01)
    linear = [f"attention.{name}" for name in ("query", "key", "value", "output")]
    assert flops(parts, *linear, "feed_forward.") == pytest.approx(transformer, rel=0.01)
    assert flops(parts, "position") == pytest.approx(position, rel=0.01)
    assert flops(parts, "") == pytest.approx(total, rel=0.01)
    shapes = {part.name: part.shape for part in parts}
    assert shapes["encoder.feature_encoder.layers.6"] == (1, 512, 749)
    assert shapes["encoder.context.layers.*.feed_forward.output"][1] == 749
    assert len(shapes) == len(parts)


def test_attention_alone_grows_with_the_length(program: ModuleType, tmp_path: Path) -> None:
    short, long = (program.model_parts(load(tmp_path, ""), seconds) for seconds in (10.0, 20.0))
    products = "encoder.context.layers.*.attention: products"
    for before, after in zip(short, long, strict=True):
        assert before.name == after.name
        if before.flops and before.name.startswith("encoder."):
            ratio = after.flops / before.flops
            assert ratio == pytest.approx(4 if before.name == products else 2, rel=0.01)
    # 4 FLOPs a pair of frames, channel and layer.
    assert {part.name: part.flops for part in short}[products] == 4 * 12 * 499**2 * 768


def test_command_prints_a_row_a_part_and_the_totals(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.toml"
    file.write_text("[encoder.context]\nnum_layers = 2\n")
    monkeypatch.setattr(sys, "argv", ["model_table.py", str(file), "--seconds", "2"])
    program.main()
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[2].strip() == "output for 2 s"
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in (line.split("|") for line in lines)}
    assert rows["encoder.context.position"][:2] == ["1 x 99 x 768", "4,719,488"]
    assert rows["encoder.feature_encoder.layers.1"][2] == f"{2 * 3 * 512**2 * 3199 / 2e9:.3f}"
    assert rows["**encoder and objective**"][3] == "100.0 %"
    assert rows["head for CTC with 32 symbols"][:2] == ["1 x 99 x 32", "24,608"]


@pytest.mark.parametrize("seconds", [0.0449, -1.0, float("nan"), float("inf")])
def test_an_impossible_length_is_refused(program: ModuleType, tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"--seconds: expected at least 0\.045"):
        program.model_parts(load(tmp_path, ""), seconds)


def test_the_shortest_recording_is_possible(program: ModuleType, tmp_path: Path) -> None:
    parts = {part.name: part for part in program.model_parts(load(tmp_path, ""), 0.045)}
    assert parts["objective.quantizer.projection"].shape == (1, 640)
