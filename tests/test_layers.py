"""The import layers of the package, and what importing it may cost."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import speechssl

PACKAGE = Path(speechssl.__file__).parent

BOTTOM = {"errors", "config", "files", "rng", "frames", "terminal", "cpu"}
BEFORE_OBJECTIVE = BOTTOM | {"data", "model"}
BEFORE_CHECKPOINT = BEFORE_OBJECTIVE | {"objective", "decode", "scoring"}
BEFORE_TRAIN = BEFORE_CHECKPOINT | {"checkpoint"}
BEFORE_EVALUATE = BEFORE_TRAIN | {"train", "transcribe"}
# What each part of the package may import, besides itself. A new part needs a place here.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "files": {"errors"},
    "rng": set(),
    "frames": {"errors", "config"},
    "terminal": {"errors"},
    "cpu": {"errors"},
    "data": BOTTOM,
    "model": BOTTOM,
    "objective": BEFORE_OBJECTIVE,
    "decode": BEFORE_OBJECTIVE,
    "scoring": BEFORE_OBJECTIVE,
    "checkpoint": BEFORE_CHECKPOINT,
    "train": BEFORE_TRAIN,
    "transcribe": BEFORE_TRAIN,
    "evaluate": BEFORE_EVALUATE - {"train"},
    "export": BEFORE_TRAIN | {"train"},
    "report": BEFORE_EVALUATE | {"evaluate"},
    "commands": BEFORE_EVALUATE | {"evaluate", "export", "report"},
    "__init__": BEFORE_EVALUATE,
    "__main__": {"commands"},
}


def imported_parts(source: str, part: str) -> Iterator[tuple[int, str]]:
    """Yield (line, part of the package) for each import, those in functions and TYPE_CHECKING blocks included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} of a file of {part}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "speechssl":
                yield node.lineno, rest.partition(".")[0]


def violations(source: str, part: str) -> list[str]:
    found = []
    for line, target in imported_parts(source, part):
        # `import speechssl` and its public names would reach anything; the version is only a string.
        if target not in ALLOWED[part] | {part, "__version__"}:
            found.append(f"{line}: {part} imports {target or 'speechssl itself'}")
    return found


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def imports_outside_try(node: ast.AST) -> Iterator[str]:
    """Yield the modules that are imported whatever the system has."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module or ""
        elif not isinstance(child, ast.Try):
            yield from imports_outside_try(child)


def test_what_not_every_system_has_is_tried() -> None:
    assert [*imports_outside_try(ast.parse("def f():\n    import pwd\ntry:\n    import pty\nfinally: pass"))] == ["pwd"]
    for file in python_files():
        found = POSIX_ONLY & {*imports_outside_try(ast.parse(file.read_text("utf-8")))}
        assert not found, f"{file} imports {found}"


@pytest.mark.parametrize("file", python_files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_each_part_imports_only_those_before_it(file: Path) -> None:
    part = part_of(file)
    assert part in ALLOWED, f"{part} is a new part of the package: give it a place in ALLOWED"
    assert violations(file.read_text("utf-8"), part) == []


def test_the_layers_have_no_cycle() -> None:
    remaining = {part: set(others) for part, others in ALLOWED.items()}
    while remaining:
        ready = {part for part, others in remaining.items() if not others & remaining.keys()}
        assert ready, f"these import each other: {sorted(remaining)}"
        remaining = {part: others for part, others in remaining.items() if part not in ready}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("data", "from speechssl.model.ctc import CTCModel"),
        ("model", "import speechssl.data.audio"),
        ("train", "def load():\n    from speechssl.transcribe import transcriber"),
        ("transcribe", "from speechssl import train"),
        ("model", "from speechssl import read_audio"),
        ("model", "import speechssl"),
        ("frames", "from importlib import import_module\nimport_module('speechssl.model.encoder')"),
        ("scoring", "from speechssl.objective.contrastive import ContrastiveLoss"),
    ],
)
def test_a_forbidden_import_is_found(part: str, source: str) -> None:
    assert len(violations(source, part)) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("data", "import torch\nfrom speechssl.frames import draw_mask\nfrom speechssl.data.audio import read_audio"),
        ("train", "from speechssl import __version__, frames\nfrom speechssl.model.ctc import CTCModel"),
    ],
)
def test_an_allowed_import_is_not(part: str, source: str) -> None:
    assert violations(source, part) == []


def run_without_torch(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process where importing torch fails with a traceback that shows who asked for it."""
    blocked = "import sys\nsys.modules.update(dict.fromkeys(['torch', 'torchaudio']))\n"
    return subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False)


def test_importing_the_package_loads_no_part_of_it() -> None:
    result = run_without_torch("import speechssl; print(*sorted(m for m in sys.modules if m.startswith('speechssl')))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["speechssl"]


def test_public_names_are_found_on_first_use() -> None:
    for name in speechssl.__all__:
        assert getattr(speechssl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = speechssl.nothing


def test_help_of_every_command_loads_no_torch() -> None:
    result = run_without_torch(
        """
import typer.main
from speechssl.__main__ import app, main

commands = getattr(typer.main.get_command(app), "commands", {})
assert commands, "speechssl has no commands"
for arguments in [["--help"], *([name, "--help"] for name in commands)]:
    sys.argv = ["speechssl", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
"""
    )
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout


def test_help_of_transcribe_audio_loads_no_torch() -> None:
    result = run_without_torch(
        "from speechssl.commands.transcribe import main\nsys.argv = ['transcribe-audio', '--help']\nmain()"
    )
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout
