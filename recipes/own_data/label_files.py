"""Read texts as people keep them into rows: files beside the recordings, tables, JSON lines, Kaldi's folders."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.data.scan import read_text
from speechssl.errors import ManifestError

NAMES = {
    "path": ("path", "file", "filename", "file_name", "audio", "audio_path", "audio_filepath"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "start": ("start", "offset"),
    "end": ("end",),
    "duration": ("duration",),
}
"""The columns of a table and the keys of JSON that are read; the first that exists counts, in any letter case."""

ACCEPTED = (
    f"a csv or tsv whose header has one of {'/'.join(NAMES['path'])} and one of {'/'.join(NAMES['text'])}, "
    "JSON lines with these names, or a Kaldi folder (wav.scp, text)"
)
_ENDLESS_SECONDS = 1e9
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

Drop = Callable[[str, str], None]


class UnusableError(ValueError):
    """Says why a line cannot be used, in the same few words for all alike."""


@dataclass(frozen=True, slots=True)
class Row:
    """Hold what is said in a recording, or a part of one, as it is written down.

    Attributes:
        where: The file and line that say so.
        path: The recording as named there.
        text: What is said.
        speaker: Who says it, or None if unknown.
        start: Where the part begins, in seconds.
        end: Where the part ends, in seconds; None is the end of the recording.
    """

    where: str
    path: str
    text: str
    speaker: str | None = None
    start: float = 0.0
    end: float | None = None


def read_labels(labels: Path, drop: Drop) -> list[Row]:
    """Read labels of any of the accepted forms; lines that cannot be used are dropped.

    Args:
        labels: A file or a folder.
        drop: Called with a reason, and with where and what.

    Raises:
        ManifestError: there is no such file, it is of another form, or none of its recordings is a file.
    """
    if labels.is_dir():
        if not (labels / "wav.scp").is_file():
            raise ManifestError(f"LABELS={labels}: expected {ACCEPTED}, found a folder without wav.scp")
        return list(_read_kaldi(labels, drop))
    if not labels.exists():
        raise ManifestError(f"LABELS={labels}: expected {ACCEPTED}, found none")
    content = _read_content(labels)
    start = content.lstrip()[:1]
    if start == "{":
        return list(_read_json_lines(labels, content, drop))
    delimiter = _find_delimiter(content)
    if start == "[" or delimiter is None:
        first_line = content.lstrip().partition("\n")[0]
        raise ManifestError(f"LABELS={labels}: expected {ACCEPTED}, found {_shortened(first_line)}")
    return list(_read_table(labels, content, delimiter, drop))


def read_texts_beside(recordings: Sequence[Path], drop: Drop) -> list[Row]:
    """Read the text files of the recordings' own names: ``talk.txt`` beside ``talk.wav``."""
    rows = []
    for recording in recordings:
        file = recording.with_suffix(".txt")
        if file.is_file():
            try:
                rows.append(Row(str(file), str(recording), read_text(file) or ""))
            except ManifestError as error:
                drop("text that cannot be read", str(error))
    return rows


def _read_table(file: Path, content: str, delimiter: str, drop: Drop) -> Iterator[Row]:
    # Tables with tabs or bars seldom quote, and a lone quotation mark in a text would swallow the lines that follow.
    quotes = delimiter in ",;" or content.lstrip().startswith('"')
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, quoting=quoting)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            drop("line that cannot be parsed", f"{file}:{first}: {error}")
            continue
        if cells is None:
            return
        where = f"{file}:{first}" + (f"-{reader.line_num}" if reader.line_num > first else "")
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = cells
        elif len(cells) != len(header):
            drop("row with more or fewer cells than the header", f"{where}: {len(cells)} for {len(header)}")
        else:
            yield from _checked_row(where, dict(zip(header, cells, strict=True)), drop)


def _read_json_lines(file: Path, content: str, drop: Drop) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            yield from _checked_row(where, values, drop)
        else:
            drop("line that is no JSON object", f"{where}: {_shortened(line)}")


