import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result
from typer.testing import CliRunner

from speechssl.checkpoint.native import CTCCheckpoint
from speechssl.transcribe.cli import app


@pytest.fixture
def loaded(checkpoint: CTCCheckpoint, monkeypatch: pytest.MonkeyPatch) -> CTCCheckpoint:
    """Any model folder holds the planted model."""
    monkeypatch.setattr("speechssl.transcribe.transcriber.load_ctc", lambda path, device: checkpoint)
    return checkpoint


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_one_file_is_one_line(loaded: CTCCheckpoint, plant) -> None:
    result = run("--model", "m", plant("hello где"))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello где\n", "")


def test_several_files_are_named(loaded: CTCCheckpoint, plant) -> None:
    first, second = plant("one", "1.wav"), plant("two", "2.wav")
    result = run(second, "--model", "m", first)
    assert (result.exit_code, result.stdout) == (0, f"{second}\ttwo\n{first}\tone\n")


def test_json_is_an_object_a_line(loaded: CTCCheckpoint, plant) -> None:
    path = plant("где")
    result = run("--model", "m", "--format", "json", path, path)
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0]) == {"path": str(path), "text": "где", "seconds": 0.13}
    assert "где" in lines[0]


def test_text_is_utf8_whatever_the_locale(loaded: CTCCheckpoint, plant) -> None:
    for output_format in "txt", "json":
        result = CliRunner(charset="ascii").invoke(app, ["--model", "m", "--format", output_format, str(plant("где"))])
        assert "где".encode() in result.stdout_bytes


def test_names_that_are_no_utf8_survive(
    loaded: CTCCheckpoint, planted_waveform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechssl.transcribe.transcriber.read_audio", lambda _: planted_waveform("one"))
    name = b"\xe9.wav".decode("utf-8", "surrogateescape")
    assert run("--model", "m", name, name).stdout_bytes == b"\xe9.wav\tone\n" * 2
    assert json.loads(run("--model", "m", "--format", "json", name).stdout)["path"] == name


def test_bad_files_cost_a_line_each_and_the_good_ones_are_done(loaded: CTCCheckpoint, plant, tmp_path: Path) -> None:
    good, last = plant("good", "good.wav"), plant("last", "last.wav")
    empty, text, broken = tmp_path / "empty.wav", tmp_path / "text.wav", tmp_path / "cut.wav"
    empty.touch()
    text.write_text("this is no audio, however long it goes on\n" * 50)
    broken.write_bytes(good.read_bytes()[:400])
    bad = [tmp_path / "missing.wav", tmp_path, empty, text, broken]
    result = run("--model", "m", good, *bad, last)
    assert result.exit_code == 1
    assert result.stdout == f"{good}\tgood\n{last}\tlast\n"
    errors = result.stderr.splitlines()
    assert len(errors) == len(bad)
    for path, line in zip(bad, errors, strict=True):
        assert line.startswith(f"error: {path}: ")


def test_silence_is_a_warning_on_one_line(loaded: CTCCheckpoint, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(1600), 16_000)
    result = run("--model", "m", tmp_path / "silent.wav")
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert result.stderr == f"warning: {tmp_path / 'silent.wav'}: silence\n"


def test_a_missing_model_is_one_line(plant, tmp_path: Path) -> None:
    for folder in tmp_path / "nowhere", tmp_path:
        result = run("--model", folder, plant("one"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"error: {folder}: ")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["a.wav"], ["--model", "m"], ["--model", "m", "--format", "doc", "a.wav"], ["--nonsense"]]
)
def test_only_the_syntax_exits_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_help_needs_no_torch() -> None:
    for module in "speechssl.transcribe.cli", "speechssl.__main__":
        code = (
            f"import sys; sys.argv = ['x', '--help']\nfrom {module} import main\n"
            "try: main()\nexcept SystemExit as stop: status = stop.code\n"
            "assert not {'torch', 'numpy', 'soundfile'} & {*sys.modules}, 'heavy'\nsys.exit(status)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_one_line(model_folder: Path, plant) -> None:
    result = run("--model", model_folder, "--device", "cuda", plant("one"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: device cuda: not available")
    assert result.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_traceback(model_folder: Path, plant) -> None:
    command = [sys.executable, "-m", "speechssl.transcribe.cli", "--model", str(model_folder), str(plant("one"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 1
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
