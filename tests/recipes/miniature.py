"""What tests of recipes share: real speech for miniature corpora, from the prompts, and the recipes' programs."""

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
from warm_python import warm_environment

from speechssl.data.manifest import read_manifest, read_utterance

RECIPES = Path(__file__).parents[2] / "recipes"
TINY_ENCODER = Path(__file__).with_name("tiny_encoder.toml")
SETTINGS = {
    *("CORPUS", "LABELS", "LIBRILIGHT", "MODEL", "DOWNLOAD", "MIRROR", "LIBRILIGHT_MIRROR", "KEEP", "TEXTS", "SIZE"),
    *("UNPACK", "INIT", "LICENSE", "MIN_COUNT", "FROM_SCRATCH", "ENCODER", "VARIANT", "FROM", "TO", "GPUS", "NODES"),
    *("HEAD", "RESTARTS", "CONDA_PREFIX", "LANGUAGE", "TIER", "ROUNDS", "TUNING", "UNLABELED"),
    *("OBJECTIVES", "SEEDS", "HEADLINE", "JOBS", "ALIGNER", "PAGE", "PYTHON"),
}


@dataclass(frozen=True)
class Speech:
    """A clip: (T,) float32 at 16 kHz, and what is said in it, in lower-case letters."""

    samples: npt.NDArray[np.float32]
    text: str


def speech(number: int, language: str = "en", seconds: tuple[float, float] = (1.0, 4.0)) -> list[Speech]:
    """So many clips of a language, always the same ones."""
    suffix = "" if language == "en" else f"_{language}"
    manifest = read_manifest(RECIPES / "prompts" / "corpus" / f"train{suffix}.tsv")
    chosen = [utterance for utterance in manifest if seconds[0] <= utterance.seconds <= seconds[1]][:number]
    assert len(chosen) == number
    return [Speech(read_utterance(utterance), utterance.text or "") for utterance in chosen]


def recipe_modules(recipe: str, *names: str) -> list[ModuleType]:
    """Import programs of a recipe; another recipe may have some of the same names, so leave none behind."""
    folder = RECIPES / recipe
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))
        for new in set(sys.modules) - before:
            if Path(getattr(sys.modules[new], "__file__", None) or "/").parent == folder:
                del sys.modules[new]


def clean_environment() -> dict[str, str]:
    """Return the environment without what the developer may have set for a recipe."""
    return {name: value for name, value in os.environ.items() if name not in SETTINGS}


def start_recipe(recipe: str, out: Path, *arguments: str, **settings: str) -> "subprocess.Popen[str]":
    """Start a recipe's run.sh as a user does, in a process group of its own, with Pythons that start at once."""
    return subprocess.Popen(
        ["bash", str(RECIPES / recipe / "run.sh"), *arguments],
        env=clean_environment() | warm_environment() | {"OUT": str(out), "TRIALS": "1"} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_recipe(recipe: str, out: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a recipe to its end."""
    with start_recipe(recipe, out, *arguments, **settings) as process:
        stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def set_all(*settings: str) -> list[str]:
    """Return the arguments `--set SETTING` for each."""
    return [argument for setting in settings for argument in ("--set", setting)]
