"""Columns of a table: numbers and texts of millions of rows without an object a row, shared by processes."""

import mmap
import os
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Layout = tuple[tuple[str, str, int], ...]  # the name, the type and the length of each array

NO_TEXT = 0xFF
"""The byte that stands for a text that is none; it is no UTF-8."""

_NONE = chr(0xDC00 + NO_TEXT)  # as Python writes such a byte
_ALIGNMENT = 8


class Columns:
    """Arrays of one dimension by name, which pickle as the place of one block of memory.

    Other processes, the loader's workers and the other ranks of a machine, get a manifest by pickling. Millions of
    objects would be sent to each of them and held by each. The block is written once, when it is first asked for, and
    mapped by all. It is a file without a name (memfd), so that a killed run leaves nothing behind; it can be unpickled
    as long as the table lives where it was pickled.
    """

    def __init__(self, arrays: Mapping[str, Array], block: int | None = None) -> None:
        self.arrays = dict(arrays)
        self._block = block  # the descriptor of the file that they are mapped from, if they are

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def texts(self, name: str, first: int, stop: int) -> list[str | None]:
        """Return some cells of a column that `pack_texts` made; None for each if there is no such column."""
        if f"{name} ends" not in self.arrays:
            return [None] * (stop - first)
        ends = self.arrays[f"{name} ends"]
        start = int(ends[first - 1]) if first else 0
        edges = [0, *(ends[first:stop] - start).tolist()]
        content = self.arrays[name][start : start + edges[-1]].tobytes()
        text = content.decode("utf-8", "surrogateescape")
        if len(text) == len(content):  # bytes are characters
            cells = [text[begin:end] for begin, end in pairwise(edges)]
        else:
            cells = [content[begin:end].decode("utf-8", "surrogateescape") for begin, end in pairwise(edges)]
        return [None if cell == _NONE else cell for cell in cells]

    def __reduce__(self) -> tuple[Any, ...]:
        if not hasattr(os, "memfd_create"):  # not Linux
            return Columns, (self.arrays,)
        layout = tuple((name, array.dtype.str, len(array)) for name, array in self.arrays.items())
        if self._block is None:
            self._block = os.memfd_create("columns")
            with os.fdopen(self._block, "wb", closefd=False) as file:
                for array in self.arrays.values():
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    file.write(array.data)
            self.arrays = _map(self._block, layout)  # not there twice
        return _open, (f"/proc/{os.getpid()}/fd/{self._block}", layout)

    def __del__(self) -> None:
        if self._block is not None:
            os.close(self._block)


def pack_texts(name: str, cells: Iterable[str | None]) -> dict[str, Array]:
    """Return a column of texts: one after another in UTF-8, and where each ends."""
    texts = [_NONE if cell is None else cell for cell in cells]
    text = "".join(texts)
    content = text.encode("utf-8", "surrogateescape")
    if len(text) != len(content):  # characters are more than bytes
        texts = [cell.encode("utf-8", "surrogateescape").decode("latin-1") for cell in texts]
    ends = np.fromiter(map(len, texts), np.int64, len(texts)).cumsum()
    return {name: np.frombuffer(content, np.uint8), f"{name} ends": ends}


def join_parts(parts: Iterable[Mapping[str, Array]]) -> Columns:
    """Return the columns of a table of which each part has some rows."""
    rows = [dict(part) for part in parts]
    arrays: dict[str, Array] = {}
    for name in list(rows[0]):
        if f"{name} ends" in rows[0]:
            start = 0
            for part in rows:
                part[f"{name} ends"] = part[f"{name} ends"] + start
                start += len(part[name])
        arrays[name] = np.concatenate([part.pop(name) for part in rows])  # only one column is there twice at a time
    return Columns(arrays)


def _open(place: str, layout: Layout) -> Columns:
    block = os.open(place, os.O_RDONLY)
    return Columns(_map(block, layout), block)


def _map(block: int, layout: Layout) -> dict[str, Array]:
    content = mmap.mmap(block, 0, access=mmap.ACCESS_READ)
    arrays: dict[str, Array] = {}
    position = 0
    for name, dtype, length in layout:
        position += -position % _ALIGNMENT
        arrays[name] = np.frombuffer(content, dtype, length, position)
        position += arrays[name].nbytes
    return arrays
