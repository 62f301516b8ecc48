"""What cannot be written is found out before the work."""

from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.commands.transcribe import app as transcribe_audio

pytestmark = pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a folder in which not even root can write"
)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["evaluate", "nowhere", "none.tsv"], "out.json"),
        (["tune-lm", "nowhere", "none.tsv", "--lm", "none.arpa"], "lm.toml"),
        (["extract", "nowhere", "none.wav"], "out.npz"),
        (["ngram", "none.txt"], "lm.arpa"),
        (["manifest", "nowhere"], "out.tsv"),
        (["label", "nowhere", "none.tsv"], "out.tsv"),
    ],
)
@pytest.mark.parametrize("folder", ["/proc/self", "/proc/self/new"])
def test_an_output_that_cannot_be_written_is_refused_before_the_inputs_are_read(
    command: list[str], name: str, folder: str
) -> None:
    result = CliRunner().invoke(app, [*command, "--output", f"{folder}/{name}"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {folder}/{name}: cannot be written: "), result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "command"), [(transcribe_audio, ["none.wav"]), (app, ["align", "none.wav", "said.txt"])]
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    program: Typer, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("said.txt").write_text("said")
    result = CliRunner().invoke(program, [*command, "--model", "nowhere", "--output-dir", "/proc/self"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: /proc/self: cannot be written: "), result.stderr
    assert result.stderr.count("\n") == 1
