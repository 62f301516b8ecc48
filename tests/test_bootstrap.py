"""tools/bootstrap.sh finds a Python that has the package, or installs it, once."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = """
[project]
dependencies = ["numpy>=1"]
[project.optional-dependencies]
small = ["pytest>=8", "no-such-package; python_version < '3'"]
large = ["no-such-package>=1"]
"""
# A base Python without the package, whose venv and pip write down what they are to do.
BASE = f"""#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && rm -f "$3/bin/python" && cp "$0" "$3/bin/python" ;;
    "-m pip") [ "$3" = --version ] || {{ echo "$*" >>"$CALLS"; exit "${{PIP:-0}}"; }} ;;
    *) exec "{sys.executable}" -S "$@" ;;
esac
"""


class Checkout:
    """A checkout with no more than the script needs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.calls = folder / "calls"
        shutil.copytree(ROOT / "tools", self.root / "tools")
        (self.root / "speechssl").mkdir()
        (self.root / "speechssl" / "__init__.py").touch()
        (self.root / "pyproject.toml").write_text(PROJECT, "utf-8")
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("python", "python3"):
            (self.programs / name).write_text(BASE, "utf-8")
            (self.programs / name).chmod(0o755)

    def bootstrap(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": f"{self.programs}:/usr/bin:/bin", "CALLS": str(self.calls)} | settings
        command = ["bash", str(self.root / "tools" / "bootstrap.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def installed(self) -> list[str]:
        """What pip has installed since it was last asked."""
        calls = self.calls.read_text("utf-8").splitlines() if self.calls.exists() else []
        self.calls.write_text("")
        return [call.split("--editable ")[1] for call in calls]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_package_is_installed_once(checkout: Checkout) -> None:
    python = f"{checkout.root}/.venv/bin/python\n"
    for arguments, installed in (
        ((), ["."]),
        ((), []),
        (("small",), [".[small]"]),
        (("small",), []),
        (("large,small",), [".[small,large]"]),
        ((), []),
    ):
        result = checkout.bootstrap(*arguments)
        assert (result.returncode, result.stdout) == (0, python), result.stderr
        assert checkout.installed() == installed, arguments
        assert "has speechssl" not in result.stderr  # the folder in the checkout is no installed package
    (checkout.root / "pyproject.toml").write_text(f"{PROJECT}\n# changed\n", "utf-8")
    assert checkout.bootstrap().stdout == python
    assert checkout.installed() == [".[small,large]"]


def test_an_installation_that_failed_is_repeated(checkout: Checkout) -> None:
    result = checkout.bootstrap(PIP="1")
    assert (result.returncode, result.stdout) == (1, "")
    venv_folder = checkout.root / ".venv"
    assert result.stderr.endswith(f"error: could not install speechssl into {venv_folder}; pip says why above\n")
    assert checkout.installed() == ["."]
    assert checkout.bootstrap().returncode == 0
    assert checkout.installed() == ["."]


def environment_with_package(folder: Path) -> str:
    """Make an environment with the package, and what it takes for numpy and pytest."""
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "speechssl.pth").write_text(f"{ROOT}\n", "utf-8")
    for name in ("numpy", "pytest"):
        (site_packages / f"{name}-9.dist-info").mkdir()
        (site_packages / f"{name}-9.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 9\n", "utf-8")
    return str(folder)


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_is_used_if_it_has_what_is_needed(
    checkout: Checkout, tmp_path: Path, variable: str
) -> None:
    active = {variable: environment_with_package(tmp_path / "active")}
    result = checkout.bootstrap("small", **active)
    assert (result.stdout, result.stderr) == (f"{tmp_path}/active/bin/python\n", "")
    result = checkout.bootstrap("large", **active)
    assert result.stdout == f"{checkout.root}/.venv/bin/python\n"
    assert f"active/bin/python has speechssl but lacks no-such-package; using {checkout.root}/.venv" in result.stderr


def test_the_checkouts_own_environment_is_kept_up_to_date(checkout: Checkout) -> None:
    """Though it is active and has the package: pyproject.toml may have changed."""
    own = environment_with_package(checkout.root / ".venv")
    assert checkout.bootstrap(VIRTUAL_ENV=own).stdout == f"{own}/bin/python\n"
    assert checkout.installed() == ["."]


def test_without_a_python_it_says_what_it_needs(checkout: Checkout) -> None:
    for name in ("python", "python3"):
        (checkout.programs / name).write_text('#!/bin/sh\n[ "$1" != --version ] || echo Python 3.9.2\nexit 1\n')
    for name in ("cat", "cksum", "dirname", "bash"):
        (checkout.programs / name).symlink_to(str(shutil.which(name)))
    result = checkout.bootstrap(PATH=str(checkout.programs))
    assert (result.returncode, result.stdout) == (1, "")
    assert "error: speechssl needs Python 3.11 or newer, found Python 3.9.2" in result.stderr
