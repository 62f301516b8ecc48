"""The Python of warm_server.py is to its callers like any other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm_python import warm_python

PROGRAM = """
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ["PLANTED"], __name__)
print(sys.stdin.read(), file=sys.stderr)
{ending}
"""
WAIT = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("kind", "ending", "status"),
    [
        ("file", "import atexit; atexit.register(print, 'bye')", 0),
        ("module", "sys.exit(3)", 3),
        ("text", "os.kill(os.getpid(), 9)", -9),
        ("file", "sys.exit('a reason')", 1),
        ("file", "1 / 0", 1),
    ],
)
def test_programs_end_as_elsewhere(tmp_path: Path, kind: str, ending: str, status: int) -> None:
    program = PROGRAM.format(ending=ending)
    (tmp_path / "planted_program.py").write_text(program, "utf-8")
    what = {"file": ["planted_program.py"], "module": ["-m", "planted_program"], "text": ["-c", program]}[kind]

    def run(python: str) -> tuple[int, str, list[str]]:
        result = subprocess.run(
            [python, *what, "a b", "ü"],
            cwd=tmp_path,
            env=os.environ | {"PLANTED": "x\ny"},
            input="from stdin",
            capture_output=True,
            text=True,
        )
        said = [line for line in result.stderr.splitlines() if not line.startswith(("Traceback", " "))]
        return result.returncode, result.stdout, said

    assert run(warm_python()) == run(sys.executable)
    assert run(warm_python())[0] == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_program(number: signal.Signals) -> None:
    process = subprocess.Popen([warm_python(), "-u", "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    program = int(process.stdout.readline())
    assert program != process.pid
    process.send_signal(number)
    assert process.wait() == -number
    started = time.monotonic()
    assert process.stdout.read() == b""  # once the program, which has the other end, is no more
    assert time.monotonic() - started < 30
