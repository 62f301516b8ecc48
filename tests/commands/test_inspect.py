"""``speechssl inspect``: what it says of a model, and how it ends."""

from pathlib import Path

import hf_models
import pytest
import safetensors.torch
from typer.testing import CliRunner, Result

from speechssl.__main__ import app


def inspect(folder: Path) -> Result:
    return CliRunner().invoke(app, ["inspect", str(folder)])


def lines(result: Result) -> dict[str, str]:
    return {name: value.strip() for name, value in (line.split(":", 1) for line in result.stdout.splitlines())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return hf_models.save(hf_models.build("wavlm-large"), tmp_path, do_lower_case=True)


def test_everything_that_decides_is_said(folder: Path) -> None:
    result = inspect(folder)
    assert result.exit_code == 0, result.stderr
    said = lines(result)
    theirs = safetensors.torch.load_file(folder / "model.safetensors")
    assert said["parameters"] == f"{sum(tensor.numel() for tensor in theirs.values()):,}"
    assert said["family"] == "transformers wavlm, an encoder with a CTC head"
    assert said["frames"] == "3 convolutions with bias, 24 channels, layer norm; a frame every 20 samples sees 35"
    assert said["context"] == "wavlm, 3 layers of 32, 4 heads, feed-forward 48, norms before each part"
    assert "zero mean and unit variance (epsilon 1e-07)" in said["input"]
    assert said["trained"].endswith("license apache-2.0")
    assert said["vocabulary"].startswith(
        "letters, 32 symbols, blank '<pad>' (number 0), between words '|', special <s>, </s>, <unk>, "
        "written in lower case: E T "
    )
    assert "missing" not in said


def test_our_own_models_too(model_folder: Path) -> None:
    result = inspect(model_folder)
    assert result.exit_code == 0, result.stderr
    assert lines(result)["family"] == "speechssl, an encoder with a CTC head"


def test_what_is_missing_is_said_and_a_weight_is_an_error(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "processor_config.json").unlink()
    (folder / "vocab.json").unlink()
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    name = "wavlm.encoder.layers.0.attention.rel_attn_embed.weight"
    safetensors.torch.save_file({key: x for key, x in weights.items() if key != name}, folder / "model.safetensors")
    result = inspect(folder)
    missing = [line for line in result.stdout.splitlines() if line.startswith("missing:")]
    assert len(missing) == 3
    for line, part in zip(missing, ("neither processor_config.json", "no vocab.json", "no license"), strict=True):
        assert part in line
    assert result.exit_code == 1
    assert result.stderr.endswith(f"{name}: expected (12, 4), found none\n")
    assert result.stderr.count("\n") == 1
