"""Manifests: which spans of which recordings make a split, and what is said in them.

A manifest is a TSV file. Line 1 is the root folder of the recordings (a relative root counts from the manifest's own
folder) or a URL, line 2 names the columns, and every other line is an utterance. fairseq's manifests of two columns
without a header are read too, with the labels of a ``.ltr`` or ``.wrd`` file beside them.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechssl.data.audio import SAMPLE_RATE, Waveform, join, resample_blocks, resampled_length
from speechssl.data.columns import Array, Columns, join_parts, pack_texts
from speechssl.data.paths import absolute_root, is_url, join_root, path_below
from speechssl.data.recording import read_span
from speechssl.errors import ManifestError
from speechssl.files import read_table, write_text_file

IMPOSSIBLE_IN_CELLS = re.compile("[\t\r\n\ud800-\udfff]")
"""Tabs, line breaks, and what stands for the bytes of a file name that is no UTF-8."""

_REQUIRED = ("path", "num_samples")
_INTEGERS = {  # with the least and the largest value allowed
    "num_samples": (1, 10**15, np.int64),
    "start": (0, 10**15, np.int64),
    "sample_rate": (1, 2**31 - 1, np.int32),
}
_DEFAULTS = {"start": 0, "sample_rate": SAMPLE_RATE, "text": None, "speaker": None, "language": None}
_COLUMNS = (*_REQUIRED, *_DEFAULTS)
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_ROWS_AT_ONCE = 1 << 14  # of which there are objects at a time


@dataclass(frozen=True, slots=True)
class Utterance:
    """A span of a recording, and what is known of it."""

    path: str  # or a URL; may end in ``:offset:bytes`` for a file inside an uncompressed archive
    num_samples: int  # of the span, as its start at the recording's own rate
    start: int = 0
    sample_rate: int = SAMPLE_RATE
    text: str | None = None
    speaker: str | None = None
    language: str | None = None

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.num_samples / self.sample_rate

    @property
    def num_output_samples(self) -> int:
        """The length of its waveform, at 16 kHz."""
        return resampled_length(self.num_samples, self.sample_rate)


@dataclass(frozen=True, eq=False)
class Manifest:
    """The utterances of a split, in the order of the file; each is made when it is asked for."""

    path: Path
    root: str  # of the paths
    digest: str  # SHA-256 of everything that was read, to tell whether it has changed
    first_line: int  # of the utterances, counted from 1
    columns: Columns  # the fields of `Utterance`; texts only if the file has them

    def __len__(self) -> int:
        return len(self.columns["num_samples"])

    def __getitem__(self, index: int) -> Utterance:
        row = range(len(self))[index]
        return next(self._rows(row, row + 1))

    def __iter__(self) -> Iterator[Utterance]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._rows(first, min(first + _ROWS_AT_ONCE, len(self)))

    def _rows(self, first: int, stop: int) -> Iterator[Utterance]:
        columns = self.columns
        paths = (join_root(self.root, path or "") for path in columns.texts("path", first, stop))
        numbers = (columns[name][first:stop].tolist() for name in _INTEGERS)
        texts = (columns.texts(name, first, stop) for name in ("text", "speaker", "language"))
        return map(Utterance, paths, *numbers, *texts)

    @property
    def has_texts(self) -> bool:
        """Whether texts are stated: an utterance without one is then one in which nothing is said."""
        return "text ends" in self.columns.arrays

    def where(self, index: int) -> str:
        """Return where the utterance stands, as ``file:line``."""
        return f"{self.path}:{self.first_line + index}"

    @property
    def seconds(self) -> npt.NDArray[np.float64]:
        """The duration of each utterance."""
        return np.asarray(self.columns["num_samples"] / self.columns["sample_rate"])

    @property
    def num_output_samples(self) -> npt.NDArray[np.int64]:
        """The samples of each waveform, at 16 kHz, as int64."""
        # In two steps, of which none overflows.
        whole, rest = np.divmod(self.columns["num_samples"], self.columns["sample_rate"])
        return np.asarray(whole * SAMPLE_RATE - (-rest * SAMPLE_RATE // self.columns["sample_rate"]))


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest, of this package's form or fairseq's; the recordings are not looked at."""
    path = Path(path)
    content, lines = _read_lines(path)
    if not lines:
        raise ManifestError(f"{path}: expected a manifest, found an empty file")
    root = absolute_root(path.parent, lines[0])
    if not lines[0] or not (is_url(root) or Path(root).is_dir()):
        raise ManifestError(f"{path}:1: expected the root folder of the recordings, found {lines[0]!r}")
    has_header = len(lines) > 1 and not re.fullmatch(r"[^\t]+\t[0-9]+", lines[1])
    first_line = 3 if has_header else 2
    rows = lines[first_line - 1 :]
    if not rows:
        raise ManifestError(f"{path}: expected at least one utterance, found none")
    names = _parse_header(path, lines[1]) if has_header else _REQUIRED
    columns = join_parts(
        _parse_rows(path, first_line + first, names, rows[first : first + _ROWS_AT_ONCE])
        for first in range(0, len(rows), _ROWS_AT_ONCE)
    )
    if not has_header:
        labels, texts = _read_fairseq_texts(path, len(rows))
        content += labels
        if texts is not None:
            columns.arrays |= pack_texts("text", (text or None for text in texts))
    prefix = "" if root == "." else root
    return Manifest(path, prefix, hashlib.sha256(content).hexdigest(), first_line, columns)


