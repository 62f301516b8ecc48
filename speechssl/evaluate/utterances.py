"""The utterances of a manifest: what is said in them, and their recordings."""

from collections.abc import Callable, Iterable
from functools import partial

from speechssl.data.audio import Waveform
from speechssl.data.manifest import Manifest
from speechssl.errors import ManifestError


def read_references(manifest: Manifest) -> list[str]:
    """Return what is said in each utterance of a manifest with texts; an empty one says that nothing is."""
    if not manifest.has_texts:
        raise ManifestError(f"{manifest.path}: expected texts to score against, found no column of texts")
    return [utterance.text or "" for utterance in manifest]


def longest_first(manifest: Manifest, indices: Iterable[int] | None = None) -> list[int]:
    """Order utterances so that padding is short and what does not fit in memory shows at once; by default, all."""
    return sorted(range(len(manifest)) if indices is None else indices, key=lambda index: -manifest[index].seconds)


def utterance_readers(manifest: Manifest, indices: Iterable[int]) -> list[Callable[[], Waveform]]:
    """Return functions that read utterances; their errors say where in the manifest each stands."""
    return [partial(manifest.read, index) for index in indices]
