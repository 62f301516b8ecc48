"""Manifests: which spans of which recordings make a split, and what is said in them.

A manifest is a TSV file. Line 1 is the root folder of the recordings (a relative root counts from the manifest's own
folder), line 2 names the columns, and every other line is an utterance. fairseq's manifests of two columns without
a header are read too, with the labels of a ``.ltr`` or ``.wrd`` file beside them.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.data.audio import SAMPLE_RATE, Waveform, read_audio, resampled_length
from speechssl.errors import ManifestError
from speechssl.files import write_text_file

IMPOSSIBLE_IN_CELLS = re.compile("[\t\r\n\ud800-\udfff]")
"""Tabs, line breaks, and what stands for the bytes of a file name that is no UTF-8."""

_REQUIRED = ("path", "num_samples")
_INTEGERS = {"num_samples": 1, "start": 0, "sample_rate": 1}  # with the least value allowed
_TEXTS = ("text", "speaker", "language")
_COLUMNS = ("path", "num_samples", "start", "sample_rate", *_TEXTS)


@dataclass(frozen=True, slots=True)
class Utterance:
    """A span of a recording.

    Attributes:
        path: The recording; it may end in ``:offset:bytes`` for a file inside an uncompressed archive.
        num_samples: Samples in the span, at the recording's own rate.
        start: First sample of the span, at the recording's own rate.
        sample_rate: The recording's own rate.
        text: What is said, or None if unknown.
        speaker: Who says it, or None if unknown.
        language: In which language, or None if unknown.
    """

    path: Path
    num_samples: int
    start: int = 0
    sample_rate: int = SAMPLE_RATE
    text: str | None = None
    speaker: str | None = None
    language: str | None = None

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_samples / self.sample_rate

    @property
    def num_output_samples(self) -> int:
        """Samples of its waveform, at 16 kHz."""
        return resampled_length(self.num_samples, self.sample_rate)


@dataclass(frozen=True)
class Manifest:
    """The utterances of a split, in the order of the file.

    Attributes:
        path: The file they were read from.
        utterances: One or more utterances.
        digest: SHA-256 of everything that was read, to tell whether a manifest has changed.
        root: The folder of the recordings, as the file has it.
        first_line: Line of the first utterance, counted from 1.
    """

    path: Path
    utterances: tuple[Utterance, ...]
    digest: str
    root: Path = Path()
    first_line: int = 3

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Utterance:
        return self.utterances[index]

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self.utterances)

    def where(self, index: int) -> str:
        """Where the utterance stands, as ``file:line``."""
        return f"{self.path}:{self.first_line + index}"


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest, of this package's form or fairseq's; the recordings are not looked at.

    Raises:
        ManifestError: the file is missing, empty or malformed, or its root folder is missing; the message names
            the line.
    """
    path = Path(path)
    content, lines = _read_lines(path)
    if not lines:
        raise ManifestError(f"{path}: expected a manifest, found an empty file")
    root = path.parent / lines[0]
    if not lines[0] or not root.is_dir():
        raise ManifestError(f"{path}:1: expected the root folder of the recordings, found {lines[0]!r}")
    has_header = len(lines) > 1 and not re.fullmatch(r"[^\t]+\t[0-9]+", lines[1])
    first_line = 3 if has_header else 2
    rows = lines[first_line - 1 :]
    if not rows:
        raise ManifestError(f"{path}: expected at least one utterance, found none")
    columns = _parse_header(path, lines[1]) if has_header else _REQUIRED
    utterances = tuple(
        _parse_row(f"{path}:{number}", columns, row, root) for number, row in enumerate(rows, first_line)
    )
    if not has_header:
        labels, texts = _read_fairseq_texts(path, len(rows))
        content += labels
        utterances = tuple(
            Utterance(utterance.path, utterance.num_samples, text=text or None)
            for utterance, text in zip(utterances, texts, strict=True)
        )
    return Manifest(path, utterances, hashlib.sha256(content).hexdigest(), root, first_line)


