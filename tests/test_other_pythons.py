"""The tests under other Pythons, with programs in their place that note how they are called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$CALLS"
case "$1 $2" in
"-c "*) exit {status} ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pytest") exit "${{TESTS:-0}}" ;;
esac
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the program alone."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "other_pythons.sh", tmp_path / "tools")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "bin").mkdir()
    return tmp_path


def add_python(path: Path, status: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PYTHON.format(status=status))
    path.chmod(0o755)


def run(repository: Path, **environment: str) -> "tuple[int, str, list[str]]":
    """Run it; return its status, what it said, and how Pythons were called."""
    calls = repository / "calls"
    calls.write_text("")
    settings = {"PATH": f"{repository / 'bin'}:/usr/bin:/bin", "PYENV_ROOT": str(repository / "pyenv")}
    ran = subprocess.run(
        ["bash", repository / "tools" / "other_pythons.sh", "3.98", "3.99"],
        env=os.environ | settings | {"CALLS": str(calls)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout, calls.read_text().splitlines()


def test_a_python_that_is_not_there_is_named_and_no_failure(repository: Path) -> None:
    status, said, calls = run(repository)
    assert (status, calls) == (0, [])
    assert said.splitlines() == [
        f"== Python {version}: this machine has none, so nothing is tested under it" for version in ("3.98", "3.99")
    ]


def test_one_that_is_there_has_an_environment_made_once(repository: Path) -> None:
    add_python(repository / "bin" / "python3.99")
    status, said, calls = run(repository)
    assert status == 0
    assert "== Python 3.98: this machine has none" in said
    assert [call.split()[1] for call in calls[1:]] == ["venv", "pip", "pytest"]
    assert calls[2].endswith("--editable .[av,dev]")
    for test in (name for name in calls[3].split() if name.startswith("tests/")):
        assert (ROOT / test).exists(), test
    assert [call.split()[1] for call in run(repository)[2][1:]] == ["pytest"]
    (repository / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert "pip" in [call.split()[1] for call in run(repository)[2][1:]]


def test_one_of_pyenv_is_found_behind_the_one_that_only_says_so(repository: Path) -> None:
    add_python(repository / "bin" / "python3.99", status=127)
    add_python(repository / "pyenv" / "versions" / "3.99.1" / "bin" / "python")
    status, said, calls = run(repository)
    assert status == 0
    assert f"== Python 3.99: {repository}/pyenv/versions/3.99.1/bin/python" in said
    assert calls[-1].startswith("-m pytest ")


def test_a_failing_test_fails_the_whole(repository: Path) -> None:
    add_python(repository / "bin" / "python3.98")
    add_python(repository / "bin" / "python3.99")
    assert run(repository, TESTS="1")[0] == 1
