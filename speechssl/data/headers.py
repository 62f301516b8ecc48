"""The headers of many recordings, each read once and in parallel."""

import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from speechssl.data.recording import AudioInfo, audio_info
from speechssl.data.remote import object_size
from speechssl.data.scan import parallel_map
from speechssl.data.sources import translated
from speechssl.errors import AudioError

Header = AudioInfo | AudioError

_AT_ONCE = 1000  # what an interruption can lose
_NOTE = re.compile(r"(.+)\t(\d+) (\d+) (\d+)")


def read_headers(
    paths: Iterable[str], description: str = "reading headers", *, decode: bool = True
) -> dict[str, Header]:
    """Read the header of each recording, or find why it has none; ``decode`` is as for `audio_info`."""
    distinct = list(dict.fromkeys(paths))
    return dict(zip(distinct, parallel_map(partial(_read, decode=decode), distinct, description), strict=True))


def read_noted_headers(paths: Iterable[str], notes: Path) -> dict[str, Header]:
    """Read headers as `read_headers` does, and note them in a file, so that an interrupted reading resumes.

    A recording is known by its path, size and time of change: one that has changed is read again.
    """
    known = _read_notes(notes)
    keys = {path: _key(path) for path in paths}
    unknown = [path for path, key in keys.items() if key not in known]
    errors: dict[str, AudioError] = {}
    with notes.open("a", encoding="utf-8") as file:
        for first in range(0, len(unknown), _AT_ONCE):
            done = f"reading headers, {first} of {len(unknown)} done"
            for path, header in read_headers(unknown[first : first + _AT_ONCE], done).items():
                if isinstance(header, AudioError):
                    errors[path] = header
                else:
                    known[keys[path]] = header
                    file.write(f"{keys[path]}\t{header.num_samples} {header.sample_rate} {header.num_channels}\n")
            file.flush()
    return {path: errors[path] if path in errors else known[key] for path, key in keys.items()}


def read_size(url: str) -> int | AudioError:
    """Ask for the bytes of an object, or find why it has none."""
    try:
        with translated(url):
            return object_size(url)
    except AudioError as error:
        return error


def _read(path: str, decode: bool) -> Header:
    try:
        return audio_info(path, decode=decode)
    except AudioError as error:
        return error


def _read_notes(notes: Path) -> dict[str, AudioInfo]:
    if not notes.exists():
        return {}
    lines = notes.read_bytes().decode("utf-8", "replace").split("\n")
    found = map(_NOTE.fullmatch, lines[:-1])  # a kill can cut the last line short
    return {note[1]: AudioInfo(int(note[2]), int(note[3]), int(note[4])) for note in found if note}


def _key(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116, which makes an object
    except (OSError, ValueError):
        return path  # reading says what is wrong
    return f"{status.st_size} {status.st_mtime_ns} {path!a}"
