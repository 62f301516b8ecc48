"""The package as others get it: a wheel, installed somewhere else."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import speechssl

ROOT = Path(__file__).parents[1]


def run(*arguments: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    result = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{result.args}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment with the wheel in it and the dependencies of this one in reach."""
    folder = tmp_path_factory.mktemp("environment with a space")
    venv.create(folder, symlinks=True)
    binaries = folder / "bin"
    python = binaries / "python"
    site_packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # Folders named in a .pth file have their own .pth files ignored: an editable install here stays out of sight.
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return binaries


def test_the_version_is_stated_once_and_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == speechssl.__version__


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_license(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(file.relative_to(ROOT)) for file in (ROOT / "speechssl").rglob("*.py")}
    assert sources <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"speechssl", f"speechssl-{speechssl.__version__}.dist-info"}


@pytest.mark.slow
def test_the_installed_package_is_found_outside_the_checkout(programs: Path, tmp_path: Path) -> None:
    code = "import speechssl; print(speechssl.__version__, speechssl.__file__, sep='\\n')"
    version, file = run(programs / "python", "-c", code, cwd=tmp_path).splitlines()
    assert version == speechssl.__version__
    assert Path(file).is_relative_to(programs.parent)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["speechssl", "transcribe-audio"])
def test_the_commands_answer_outside_the_checkout(programs: Path, tmp_path: Path, command: str) -> None:
    text = run(programs / command, "--help", cwd=tmp_path)
    assert "Usage:" in text
    assert command in text


@pytest.mark.slow
def test_public_names_load_outside_the_checkout(programs: Path, tmp_path: Path) -> None:
    code = "import speechssl; [getattr(speechssl, name) for name in speechssl.__all__]"
    run(programs / "python", "-c", code, cwd=tmp_path)
