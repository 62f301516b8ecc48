"""What both commands print of themselves."""

import os
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

import speechssl
from speechssl.__main__ import app
from speechssl.commands.transcribe import app as transcribe_app

COMMANDS = {
    **typer.main.get_command(app).commands,  # type: ignore[attr-defined]
    "transcribe-audio": typer.main.get_command(transcribe_app),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_printed_as_it_is_written(name: str) -> None:
    """With [brackets], which rich would take for markup and leave out."""
    command = COMMANDS[name]
    printed = "".join(
        CliRunner().invoke(transcribe_app if name == "transcribe-audio" else app, help_of(name)).stdout.split()
    )
    written = [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]
    for text in filter(None, written):
        assert "".join(text.split()) in printed


def help_of(name: str) -> list[str]:
    return ["--help"] if name == "transcribe-audio" else [name, "--help"]


@pytest.mark.parametrize("chosen", [app, transcribe_app])
def test_the_version(chosen: typer.Typer) -> None:
    result = CliRunner().invoke(chosen, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"speechssl {speechssl.__version__}\n")


@pytest.mark.parametrize(
    ("module", "program", "words", "expected"),
    [
        ("speechssl.__main__", "SPEECHSSL", "speechssl tu", "tune-lm"),
        ("speechssl.commands.transcribe", "TRANSCRIBE_AUDIO", "transcribe-audio --prec", "--precision"),
    ],
)
def test_shells_complete_without_torch(module: str, program: str, words: str, expected: str) -> None:
    code = (
        f"import sys; sys.modules['torch'] = None; sys.argv = [{words.split()[0]!r}]\n"
        f"from {module} import app; app(prog_name={words.split()[0]!r})"
    )
    environment = os.environ | {
        f"_{program}_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": "1",
    }
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [expected], result.stderr