def write_manifest(path: str | os.PathLike[str], utterances: Sequence[Utterance], root: str | os.PathLike[str]) -> None:
    """Write a manifest, replacing an old one at once; columns in which every cell would be empty are left out.

    Args:
        path: The file to write.
        utterances: One or more utterances, whose paths are below the root.
        root: The folder from which the paths are written; written as it is, so a relative root counts from the
            manifest's folder.

    Raises:
        ManifestError: there is no utterance, one is not below the root, or a cell has a tab or line break; or the
            file cannot be written.
    """
    path = Path(path)
    if not utterances:
        raise ManifestError(f"{path}: expected at least one utterance, found none")
    defaults = {"start": 0, "sample_rate": SAMPLE_RATE, "text": None, "speaker": None, "language": None}
    columns = [
        name
        for name in _COLUMNS
        if name not in defaults or any(getattr(utterance, name) != defaults[name] for utterance in utterances)
    ]
    lines = [_checked_cell(path, os.fspath(root)), "\t".join(columns)]
    for utterance in utterances:
        cells = {name: getattr(utterance, name) for name in columns}
        cells["path"] = path_below(path.parent / root, utterance.path, str(path))
        lines.append(
            "\t".join("" if cells[name] is None else _checked_cell(path, str(cells[name])) for name in columns)
        )
    try:
        write_text_file(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from None


def read_utterance(utterance: Utterance) -> Waveform:
    """Read an utterance's waveform: (num_output_samples,) float32 mono at 16 kHz.

    Raises:
        AudioError: the recording cannot be read or is not what the utterance says, its rate included.
    """
    return read_audio(
        utterance.path,
        start=utterance.start,
        num_samples=utterance.num_samples,
        sample_rate=utterance.sample_rate,
    )


def path_below(root: Path, path: Path, where: str) -> str:
    """Return the path of a recording from the root on.

    Raises:
        ManifestError: it is not below the root; the message begins with ``where``.
    """
    relative = Path(os.path.relpath(path, root))  # unlike Path.resolve() it does not follow links out of the root
    if relative.parts[:1] in ((), (os.pardir,)):
        raise ManifestError(f"{where}: expected a recording below {root}, found {path}")
    return relative.as_posix()


def _read_lines(path: Path) -> tuple[bytes, list[str]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path}: expected a file, found none") from None
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path}:{line}: expected UTF-8, found the byte 0x{content[error.start]:02x}") from None
    # Not splitlines(), which also splits at separators that a text may contain.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not lines[-1]:
        del lines[-1]
    return content, lines


def _parse_header(path: Path, line: str) -> list[str]:
    columns = line.split("\t")
    for column in columns:
        if column not in _COLUMNS:
            raise ManifestError(f"{path}:2: expected column names ({', '.join(_COLUMNS)}), found {column!r}")
        if columns.count(column) > 1:
            raise ManifestError(f"{path}:2: expected each column once, found {column!r} {columns.count(column)} times")
    for column in _REQUIRED:
        if column not in columns:
            raise ManifestError(f"{path}:2: expected a column {column!r}, found {', '.join(columns)}")
    return columns


def _parse_row(where: str, columns: Sequence[str], line: str, root: Path) -> Utterance:
    cells = line.split("\t")
    if len(cells) != len(columns):
        names = ", ".join(columns)
        raise ManifestError(f"{where}: expected {len(columns)} tab-separated columns ({names}), found {len(cells)}")
    values: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=True):
        if column in _INTEGERS:
            if not cell and column not in _REQUIRED:
                continue
            values[column] = _parse_integer(where, column, cell)
        elif column == "path":
            if not cell:
                raise ManifestError(f"{where}: expected a path, found nothing")
            values[column] = root / cell
        else:
            values[column] = cell or None
    return Utterance(**values)


def _parse_integer(where: str, column: str, cell: str) -> int:
    least = _INTEGERS[column]
    value = int(cell) if re.fullmatch(r"-?[0-9]{1,18}", cell) else None
    if value is None or value < least:
        raise ManifestError(f"{where}: expected {column} to be an integer of at least {least}, found {cell!r}")
    return value


def _read_fairseq_texts(path: Path, num_rows: int) -> tuple[bytes, list[str]]:
    """The labels beside a fairseq manifest: their bytes, and a text a row ('' where there are none)."""
    for suffix in (".ltr", ".wrd"):
        labels = path.with_suffix(suffix)
        if labels.exists():
            content, lines = _read_lines(labels)
            if len(lines) != num_rows:
                raise ManifestError(f"{labels}: expected {num_rows} lines, one a row of {path}, found {len(lines)}")
            if suffix == ".ltr":
                lines = [line.replace(" ", "").replace("|", " ") for line in lines]
            return content, [line.strip() for line in lines]
    return b"", [""] * num_rows


def _checked_cell(manifest: Path, cell: str) -> str:
    if IMPOSSIBLE_IN_CELLS.search(cell):
        raise ManifestError(f"{manifest}: expected cells in UTF-8 without tabs and line breaks, found {cell!r}")
    return cell
