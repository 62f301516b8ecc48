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
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speechssl.data.audio import SAMPLE_RATE, Waveform, join, resample_blocks, resampled_length
from speechssl.data.columns import NO_TEXT, Array, Columns, join_parts, pack_texts
from speechssl.data.paths import absolute_root, is_url, join_root, path_below
from speechssl.data.recording import read_span
from speechssl.data.rows import Digest, Range, parse_rows, read_blocks, split_lines
from speechssl.errors import AudioError, ManifestError, system_errors
from speechssl.files import write_text_file

IMPOSSIBLE_IN_CELLS = re.compile("[\t\r\n\ud800-\udfff]")
"""Tabs, line breaks, and what stands for the bytes of a file name that is no UTF-8."""

_REQUIRED = ("path", "num_samples")
_INTEGERS: dict[str, Range] = {  # with the least and the largest value allowed
    "num_samples": (1, 10**15, np.int64),
    "start": (0, 10**15, np.int64),
    "sample_rate": (1, 2**31 - 1, np.int32),
}
_DEFAULT_INTEGERS = {"start": 0, "sample_rate": SAMPLE_RATE}
_DEFAULTS = {**_DEFAULT_INTEGERS, "text": None, "speaker": None, "language": None}
_COLUMNS = (*_REQUIRED, *_DEFAULTS)
_INTEGER = re.compile(r"[0-9]{1,18}")
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
        return next(self.rows(row, row + 1))

    def __iter__(self) -> Iterator[Utterance]:
        for first in range(0, len(self), _ROWS_AT_ONCE):
            yield from self.rows(first, min(first + _ROWS_AT_ONCE, len(self)))

    def rows(self, first: int, stop: int) -> Iterator[Utterance]:
        """Yield the utterances [first, stop); there are objects of all of them for a while."""
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

    def read(self, index: int) -> Waveform:
        """Read an utterance as `read_utterance` does; errors say where it stands."""
        try:
            return read_utterance(self[index])
        except AudioError as error:
            raise AudioError(f"{self.where(index)}: {error}") from None

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
    digest = hashlib.sha256()
    blocks = read_blocks(path, digest)
    _, first = next(blocks, (1, b""))
    if not first:
        raise ManifestError(f"{path}: expected a manifest, found an empty file")
    [line] = split_lines(first)
    root = absolute_root(path.parent, line)
    if not line or not (is_url(root) or Path(root).is_dir()):
        raise ManifestError(f"{path}:1: expected the root folder of the recordings, found {line!r}")
    _, second = next(blocks, (2, b""))
    has_header = not re.fullmatch(rb"[^\t]+\t[0-9]+\r?\n", second)
    rest = blocks if has_header else chain([(2, second)], blocks)
    number, rows = next(rest, (3, b""))
    if not rows:
        raise ManifestError(f"{path}: expected at least one utterance, found none")
    names = _parse_header(path, *split_lines(second)) if has_header else _REQUIRED
    columns = join_parts(_parse_block(path, names, *block) for block in chain([(number, rows)], rest))
    if not has_header:
        columns.arrays |= _read_fairseq_texts(path, len(columns["num_samples"]), digest)
    return Manifest(path, "" if root == "." else root, digest.hexdigest(), number, columns)


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
    with system_errors(ManifestError, path):
        write_text_file(path, "\n".join(lines) + "\n")


def read_utterance(utterance: Utterance) -> Waveform:
    """Read an utterance's waveform: (num_output_samples,) float32 mono at 16 kHz.

    Raises:
        AudioError: the recording cannot be read or is not what the utterance says, its rate included.
    """
    waveform, _ = read_span(utterance.path, utterance.start, utterance.num_samples, sample_rate=utterance.sample_rate)
    return join(resample_blocks([waveform], utterance.sample_rate))


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


def _parse_block(path: Path, names: Sequence[str], first_line: int, block: bytes) -> dict[str, Array]:
    """Return the columns of some lines."""
    try:
        columns = parse_rows(block, names, _INTEGERS, _DEFAULT_INTEGERS)
        if columns["path"].min() == 0 or columns["path"].max() == NO_TEXT:
            raise ValueError
    except ValueError:  # somewhere: a block at a time is fast, and the first line that is wrong is to be named
        for number, line in enumerate(split_lines(block), first_line):
            _check_row(f"{path}:{number}", names, line.split("\t"))
        raise
    return columns


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
            least, most, _ = _INTEGERS[name]
            value = int(cell) if _INTEGER.fullmatch(cell) else None if cell else _DEFAULT_INTEGERS.get(name)
            if value is None or not least <= value <= most:
                bound = f"at most {most}" if cell.isdecimal() and int(cell) > most else f"at least {least}"
                raise ManifestError(f"{where}: expected {name} to be an integer of {bound}, found {cell!r}")


def _read_fairseq_texts(path: Path, num_rows: int, digest: Digest) -> dict[str, Array]:
    """Return the labels beside a fairseq manifest, if there are any, as a column with a text a row."""
    for suffix, plain in ((".ltr", _join_letters), (".wrd", str.strip)):
        labels = path.with_suffix(suffix)
        if labels.exists():
            parts = (map(plain, split_lines(block)) for _, block in read_blocks(labels, digest))
            columns = join_parts(pack_texts("text", (text or None for text in part)) for part in chain([()], parts))
            found = len(columns["text ends"])
            if found != num_rows:
                raise ManifestError(f"{labels}: expected {num_rows} lines, one a row of {path}, found {found}")
            return columns.arrays
    return {}


def _join_letters(line: str) -> str:
    return line.replace(" ", "").replace("|", " ").strip()


def _checked_cell(manifest: Path, cell: str) -> str:
    if IMPOSSIBLE_IN_CELLS.search(cell):
        raise ManifestError(f"{manifest}: expected cells in UTF-8 without tabs and line breaks, found {cell!r}")
    return cell
