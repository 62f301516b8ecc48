"""A folder of recordings -> the utterances of a manifest."""

import os
import warnings
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from speechssl.data.archives import Member, index_archive, index_shar, is_shar
from speechssl.data.labels.label import decode_text, single_spaced
from speechssl.data.manifest import IMPOSSIBLE_IN_CELLS, Utterance
from speechssl.data.recording import audio_info
from speechssl.data.transcribed import is_transcript
from speechssl.errors import AudioError, ManifestError, SpeechSSLError
from speechssl.terminal import count, progress

_LIBSNDFILE_SUFFIXES = ".aif .aifc .aiff .au .caf .flac .mp3 .nist .oga .ogg .opus .rf64 .snd .sph .voc .w64 .wav"
_PYAV_SUFFIXES = (
    ".3gp .aac .amr .avi .flv .g722 .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp4 .mpg .mpga .qta .spx .ts .webm .wma .wmv"
)
AUDIO_SUFFIXES = frozenset(f"{_LIBSNDFILE_SUFFIXES} {_PYAV_SUFFIXES}".split())
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")  # in which no range of bytes is a recording

Item = TypeVar("Item")
Result = TypeVar("Result")


def scan_folder(folder: str | os.PathLike[str]) -> tuple[list[Utterance], list[SpeechSSLError]]:
    """Find the recordings below a folder, those in tar files too, and read their headers, in parallel.

    If a ``.txt`` file with the same stem lies beside a recording, its content becomes the text; in a tar file JSON too.
    What ``transcribe-audio`` wrote there and nobody changed does not, which a warning says.

    Returns:
        An utterance for each recording that could be read, sorted by path, those in archives last and in the order of
        these, and what is wrong with each of the others.

    Raises:
        ManifestError: the folder is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(f"{folder}: expected a folder, found {'a file' if folder.exists() else 'none'}")
    failures: list[SpeechSSLError] = []
    found = find_recordings(folder, failures, AUDIO_SUFFIXES | {".tar", *_COMPRESSED})
    compressed = [path for path in found if path.name.lower().endswith(_COMPRESSED)]
    if compressed:
        unread = f"expected tar files that are not compressed, found some that are, such as {compressed[0]}"
        warnings.warn(f"{folder}: {count(len(compressed), 'archive')} not read: {unread}", stacklevel=2)
    archives = [path for path in found if path.suffix.lower() == ".tar"]
    folders = [path for path in dict.fromkeys(path.parent for path in archives) if is_shar(path)]
    indexers = [partial(index_shar, path) for path in folders]
    indexers += [partial(index_archive, path, AUDIO_SUFFIXES) for path in archives if path.parent not in folders]
    others = {*archives, *compressed}
    items: list[Path | Member] = [path for path in found if path not in others]
    for members, problems in parallel_map(lambda index: index(), indexers, f"indexing {folder}"):
        items += members
        failures += problems
    heard = {text for item in items if isinstance(item, Path) and is_transcript(text := item.with_suffix(".txt"))}
    if heard:
        unread = f"expected what is said, found what transcribe-audio wrote, unchanged, such as {min(heard)}"
        warnings.warn(f"{folder}: {count(len(heard), 'text')} not read: {unread}", stacklevel=2)
    results = parallel_map(partial(_describe, heard), items, f"reading {folder}")
    utterances = [result for result in results if isinstance(result, Utterance)]
    return utterances, failures + [result for result in results if isinstance(result, SpeechSSLError)]


def find_recordings(
    folder: str | os.PathLike[str],
    failures: list[SpeechSSLError] | None = None,
    suffixes: Set[str] = AUDIO_SUFFIXES,
) -> list[Path]:
    """Find the recordings below a folder by their suffixes, sorted.

    Links are followed, names that start with a dot are skipped.

    Raises:
        ManifestError: a folder cannot be read. With a list of ``failures`` it goes into that, and the search goes on.
    """
    found: list[Path] = []
    visited: set[str] = set()
    endings = tuple(suffixes)

    def note(error: OSError) -> None:
        failure = closed_folder(error)
        if failures is None:
            raise failure
        failures.append(failure)

    for parent, folders, files in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link back to a folder above would never end
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(parent, name) for name in files if not name.startswith(".")]
        found += [path for path in paths if path.name.lower().endswith(endings)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def closed_folder(error: OSError) -> ManifestError:
    """Say that the recordings in a folder are unknown."""
    return ManifestError(f"{error.filename}: expected a folder that may be read: {error.strerror}")


def require_path_of_manifest(path: str) -> None:
    """Raise an `AudioError` for a recording that no manifest can name."""
    if IMPOSSIBLE_IN_CELLS.search(path):
        raise AudioError(f"{path!r}: expected a path in UTF-8 without tabs and line breaks")


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


def _describe(heard: Set[Path], item: Path | Member) -> Utterance | SpeechSSLError:
    try:
        name = str(item) if isinstance(item, Path) else item.path
        require_path_of_manifest(name)
        info = audio_info(name)
        labels = {"text": _read_said(heard, item.with_suffix(".txt"))} if isinstance(item, Path) else item.labels
        known = (labels.get(key) for key in ("text", "speaker", "language"))
        return Utterance(name, info.num_samples, 0, info.sample_rate, *known)
    except SpeechSSLError as error:
        return error


def _read_said(heard: Set[Path], text: Path) -> str | None:
    return None if text in heard else read_text(text)
