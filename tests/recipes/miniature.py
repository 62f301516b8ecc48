"""What tests of recipes share: real speech for miniature corpora, from the prompts, and the recipes' programs."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from speechssl.data.manifest import read_manifest, read_utterance

RECIPES = Path(__file__).parents[2] / "recipes"


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
