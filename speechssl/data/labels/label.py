"""A label: what is said in a recording, or in a part of one, as people write it down."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.errors import ManifestError
from speechssl.files import read_table

NAMES = {
    "path": ("path", "file", "filename", "file_name", "audio", "audio_path", "audio_filepath"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "language": ("language", "locale", "lang"),
    "start": ("start", "offset"),
    "end": ("end",),
    "duration": ("duration",),
}
"""The columns of a table and the keys of JSON that are read; the first that exists counts, in any letter case."""

Drop = Callable[[str, str], None]
"""Called with a reason of a few words, the same for all alike, and with what cannot be used and where it stands."""

_ENDLESS_SECONDS = 1e9
_CLOCK = re.compile(r"(?:([0-9]{1,4}):)?([0-9]{1,4}):([0-5]?[0-9](?:[.,][0-9]*)?)")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,5})?")


class UnusableError(ValueError):
    """Says why a label cannot be used, in the same few words for all alike."""


@dataclass(frozen=True, slots=True)
class Label:
    """What is said in a recording, or in a part of one."""

    where: str  # the file and line that say so
    paths: tuple[str, ...]  # what the recording is called there; the first by which one is found counts
    text: str
    speaker: str | None = None
    language: str | None = None
    start: float = 0.0  # in seconds, as the end
    end: float | None = None  # None is the end of the recording


def make_label(where: str, values: Mapping[str, Any], has_decimal_comma: bool = False) -> Label:
    """Make a label of a row by the names of its columns.

    Raises:
        UnusableError: it names no recording, or its times make no span.
    """
    by_name = {key.strip().lower(): value for key, value in values.items()}
    found = {
        field: next((by_name[name] for name in names if by_name.get(name) not in (None, "")), None)
        for field, names in NAMES.items()
    }
    if any(isinstance(value, dict | list) for value in found.values()):
        raise UnusableError("value that is neither text nor number")
    path = "" if found["path"] is None else str(found["path"])
    if not path.strip():
        raise UnusableError("row without a recording")
    text, speaker, language = (single_spaced(found[field]) for field in ("text", "speaker", "language"))
    start, end, duration = (parse_seconds(found[field], has_decimal_comma) for field in ("start", "end", "duration"))
    start = start or 0.0
    if end is None and duration is not None:
        end = start + duration
    return make_span(where, (path,), text, start, end, speaker or None, language or None)


def make_span(
    where: str,
    paths: tuple[str, ...],
    text: str,
    start: float,
    end: float | None,
    speaker: str | None = None,
    language: str | None = None,
) -> Label:
    """Make a label of a part of a recording.

    Raises:
        UnusableError: it has no length.
    """
    if end is not None and end <= start:
        raise UnusableError("times that make no span")
    return Label(where, paths, text, speaker, language, start, end)


def parse_seconds(value: Any, has_decimal_comma: bool = False) -> float | None:
    """Return a number of seconds, also from ``hh:mm:ss`` or ``mm:ss``; None if there is none.

    Raises:
        UnusableError: this is no time.
    """
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    seconds = math.nan
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, rest = clock.groups()
        if hours is None or int(minutes) < 60:
            seconds = 3600 * int(hours or 0) + 60 * int(minutes) + float(rest.replace(",", "."))
    else:
        text = text.replace(",", ".") if has_decimal_comma else text
        seconds = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not 0 <= seconds < _ENDLESS_SECONDS:
        raise UnusableError("times that make no span")
    return seconds


def single_spaced(value: Any) -> str:
    """Return a text with single spaces for all white space; an empty one for None."""
    return "" if value is None else " ".join(str(value).split())


def read_content(file: Path) -> str:
    """Return the text of a file in UTF-8 or UTF-16, without byte order mark.

    Raises:
        ManifestError: it cannot be read, or is in another encoding; nobody knows which, so that nothing is guessed.
    """
    return decode_text(file, read_table(file))


def decode_text(file: Path, content: bytes) -> str:
    """Return the text of a file's content, as `read_content`."""
    try:
        return content.decode(_find_encoding(content))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        advice = "convert the file, if it is in cp1252 by: iconv -f cp1252 -t utf-8"
        found = f"found the byte 0x{content[error.start]:02x}"
        raise ManifestError(f"{file}:{line}: expected UTF-8 or UTF-16, {found}: {advice}") from None


def split_lines(content: str) -> list[str]:
    """Return the lines of a text; line separators that may stand in a text do not end any."""
    return re.split("\r\n|\n|\r", content)


def shorten(text: str) -> str:
    """Return the beginning of a text for a message."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def drop_unusable(drop: Drop, where: str, make: Callable[[], Label]) -> Sequence[Label]:
    """Return a label, or none and drop it if it cannot be used."""
    try:
        return [make()]
    except UnusableError as error:
        drop(str(error), where)
        return []


def _find_encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    # Every other byte of most scripts' UTF-16 is one of few, and of spaces and digits it is zero.
    even, odd = content[:1000:2].count(0), content[1:1000:2].count(0)
    if max(even, odd) > len(content[:1000]) // 10 and min(even, odd) == 0:
        return "utf-16-be" if even else "utf-16-le"
    return "utf-8-sig"
