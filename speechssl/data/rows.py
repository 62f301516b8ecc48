"""Rows of a table, as bytes of a file -> columns: a block at a time, and without an object a row or a cell."""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from speechssl.data.columns import NO_TEXT, Array
from speechssl.errors import ManifestError
from speechssl.files import open_table

_BYTES_AT_ONCE = 1 << 20  # for which a processor's cache has room
_TAB, _RETURN, _LINE_END, _ZERO = b"\t\r\n0"
_MOST_DIGITS = 18  # of which int64 has room for every number

Range = tuple[int, int, type[np.signedinteger[Any]]]
"""The least and the largest value of a column of numbers, and how it is kept."""


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, content: bytes, /) -> None:
        """Take in more bytes."""


def read_blocks(path: Path, digest: Digest) -> Iterator[tuple[int, bytes]]:
    """Yield the first two lines of a file, each alone, and then blocks of lines, with the number of the first of each.

    Every line ends in a line feed, the last one too; a byte order mark is left out.

    Args:
        path: A file in UTF-8.
        digest: Takes in all bytes.

    Raises:
        ManifestError: it cannot be read or is not UTF-8.
    """
    number = 1
    with open_table(path) as file:
        for size in chain((0, 0), repeat(_BYTES_AT_ONCE)):
            block = file.read(size) + file.readline()
            if not block:
                return
            digest.update(block)
            try:
                block.decode()
            except UnicodeDecodeError as error:
                line = number + block.count(b"\n", 0, error.start)
                found = f"found the byte 0x{block[error.start]:02x}"
                raise ManifestError(f"{path}:{line}: expected UTF-8, {found}") from None
            if number == 1:
                block = block.removeprefix(codecs.BOM_UTF8)
            yield number, block if block.endswith(b"\n") else block + b"\n"
            number += block.count(b"\n")


def split_lines(block: bytes) -> list[str]:
    """Return the lines of a block, of Windows too; not ``splitlines()``, which splits where a text may go on."""
    return [line.removesuffix("\r") for line in block.decode().split("\n")[:-1]]


def parse_rows(
    block: bytes, names: Sequence[str], numbers: Mapping[str, Range], defaults: Mapping[str, int]
) -> dict[str, Array]:
    """Return the columns of a block of lines: arrays of numbers, and texts as `pack_texts` makes them.

    Args:
        block: Lines that end in line feeds, of cells that tabs part.
        names: Of the columns.
        numbers: The columns of decimal numbers. All others are texts, of which an empty one is none.
        defaults: What an empty cell of numbers stands for; without a default none may be empty.

    Raises:
        ValueError: something is not as it should be, somewhere.
    """
    content = np.frombuffer(block, np.uint8).copy()
    starts, ends = _find_cells(content, len(names))
    columns: dict[str, Array] = {}
    for name, (least, most, dtype) in numbers.items():
        if name in names:
            cells = names.index(name)
            values = _parse_numbers(content, starts[cells], ends[cells], defaults.get(name))
            if values.min() < least or values.max() > most:
                raise ValueError
        else:
            values = np.full(len(starts[0]), defaults[name])
        columns[name] = values.astype(dtype)
    for cells, name in enumerate(names):
        if name not in numbers:
            columns |= _gather_texts(name, content, starts[cells], ends[cells])
    return columns


def _find_cells(content: Array, num_columns: int) -> tuple[Array, Array]:
    """Return where the cells begin and where they end: (columns, rows) each."""
    borders = np.flatnonzero((content == _TAB) | (content == _LINE_END))
    if len(borders) % num_columns:
        raise ValueError
    starts = np.append(0, borders[:-1] + 1).reshape(-1, num_columns).T.copy()
    ends = borders.reshape(-1, num_columns).T.copy()
    if (content[ends[:-1]] != _TAB).any() or (content[ends[-1]] != _LINE_END).any():
        raise ValueError
    ends[-1] -= content[ends[-1] - 1] == _RETURN
    return starts, ends


def _parse_numbers(content: Array, starts: Array, ends: Array, default: int | None) -> Array:
    lengths = ends - starts
    if lengths.max() > _MOST_DIGITS or (default is None and not lengths.all()):
        raise ValueError
    values = np.zeros(len(starts), np.int64)
    for place in range(lengths.max()):
        rows = np.flatnonzero(lengths > place)
        digits = content[ends[rows] - 1 - place] - _ZERO  # what is less than zero wraps
        if (digits > 9).any():
            raise ValueError
        values[rows] += digits * np.int64(10**place)
    return values if default is None else np.where(lengths, values, default)


def _gather_texts(name: str, content: Array, starts: Array, ends: Array) -> dict[str, Array]:
    is_empty = starts == ends
    content[ends[is_empty]] = NO_TEXT  # in the place of what parts it from the next cell
    ends = ends + is_empty
    edges = np.zeros(len(content) + 1, np.int8)
    edges[starts] = 1
    edges[ends] = -1
    is_inside = np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)
    return {name: content[is_inside], f"{name} ends": np.cumsum(ends - starts)}