def _read_kaldi(folder: Path, drop: Drop) -> Iterator[Row]:
    recordings = _read_pairs(folder / "wav.scp", drop)
    commands = [name for name, (_, path) in recordings.items() if path.endswith("|") or path.startswith("|")]
    if commands and len(commands) == len(recordings):
        raise ManifestError(
            f"{folder / 'wav.scp'}: expected the paths of recordings, found commands only, which are not run "
            f"({_shortened(recordings[commands[0]][1])}): write their output to files"
        )
    for name in commands:
        where, path = recordings.pop(name)
        drop("recording that a command makes, which is not run", f"{where}: {_shortened(path)}")
    segments = _read_pairs(folder / "segments", drop) if (folder / "segments").is_file() else None
    speakers = _read_pairs(folder / "utt2spk", drop) if (folder / "utt2spk").is_file() else {}
    for utterance, (where, text) in _read_pairs(folder / "text", drop).items():
        values: dict[str, Any] = {"text": text, "speaker": speakers.get(utterance, ("", None))[1]}
        recording = utterance
        if segments is not None:
            fields = segments[utterance][1].split() if utterance in segments else []
            if len(fields) != 3:
                drop("text without a segment", f"{where}: {utterance}")
                continue
            recording, values["start"], values["end"] = fields
            if values["end"].startswith("-"):  # until the end
                values["end"] = None
        if recording not in recordings:
            if recording not in commands:
                drop("text without a recording in wav.scp", f"{where}: {recording}")
            continue
        yield from _checked_row(where, values | {"path": recordings[recording][1]}, drop)


def _read_pairs(file: Path, drop: Drop) -> dict[str, tuple[str, str]]:
    """Return the lines of one of Kaldi's files: for each name where it stands, and what follows it."""
    pairs: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(_read_content(file).split("\n"), 1):
        fields = line.split(maxsplit=1)
        if not fields:
            continue
        where = f"{file}:{number}"
        if _has_stray_bytes(line):
            drop("line that is no UTF-8", where)
        elif fields[0] in pairs:
            drop("name that occurs twice", f"{where}: {fields[0]}")
        else:
            pairs[fields[0]] = where, fields[1].strip() if len(fields) > 1 else ""
    return pairs


def _checked_row(where: str, values: Mapping[str, Any], drop: Drop) -> Iterator[Row]:
    try:
        yield _row(where, values)
    except UnusableError as error:
        drop(str(error), where)


def _row(where: str, values: Mapping[str, Any]) -> Row:
    by_name = {key.strip().lower(): value for key, value in values.items()}
    found = {
        field: next((by_name[name] for name in names if by_name.get(name) not in (None, "")), None)
        for field, names in NAMES.items()
    }
    path, text, speaker = (_text(found[field]) for field in ("path", "text", "speaker"))
    if not path:
        raise UnusableError("row without a recording")
    start, end, duration = (_seconds(found[field]) for field in ("start", "end", "duration"))
    start = start or 0.0
    if end is None and duration is not None:
        end = start + duration
    if end is not None and end <= start:
        raise UnusableError("times that make no span")
    return Row(where, path, text, speaker or None, start, end)


def _text(value: Any) -> str:
    if isinstance(value, dict | list):
        raise UnusableError("value that is neither text nor number")
    text = "" if value is None else " ".join(str(value).split())
    if _has_stray_bytes(text):
        raise UnusableError("line that is no UTF-8")
    return text


def _seconds(value: Any) -> float | None:
    if value is None or not str(value).strip():
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < _ENDLESS_SECONDS or isinstance(value, bool):
        raise UnusableError("times that make no span")
    return seconds


def _find_delimiter(content: str) -> str | None:
    """Return what separates the columns, or None if the first line is no header."""
    header = content.lstrip().partition("\n")[0].rstrip("\r")
    for delimiter in "\t,;|":
        try:
            columns = {column.strip().lower() for column in next(csv.reader([header], delimiter=delimiter), [])}
        except csv.Error:
            return None
        if columns.intersection(NAMES["path"]) and columns.intersection(NAMES["text"]):
            return delimiter
    return None


def _read_content(file: Path) -> str:
    """Return a file's text without byte order mark; bytes that are not UTF-8 become surrogates, dropped later."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{file}: expected a file, found none") from None
    except OSError as error:
        raise ManifestError(f"{file}: {error.strerror or error}") from None
    if content.startswith(_UTF16_MARKS):
        raise ManifestError(f"{file}: expected UTF-8, found UTF-16: save it as UTF-8")
    return content.decode("utf-8-sig", "surrogateescape")


def _has_stray_bytes(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _shortened(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
