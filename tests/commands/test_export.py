"""`speechssl export`, from a model folder to a folder for others and to the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from planted import model_folder  # noqa: F401
from typer.testing import CliRunner

from speechssl.__main__ import app


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, result.stderr


def test_writes_a_folder_once(model_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "to" / "model"
    code, said = run(model_folder, "-o", out, "--format", "huggingface")
    assert code == 0, said
    assert {"config.json", "model.safetensors", "README.md", "vocab.json"} <= {path.name for path in out.iterdir()}
    assert json.loads((out / "config.json").read_text("utf-8"))["architectures"] == ["Wav2Vec2ForCTC"]
    before = {path: path.read_bytes() for path in out.iterdir()}
    code, said = run(model_folder, "-o", out, "--format", "torchaudio")
    assert (code, said) == (1, f"error: {out}: expected a new or an empty folder, found something in it\n")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    code, said = run(model_folder, "-o", out / "config.json", "--format", "torchaudio")
    assert code == 1
    assert "expected a new or an empty folder" in said


def test_what_fails_leaves_nothing(model_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    code, said = run(model_folder, "-o", out, "--format", "huggingface", "--scores", tmp_path / "none.json")
    assert (code, said) == (1, f"error: {tmp_path / 'none.json'}: No such file or directory\n")
    assert list(tmp_path.iterdir()) == []
    code, said = run(tmp_path / "nothing", "-o", out, "--format", "huggingface")
    assert (code, said) == (1, f"error: {tmp_path / 'nothing'}: no such model folder\n")


@pytest.mark.parametrize("option", [("--for", "sherpa-onnx"), ("--int8",)])
def test_options_of_another_format(option: tuple[str, ...], model_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    code, said = run(model_folder, "-o", tmp_path / "out", "--format", "huggingface", *option)
    assert code == 2
    assert f"Invalid value for {option[0]}: expected --format onnx beside it" in said


def push(model: Path, out: Path, endpoint: str, token: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HOME": str(out.parent / "home"),
        "HF_HUB_DISABLE_XET": "1",  # a protocol of its own, which the server has not
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-m", "speechssl", "export", model, "-o", out, "--format", "huggingface"]
    return subprocess.run([*command, "--push", "me/model"], env=environment, capture_output=True, text=True)


def test_uploads(model_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """By the real client: files of both kinds arrive as they are, twice; who may not gets one line."""
    pytest.importorskip("huggingface_hub")
    from upload_server import running_hub

    with running_hub("secret") as hub:
        for out in (tmp_path / "first", tmp_path / "second"):
            result = push(model_folder, out, hub.endpoint, "secret")
            assert result.returncode == 0, result.stderr
            assert result.stderr.endswith(f"uploaded to {hub.endpoint}/me/model\n")
            assert hub.files["me/model"] == {path.name: path.read_bytes() for path in out.iterdir()}
            assert hub.large  # the weights went by themselves
        assert "# me/model" in hub.files["me/model"]["README.md"].decode()
        result = push(model_folder, tmp_path / "third", hub.endpoint, "wrong")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: me/model: cannot be uploaded: ")
    assert "401" in result.stderr
    assert f"`hf upload me/model {tmp_path / 'third'}` tries again" in result.stderr
    result = push(model_folder, tmp_path / "fourth", hub.endpoint, "secret")  # nobody is there any more
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert (tmp_path / "fourth" / "model.safetensors").is_file()
