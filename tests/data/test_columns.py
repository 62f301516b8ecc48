"""What rows are, whichever block they stand in, and that they are shared and not sent."""

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data import columns as module
from speechssl.data import manifest as manifest_module
from speechssl.data import rows as rows_module
from speechssl.data.columns import Columns, join_parts, pack_texts
from speechssl.data.manifest import Manifest, Utterance, read_manifest, write_manifest

CELLS = st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, max_size=8)


@given(CELLS, CELLS, st.data())
def test_texts_come_back_in_any_slice(first: list[str | None], second: list[str | None], data: st.DataObject) -> None:
    columns = join_parts([pack_texts("text", part) | {"number": np.arange(len(part))} for part in (first, second)])
    cells = [*first, *second]
    start = data.draw(st.integers(0, len(cells)))
    stop = data.draw(st.integers(start, len(cells)))
    for table in (columns, pickle.loads(pickle.dumps(columns))):
        assert table.texts("text", start, stop) == cells[start:stop]
        assert table.texts("other", start, stop) == [None] * (stop - start)
        assert table["number"].tolist() == [*range(len(first)), *range(len(second))]


def write_rows(folder: Path, number: int) -> Manifest:
    utterances = [Utterance(str(folder / f"{n}.wav"), 1 + n, text="é" * (n % 3) or None) for n in range(number)]
    write_manifest(folder / f"{number:05d}.tsv", utterances, ".")
    return read_manifest(folder / f"{number:05d}.tsv")


def list_rows(manifest: Manifest) -> tuple[list[Utterance], str, bool]:
    return list(manifest), manifest.where(3), manifest.columns["num_samples"].flags.owndata


@pytest.fixture(scope="module")
def other_process() -> Iterator[Pool]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


def test_a_worker_gets_a_place_and_not_the_rows(tmp_path: Path, other_process: Pool) -> None:
    few, many = write_rows(tmp_path, 10), write_rows(tmp_path, 10_000)
    assert abs(len(pickle.dumps(many)) - len(pickle.dumps(few))) < 200
    utterances, where, is_copied = other_process.apply(list_rows, (many,))
    assert utterances == list(many)
    assert where == many.where(3)
    assert not is_copied


def test_rows_are_sent_where_no_memory_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module.os, "memfd_create")
    manifest = write_rows(tmp_path, 10)
    assert list(pickle.loads(pickle.dumps(manifest))) == list(manifest)


def test_blocks_of_rows_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(write_rows(tmp_path, 100))
    monkeypatch.setattr(manifest_module, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(rows_module, "_BYTES_AT_ONCE", 50)
    manifest = read_manifest(tmp_path / "00100.tsv")
    assert list(manifest) == expected
    assert [manifest[n] for n in (0, 6, 7, 8, 99, -1)] == [expected[n] for n in (0, 6, 7, 8, 99, -1)]
    with pytest.raises(IndexError):
        manifest[100]
    lines = (tmp_path / "00100.tsv").read_text("utf-8").split("\n")
    lines[50] = "x.wav\t0\t"
    (tmp_path / "00100.tsv").write_text("\n".join(lines), "utf-8")
    with pytest.raises(manifest_module.ManifestError, match=r"00100.tsv:51: expected num_samples to be an integer"):
        read_manifest(tmp_path / "00100.tsv")


def make_columns(megabytes: int) -> Columns:
    numbers = np.arange(megabytes << 16)
    texts = {"text": np.full(len(numbers), ord("a"), np.uint8), "text ends": numbers + 1}
    return Columns({"number": numbers, **texts})


def own_bytes() -> int:
    """The memory of this process that no other shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def hand_over(megabytes: int) -> int:
    """How much memory is given back when a table is handed over, in a process whose allocator is as it comes."""
    columns = make_columns(megabytes)
    before = own_bytes()
    pickle.dumps(columns)
    return before - own_bytes()


def read_twice(columns: Columns) -> int:
    """How much memory it takes to look at every row, by way of another copy."""
    before = own_bytes()
    copy = pickle.loads(pickle.dumps(columns))
    for table in (columns, copy):
        assert table["number"].sum() == len(table["number"]) * (len(table["number"]) - 1) // 2
        for first in range(0, len(table["number"]), 1 << 16):
            table.texts("text", first, first + (1 << 16))
    return own_bytes() - before


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memory is shared here")
def test_a_table_is_in_memory_once_whoever_reads_it(other_process: Pool) -> None:
    columns = make_columns(16)
    num_bytes = sum(array.nbytes for array in columns.arrays.values())
    given_back = other_process.apply(hand_over, (16,))
    assert given_back > num_bytes / 2, "what was handed over is not kept twice"
    grown = other_process.apply(read_twice, (columns,))
    assert grown < num_bytes / 4, "neither a worker nor its own workers have the table to themselves"


def test_columns_close_what_they_opened() -> None:
    columns = Columns({"number": np.arange(5)})
    place = Path(columns.__reduce__()[1][0])
    assert place.exists()
    copy = pickle.loads(pickle.dumps(columns))
    of_copy = Path(copy.__reduce__()[1][0])
    assert of_copy != place
    assert of_copy.samefile(place)
    del columns
    assert not place.exists()
    assert copy["number"].tolist() == list(range(5))
    del copy
    assert not of_copy.exists()
