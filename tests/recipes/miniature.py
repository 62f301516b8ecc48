"""Real speech for miniature corpora: clips of the prompts, as files in the layout of another corpus."""

from dataclasses import dataclass
from pathlib import Path

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
