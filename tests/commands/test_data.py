"""The commands ``manifest`` and ``check``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from speechssl.__main__ import app
from speechssl.data.manifest import read_manifest


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "audio"
    (folder / "more").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, text in (("one.wav", "hello"), ("more/two.flac", "привет")):
        soundfile.write(folder / name, generator.uniform(-0.5, 0.5, 16_000), 16_000)
        (folder / name).with_suffix(".txt").write_text(f"{text}\n", "utf-8")
    return folder


def test_manifest_and_check_of_good_files(recordings: Path) -> None:
    train = recordings.parent / "train.tsv"
    made = run("manifest", recordings, "-o", train)
    assert (made.exit_code, made.stdout, made.stderr) == (0, "", f"{train}: 2 utterances, 0.0 minutes\n")
    assert train.read_text("utf-8") == (
        "audio\npath\tnum_samples\ttext\nmore/two.flac\t16000\tпривет\none.wav\t16000\thello\n"
    )
    checked = run("check", train)
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert checked.stdout.startswith(f"{train}: 2 utterances, ")
    assert checked.stdout.endswith("\n0 errors, 0 warnings\n")


def test_a_manifest_elsewhere_has_an_absolute_root(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recordings)
    output = tmp_path / "lists" / "train.tsv"
    assert run("manifest", ".", "-o", output).exit_code == 0
    assert output.read_text("utf-8").splitlines()[0] == str(recordings.resolve())
    assert [Path(utterance.path) for utterance in read_manifest(output)] == [
        recordings.resolve() / "more" / "two.flac",
        recordings.resolve() / "one.wav",
    ]


def test_manifest_names_what_it_cannot_read_and_writes_the_rest(recordings: Path) -> None:
    (recordings / "bad.wav").write_text("no audio")
    (recordings / "empty.mp3").touch()
    train = recordings.parent / "train.tsv"
    result = run("manifest", recordings, "-o", train)
    assert (result.exit_code, result.stdout) == (1, "")
    bad, empty, written = result.stderr.splitlines()
    assert bad.startswith(f"error: {recordings / 'bad.wav'}: expected audio, found")
    assert empty == f"error: {recordings / 'empty.mp3'}: expected audio, found an empty file"
    assert written == f"{train}: 2 utterances, 0.0 minutes"
    assert len(read_manifest(train)) == 2


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("missing", "expected a folder, found none"),
        ("file", "expected a folder, found a file"),
        ("empty", "expected recordings that can be read, found none"),
    ],
)
def test_manifest_of_a_folder_without_recordings(tmp_path: Path, folder: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    result = run("manifest", tmp_path / folder, "-o", tmp_path / "train.tsv")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {tmp_path / folder}: {message}\n"
    assert not (tmp_path / "train.tsv").exists()


def test_check_reports_errors_and_goes_on(recordings: Path) -> None:
    train, malformed, missing = (recordings.parent / name for name in ("train.tsv", "bad.tsv", "missing.tsv"))
    run("manifest", recordings, "-o", train)
    (recordings / "one.wav").unlink()
    malformed.write_text(".\npath\tnum_samples\na.wav\n")
    result = run("check", missing, train, malformed)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: {missing}: expected a file, found none",
        f"error: {malformed}:3: expected 2 tab-separated columns (path, num_samples), found 1",
    ]
    assert "error: unreadable: 1\n" in result.stdout
    assert f"  {train}:4: {recordings / 'one.wav'}: expected an audio file, found none\n" in result.stdout
    assert result.stdout.endswith("\n1 error, 0 warnings\n")


def test_warnings_alone_are_no_failure(recordings: Path) -> None:
    soundfile.write(recordings / "one.wav", np.zeros(16_000), 16_000)
    train = recordings.parent / "train.tsv"
    run("manifest", recordings, "-o", train)
    result = run("check", train)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("\n0 errors, 1 warning\n")


def test_check_as_json(recordings: Path) -> None:
    train = recordings.parent / "train.tsv"
    run("manifest", recordings, "-o", train)
    result = run("check", train, train, "--format", "json")
    assert (result.exit_code, result.stderr) == (1, "")
    report = json.loads(result.stdout)
    assert [manifest["num_utterances"] for manifest in report["manifests"]] == [2, 2]
    assert report["errors"]["overlap"]["count"] == 2
    assert report["warnings"]["repeated text"]["count"] == 1


def test_check_against_a_model(recordings: Path) -> None:
    from speechssl.checkpoint.native import save_model
    from speechssl.checkpoint.saved_model import ModelDescription
    from speechssl.data.units import Letters
    from speechssl.model.encoder import EncoderConfig

    train, model = recordings.parent / "train.tsv", recordings.parent / "model"
    model.mkdir()
    run("manifest", recordings, "-o", train)
    values = {"feature_encoder": {"dims": [4], "kernels": [3000], "strides": [3000]}}
    encoder = EncoderConfig.from_dict(values, "test")
    description = ModelDescription(kind="ctc", step=1, encoder=encoder)
    save_model(model, description, {}, Letters.from_texts(["hello"]))
    result = run("check", train, "--model", model)
    assert (result.exit_code, result.stderr) == (1, "")
    assert "expected at least 7 frames for the labels, found 5 (1.00 s)" in result.stdout
    assert "error: unknown characters: 1\n" in result.stdout
    missing = run("check", train, "--model", recordings)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr.startswith(f"error: {recordings}: expected a model folder")
    assert missing.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["check"], ["manifest", "folder"], ["check", "a.tsv", "--format", "xml"]])
def test_syntax_errors(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from speechssl.__main__ import app; "
        "assert CliRunner().invoke(app, ['check', '--help']).exit_code == 0; "
        "print(sorted({'torch', 'librosa', 'soundfile', 'numpy'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout == "[]\n"
