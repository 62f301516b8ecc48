"""A folder of recordings -> the utterances of a manifest."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from speechssl.data.labels.label import decode_text, single_spaced
from speechssl.data.manifest import IMPOSSIBLE_IN_CELLS, Utterance
from speechssl.data.recording import audio_info
from speechssl.errors import AudioError, ManifestError, SpeechSSLError
from speechssl.terminal import progress

_LIBSNDFILE_SUFFIXES = ".aif .aifc .aiff .au .caf .flac .mp3 .nist .oga .ogg .opus .rf64 .snd .sph .voc .w64 .wav"
_PYAV_SUFFIXES = ".aac .amr .avi .g722 .m4a .m4v .mka .mkv .mov .mp4 .webm .wma"
AUDIO_SUFFIXES = frozenset(f"{_LIBSNDFILE_SUFFIXES} {_PYAV_SUFFIXES}".split())

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Scan:
    """What was found in a folder."""

    utterances: tuple[Utterance, ...]  # one for each recording that could be read, sorted by path
    failures: tuple[SpeechSSLError, ...]  # what is wrong with each of the others


def scan_folder(folder: str | os.PathLike[str]) -> Scan:
    """Find the recordings below a folder and read their headers, in parallel.

    If a ``.txt`` file with the same stem lies beside a recording, its content becomes the text.

    Raises:
        ManifestError: the folder is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(f"{folder}: expected a folder, found {'a file' if folder.exists() else 'none'}")
    paths = find_recordings(folder)
    results = parallel_map(_describe, paths, f"reading {folder}")
    return Scan(
        tuple(result for result in results if isinstance(result, Utterance)),
        tuple(result for result in results if isinstance(result, SpeechSSLError)),
    )


def find_recordings(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the recordings below a folder by their suffixes, sorted.

    Links are followed, names that start with a dot are skipped. A folder that cannot be read is a warning.
    """
    found: list[Path] = []
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=_warn, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link back to a folder above would never end
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(parent, name) for name in files if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _warn(error: OSError) -> None:
    warnings.warn(f"{error.filename}: {error.strerror}: what is in it is left out", stacklevel=2)


def read_text(path: str | os.PathLike[str]) -> str | None:
    """Return the content of a text file with single spaces for all white space; None if it is missing.

    Raises:
        ManifestError: it cannot be read or is neither UTF-8 nor UTF-16.
    """
    try:
        return single_spaced(decode_text(Path(path), Path(path).read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from None


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], description: str) -> list[Result]:
    """Apply a function to all items in threads, with progress on stderr if that is a terminal.

    Threads are enough for audio: libsndfile and FFmpeg run outside Python's lock.
    """
    executor = ThreadPoolExecutor()
    results = []
    try:
        with progress(description, len(items)) as advance:
            for result in executor.map(function, items):
                results.append(result)
                advance()
    finally:
        executor.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest
    return results


def _describe(path: Path) -> Utterance | SpeechSSLError:
    try:
        name = str(path)
        if IMPOSSIBLE_IN_CELLS.search(name):
            raise AudioError(f"{name!r}: expected a path in UTF-8 without tabs and line breaks")
        info = audio_info(path)
        return Utterance(name, info.num_samples, sample_rate=info.sample_rate, text=read_text(path.with_suffix(".txt")))
    except SpeechSSLError as error:
        return error
