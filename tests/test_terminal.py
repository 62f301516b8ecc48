"""Progress and numbers in words, as commands print them."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from speechssl.terminal import count, exit_on_error, format_duration, progress, status_bar

PROGRAM = """
from speechssl.terminal import progress
with progress("reading [a/b]", 3) as advance:
    for number in range(3):
        print(number)
        advance()
"""


STATUS = """
from speechssl.terminal import print_status, status_bar
with status_bar("pretrain", 6, 3) as bar:
    bar.show(["train [old]"])
    bar.advance()
    print_status("warning: [it] is too warm")
    bar.show(["train new", "dev"])
"""


def on_terminal(program: str) -> tuple[bytes, str]:
    """What a program writes to stdout, and to a terminal."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    result = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=slave, env=environment, check=True
    )
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    return result.stdout, shown


def screen(written: str) -> list[str]:
    """The lines that are left on a terminal that knows what rich uses: up, erase the line, back to its start."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif piece.endswith("A") and piece[0] == "\x1b":
            row -= int(piece[2:-1])
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece[0] not in "\x1b\r":
            lines[row] += piece
    return [line.rstrip() for line in lines]


def test_a_bar_on_a_terminal_leaves_stdout_alone() -> None:
    out, shown = on_terminal(PROGRAM)
    assert out == b"0\n1\n2\n"
    assert "reading [a/b]" in shown
    assert "/3" in shown


def test_a_status_is_rewritten_below_what_else_is_said() -> None:
    out, shown = on_terminal(STATUS)
    assert out == b""
    lines = screen(shown)
    assert lines[:3] == ["warning: [it] is too warm", "train new", "dev"]
    assert re.fullmatch(r"pretrain \S+ 4/6 \S+", lines[3])
    assert not any(lines[4:])


def test_no_bar_elsewhere(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress("reading", 2) as advance:
        advance()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)
    with progress("reading", 2) as advance:
        advance()


def test_there_is_no_status_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    with status_bar("pretrain", 6, 3) as bar:
        assert bar is None
    assert capfd.readouterr() == ("", "")


def test_numbers_in_words() -> None:
    assert [format_duration(seconds) for seconds in (738, 3600, 5508)] == ["12.3 minutes", "1.00 hours", "1.53 hours"]
    assert [count(number, "utterance") for number in (0, 1, 2)] == ["0 utterances", "1 utterance", "2 utterances"]


def test_a_path_that_cannot_be_used_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exited, exit_on_error():
        (tmp_path / "file" / "below").write_text("")
    assert exited.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/file/below: Not a directory\n"
    with pytest.raises(OSError, match="of the program itself"), exit_on_error():
        raise OSError("of the program itself")
