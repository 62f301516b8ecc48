"""The parts of LibriSpeech, and where they lie."""

from pathlib import Path

from speechssl.errors import ManifestError

NUM_RECORDINGS = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}
"""The published subsets, a folder each."""

FINETUNING = "librispeech_finetuning"
"""Libri-light's parts of 10 minutes, 1 hour and 10 hours: the folder and its archive."""


def stated_folder(setting: str, value: str, contents: str) -> Path:
    """The folder that a setting of run.sh names.

    Raises:
        ManifestError: it names none.
    """
    if not value:
        raise ManifestError(f"{setting}=: expected {contents}, found nothing")
    return Path(value)


def corpus_folder(stated: Path) -> Path:
    """The folder with the subsets: LibriSpeech below the stated one, or the stated one itself."""
    folder = stated.absolute()
    below = folder / "LibriSpeech"
    is_corpus = folder.name == "LibriSpeech" or any((folder / subset).is_dir() for subset in NUM_RECORDINGS)
    return folder if is_corpus and not below.is_dir() else below
