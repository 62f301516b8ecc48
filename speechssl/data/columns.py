"""Columns of a table: numbers and texts of millions of rows without an object a row, shared by processes."""

import mmap
import os
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_NONE = "\udcff"  # a byte that is no UTF-8, as Python writes it
_ALIGNMENT = 8


class Columns:
    """Arrays of one dimension by name, which pickle as the place of one block of memory.

    The loader's workers get a manifest by pickling. A million objects would be sent to each of them and held by each.
    The block is written once, when it is first asked for, and mapped by all. It is a file without a name (memfd), so
    that a killed run leaves nothing behind; it can be unpickled as long as the table lives where it was pickled.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = dict(arrays)
        self._block: int | None = None

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
        if self._block is None:
            self._block = os.memfd_create("columns")
            with os.fdopen(self._block, "wb", closefd=False) as file:
                for array in self.arrays.values():
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    file.write(array.data)
        layout = tuple((name, array.dtype.str, len(array)) for name, array in self.arrays.items())
        return _map, (f"/proc/{os.getpid()}/fd/{self._block}", layout)

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
    parts = list(parts)
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name in arrays:
        if f"{name} ends" in arrays:
            starts = np.cumsum([0, *(len(part[name]) for part in parts[:-1])])
            lengths = [len(part[f"{name} ends"]) for part in parts]
            arrays[f"{name} ends"] += np.repeat(starts, lengths)
    return Columns(arrays)


def _map(place: str, layout: tuple[tuple[str, str, int], ...]) -> Columns:
    with Path(place).open("rb") as file:
        block = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays: dict[str, Array] = {}
    position = 0
    for name, dtype, length in layout:
        position += -position % _ALIGNMENT
        arrays[name] = np.frombuffer(block, dtype, length, position)
        position += arrays[name].nbytes
    return Columns(arrays)
