"""Recordings of any kind -> 16 kHz WAV files, once, so that training need not decode and resample in every epoch."""

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.levels import AudioWarning
from speechssl.data.manifest import Manifest, write_manifest
from speechssl.data.paths import path_below
from speechssl.data.recording import Recording
from speechssl.data.scan import parallel_map
from speechssl.errors import AudioError, ManifestError
from speechssl.files import path_inside, replaced_file


def unpack_manifests(manifests: Sequence[Manifest], folder: Path) -> list[AudioError]:
    """Decode every recording that manifests name, and write manifests of the copies.

    A copy is mono, of 16 bits and as long as the recording. One that is there already is kept, so an interrupted
    unpacking resumes, unless it is of another recording or the recording has changed, which a comment in the copy
    tells. Spans keep their times: from another rate they are rounded to samples at 16 kHz.

    Args:
        manifests: With file names that differ.
        folder: Where the manifests go, by their names; the copies go into ``audio`` below it.

    Returns:
        What is wrong with each recording that cannot be read; its utterances are left out.

    Raises:
        SpeechSSLError: a manifest or a recording would be overwritten, a manifest names a recording outside its root,
            nothing is left of one, or something cannot be written. Nothing is written before all names are checked.
    """
    names = [manifest.path.name for manifest in manifests]
    for name, manifest in zip(names, manifests, strict=True):
        if names.count(name) > 1:
            raise ManifestError(f"expected manifests with different names, found {name} {names.count(name)} times")
        if (folder / name).exists() and manifest.path.samefile(folder / name):
            raise ManifestError(f"{manifest.path}: expected another folder than its own to unpack to")
    copies = _name_copies(manifests, folder / "audio")
    pairs = sorted(set(copies.values()))
    results = dict(zip(pairs, parallel_map(_unpack, pairs, "unpacking"), strict=True))
    for manifest in manifests:
        utterances = [
            replace(
                utterance,
                path=str(copies[utterance.path][1]),
                start=utterance.start * SAMPLE_RATE // utterance.sample_rate,
                num_samples=utterance.num_output_samples,
                sample_rate=SAMPLE_RATE,
            )
            for utterance in manifest
            if results[copies[utterance.path]] is None
        ]
        write_manifest(folder / manifest.path.name, utterances, ".")
    return [error for error in results.values() if error is not None]


def _name_copies(manifests: Sequence[Manifest], folder: Path) -> dict[str, tuple[str, Path]]:
    """Return for each path of the manifests a recording, once however it is written, and its copy in the folder."""
    first: dict[str, tuple[str, str]] = {}  # how a recording is written first, and where, by its absolute path
    absolute: dict[str, str] = {}
    for manifest in manifests:
        for index, utterance in enumerate(manifest):
            if utterance.path not in absolute:
                path_below(manifest.root, utterance.path, manifest.where(index))
                name = absolute[utterance.path] = os.path.abspath(utterance.path)  # noqa: PTH100, links stay
                first.setdefault(name, (utterance.path, manifest.where(index)))
    above = os.path.commonpath([os.path.dirname(name) for name in first])  # noqa: PTH120
    pairs = {}
    for name, (path, where) in first.items():
        copy = path_inside(folder, f"{os.path.relpath(name, above)}.wav", where)
        if str(copy.absolute()) in first:
            raise ManifestError(f"{where}: the copy of {path} would overwrite the recording {copy}")
        pairs[name] = (path, copy)
    return {path: pairs[name] for path, name in absolute.items()}


def _unpack(pair: tuple[str, Path]) -> AudioError | None:
    path, copy = pair
    source = _identity(path)
    with suppress(OSError, soundfile.LibsndfileError), _open(copy) as file:
        if file.comment == source:
            return None
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with (
            replaced_file(copy) as temporary,
            warnings.catch_warnings(),
            _open(temporary, "w", SAMPLE_RATE, 1, "PCM_16", format="WAV") as file,
        ):
            warnings.simplefilter("ignore", AudioWarning)  # what should be mended is not this program's business
            file.comment = source
            for block in Recording(path):
                file.write(block)
    except AudioError as error:
        return error
    except (OSError, soundfile.LibsndfileError) as error:
        raise ManifestError(f"{copy}: {getattr(error, 'strerror', None) or error}") from None
    return None


def _identity(path: str) -> str:
    """A digest of which file a recording is, its size and its time of change."""
    file = Path(os.path.realpath(path))
    archive = Path(re.sub(r":\d+:\d+$", "", str(file)))  # that it may be a part of
    states = [place.stat() for place in (file, archive) if place.exists()]
    changed = [(state.st_size, state.st_mtime_ns) for state in states]
    return hashlib.sha256(f"{changed} {file}".encode("utf-8", "surrogateescape")).hexdigest()


def _open(path: Path, *arguments: Any, **options: Any) -> soundfile.SoundFile:
    # As bytes, because a name need not be UTF-8.
    return soundfile.SoundFile(os.fsencode(path), *arguments, **options)  # type: ignore[arg-type]
