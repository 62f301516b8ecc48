"""Recordings of any kind -> 16 kHz WAV files, once, so that training need not decode and resample in every epoch."""

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import soundfile

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import Manifest, Utterance, write_manifest
from speechssl.data.recording import Recording
from speechssl.data.scan import parallel_map
from speechssl.errors import AudioError, ManifestError


def unpack_manifests(manifests: Sequence[Manifest], folder: Path) -> list[AudioError]:
    """Decode every recording that manifests name, and write manifests of the copies.

    A copy is mono, of 16 bits and as long as the recording. One that is there already is kept, so an interrupted
    unpacking goes on, unless it is of another recording or the recording has changed, which a comment in the copy
    tells. Spans keep their times: from another rate they are rounded to samples at 16 kHz.

    Args:
        manifests: With file names that differ.
        folder: Where the manifests go, by their names; the copies go into ``audio`` below it.

    Returns:
        What is wrong with each recording that cannot be read; its utterances are left out.

    Raises:
        ManifestError: two manifests have one name, nothing is left of one, or something cannot be written.
    """
    names = [manifest.path.name for manifest in manifests]
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(f"expected manifests with different names, found {name} {names.count(name)} times")
    paths = sorted({utterance.path for manifest in manifests for utterance in manifest})
    above = Path(os.path.commonpath([path.parent for path in paths]))
    copies = {path: folder / "audio" / f"{path.relative_to(above)}.wav" for path in paths}
    results = dict(zip(paths, parallel_map(_unpack, list(copies.items()), "unpacking"), strict=True))
    for manifest in manifests:
        utterances = [_of_copy(u, copies[u.path]) for u in manifest if results[u.path] is None]
        write_manifest(folder / manifest.path.name, utterances, ".")
    return [error for error in results.values() if error is not None]


def _unpack(pair: tuple[Path, Path]) -> AudioError | None:
    path, copy = pair
    source = _identity(path)
    if _comment(copy) == source:
        return None
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.partial")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), _open(temporary) as file:
            warnings.simplefilter("ignore")  # silence is not this program's business
            file.comment = source
            for block in Recording(path):
                file.write(block)
        temporary.replace(copy)
    except AudioError as error:
        return error
    except (OSError, soundfile.LibsndfileError) as error:
        raise ManifestError(f"{copy}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return None


def _identity(path: Path) -> str:
    """A digest of which file a recording is, its size and its time of change."""
    file = Path(os.path.realpath(path))
    archive = Path(re.sub(r":\d+:\d+$", "", str(file)))  # that it may be a part of
    states = [place.stat() for place in (file, archive) if place.exists()]
    changed = [(state.st_size, state.st_mtime_ns) for state in states]
    return hashlib.sha256(f"{changed} {file}".encode("utf-8", "surrogateescape")).hexdigest()


def _comment(copy: Path) -> str | None:
    """What the header of a copy says, or None if there is none."""
    try:
        with soundfile.SoundFile(os.fsencode(copy)) as file:  # type: ignore[arg-type]
            return str(file.comment)
    except (OSError, soundfile.LibsndfileError):
        return None


def _open(path: Path) -> soundfile.SoundFile:
    # As bytes, because a name need not be UTF-8.
    name = os.fsencode(path)
    return soundfile.SoundFile(name, "w", SAMPLE_RATE, 1, "PCM_16", format="WAV")  # type: ignore[arg-type]


def _of_copy(utterance: Utterance, copy: Path) -> Utterance:
    return replace(
        utterance,
        path=copy,
        start=utterance.start * SAMPLE_RATE // utterance.sample_rate,
        num_samples=utterance.num_output_samples,
        sample_rate=SAMPLE_RATE,
    )
