"""Progress and numbers in words, as commands print them."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from speechssl.terminal import count, exit_on_error, format_duration, progress

PROGRAM = """
from speechssl.terminal import progress
with progress("reading [a/b]", 3) as advance:
    for number in range(3):
        print(number)
        advance()
"""


def test_a_bar_on_a_terminal_leaves_stdout_alone() -> None:
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=slave, env=environment, check=True
    )
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert result.stdout == b"0\n1\n2\n"
    assert "reading [a/b]" in shown
    assert "/3" in shown


def test_no_bar_elsewhere(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress("reading", 2) as advance:
        advance()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)
    with progress("reading", 2) as advance:
        advance()


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
