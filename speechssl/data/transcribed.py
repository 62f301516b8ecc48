"""The record of what ``transcribe-audio`` wrote into a folder: what a model heard is not taken for what is said."""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

RECORD = ".transcribed.jsonl"
"""In an output folder: the settings that its files are made with, then a line for each recording with its files.

It is only ever appended to, so several runs may write into one folder. Other settings, after ``--overwrite``, begin a
new record: files of those before need not be made from the recordings as they are, but are still what a model heard.
"""


def digest_of(content: bytes) -> str:
    """Return what tells the content of a file from others."""
    return hashlib.sha256(content).hexdigest()


def read_lines(record: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a record, without any that was interrupted.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    for text in record.read_text("utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def is_transcript(file: Path) -> bool:
    """Whether a file is as ``transcribe-audio`` wrote it, with ``--beside`` or below its output folder."""
    file = file.absolute()
    for folder in file.parents:
        record = folder / RECORD
        try:
            status = record.stat()
            digests = _read_digests(record, status.st_mtime_ns, status.st_size)
            if digest_of(file.read_bytes()) in digests.get(file.relative_to(folder).as_posix(), ()):
                return True
        except (OSError, UnicodeDecodeError):  # there is none
            continue
    return False


@lru_cache(maxsize=100)
def _read_digests(record: Path, _modified: int, _size: int) -> dict[str, set[str]]:
    """Return what every file was when it was written; the last two arguments say when to read again."""
    digests: dict[str, set[str]] = {}
    for line in read_lines(record):
        files = line.get("files")
        for name, digest in files.items() if isinstance(files, dict) else ():
            digests.setdefault(name, set()).add(digest)
    return digests