def is_manifest(path: str | os.PathLike[str]) -> bool:
    """Tell a manifest from another table by its first line, the root folder; what cannot be read counts as one."""
    try:
        with Path(path).open("rb") as file:
            return Path(path).suffix == ".tsv" and b"\t" not in file.readline()
    except OSError:
        return True


def write_manifest(path: str | os.PathLike[str], utterances: Sequence[Utterance], root: str | os.PathLike[str]) -> None:
    """Write a manifest atomically; columns in which every cell would be empty are left out.

    The root is written as it is: a relative one counts from the manifest's folder. All files must be below it, URLs
    need not.
    """
    path = Path(path)
    if not utterances:
        raise ManifestError(f"{path}: expected at least one utterance, found none")
    columns = [
        name
        for name in _COLUMNS
        if name not in _DEFAULTS or any(getattr(utterance, name) != _DEFAULTS[name] for utterance in utterances)
    ]
    lines = [_checked_cell(path, os.fspath(root)), "\t".join(columns)]
    for utterance in utterances:
        cells = {name: getattr(utterance, name) for name in columns}
        cells["path"] = path_below(absolute_root(path.parent, root), utterance.path, str(path))
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
    waveform, _ = read_span(utterance.path, utterance.start, utterance.num_samples, sample_rate=utterance.sample_rate)
    return join(resample_blocks([waveform], utterance.sample_rate))


def _read_lines(path: Path) -> tuple[bytes, list[str]]:
    content = read_table(path)
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


def _parse_rows(path: Path, first_line: int, names: Sequence[str], rows: Sequence[str]) -> dict[str, Array]:
    """Return the columns of some rows."""
    cells = [row.split("\t") for row in rows]
    try:
        columns = dict(zip(names, zip(*cells, strict=True), strict=True))
        if not all(columns["path"]) or any("\0" in cell for cell in columns["path"]):
            raise ValueError
        arrays = {name: _parse_integers(name, columns.get(name, ("",) * len(rows))) for name in _INTEGERS}
    except ValueError:  # somewhere: a column at a time is fast, and the first line that is wrong is to be named
        for number, row in enumerate(cells, first_line):
            _check_row(f"{path}:{number}", names, row)
        raise
    for name in columns.keys() - _INTEGERS.keys():
        arrays |= pack_texts(name, (cell or None for cell in columns[name]))
    return arrays


def _parse_integers(name: str, cells: Sequence[str]) -> Array:
    """Return the numbers of a column.

    Raises:
        ValueError: one is not an integer in the column's range.
    """
    least, most, dtype = _INTEGERS[name]
    if name in _DEFAULTS:
        cells = [cell or str(_DEFAULTS[name]) for cell in cells]
    if not all(map(_INTEGER.fullmatch, cells)):
        raise ValueError
    values = np.fromiter(map(int, cells), np.int64, len(cells))
    if values.min() < least or values.max() > most:
        raise ValueError
    return values.astype(dtype)


def _check_row(where: str, names: Sequence[str], cells: Sequence[str]) -> None:
    if len(cells) != len(names):
        columns = ", ".join(names)
        raise ManifestError(f"{where}: expected {len(names)} tab-separated columns ({columns}), found {len(cells)}")
    for name, cell in zip(names, cells, strict=True):
        if name == "path" and not cell:
            raise ManifestError(f"{where}: expected a path, found nothing")
        if name == "path" and "\0" in cell:
            raise ManifestError(f"{where}: expected a path, found {cell!r}")
        if name in _INTEGERS:
            try:
                _parse_integers(name, [cell])
            except ValueError:
                least, most, _ = _INTEGERS[name]
                bound = f"at most {most}" if cell.isdecimal() and int(cell) > most else f"at least {least}"
                raise ManifestError(f"{where}: expected {name} to be an integer of {bound}, found {cell!r}") from None


def _read_fairseq_texts(path: Path, num_rows: int) -> tuple[bytes, list[str] | None]:
    """Return the labels beside a fairseq manifest: their bytes, and a text a row; None if there are none."""
    for suffix in (".ltr", ".wrd"):
        labels = path.with_suffix(suffix)
        if labels.exists():
            content, lines = _read_lines(labels)
            if len(lines) != num_rows:
                raise ManifestError(f"{labels}: expected {num_rows} lines, one a row of {path}, found {len(lines)}")
            if suffix == ".ltr":
                lines = [line.replace(" ", "").replace("|", " ") for line in lines]
            return content, [line.strip() for line in lines]
    return b"", None


def _checked_cell(manifest: Path, cell: str) -> str:
    if IMPOSSIBLE_IN_CELLS.search(cell):
        raise ManifestError(f"{manifest}: expected cells in UTF-8 without tabs and line breaks, found {cell!r}")
    return cell
