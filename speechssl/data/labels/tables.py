"""Labels in tables, with a header or as LJSpeech's without one, and in JSON."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speechssl.data.labels.label import NAMES, Drop, Label, drop_unusable, make_label, shorten, split_lines
from speechssl.data.scan import AUDIO_SUFFIXES
from speechssl.errors import ManifestError
from speechssl.terminal import print_status

_ALL_NAMES = frozenset(name for names in NAMES.values() for name in names)


@dataclass(frozen=True)
class _Form:
    delimiter: str
    names: Sequence[str]  # of the columns
    has_header: bool


def read_table(file: Path, content: str, drop: Drop, needs_header: bool = False) -> Iterator[Label] | None:
    """Read a table, a row a line: what a quotation mark that is not closed swallows is that line alone.

    Returns None if it is none. Without a header the first column is the recording, the last of two or three the text,
    unless one is needed.
    """
    lines = split_lines(content)
    first = next((line for line in lines if line.strip()), "")
    form = _find_form(first)
    if form is None or (needs_header and not form.has_header):
        return None
    if not form.has_header:
        last = len(form.names)
        print_status(f"{file}: no header: column 1 is taken for the recording, column {last} for the text")
    return _read_rows(file, lines, form, drop)


def read_json(file: Path, content: str, drop: Drop) -> Iterator[Label]:
    """Read a JSON object a line, or one array of objects.

    Raises:
        ManifestError: an array is not closed or otherwise no JSON.
    """
    rows: Iterator[tuple[str, object]] = _json_lines(file, content)
    if content.lstrip().startswith("["):
        try:
            items = json.loads(content, parse_constant=lambda name: None)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{file}: expected a JSON array of labels: {error}") from None
        rows = ((f"{file}: object {number}", item) for number, item in enumerate(items, 1))
    for where, values in rows:
        if isinstance(values, dict):
            yield from drop_unusable(drop, where, partial(make_label, where, values))
        else:
            drop("line that is no JSON object", f"{where}: {shorten(str(values))}")


def _read_rows(file: Path, lines: Sequence[str], form: _Form, drop: Drop) -> Iterator[Label]:
    # Tables with tabs or bars seldom quote.
    is_quoted = form.delimiter in ",;" or next(line for line in lines if line.strip()).lstrip().startswith('"')
    is_header = form.has_header
    for number, line in enumerate(lines, 1):
        where = f"{file}:{number}"
        if not line.strip():
            continue
        try:
            cells = next(
                csv.reader(
                    [line],
                    delimiter=form.delimiter,
                    quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
                    strict=True,
                )
            )
        except csv.Error as error:
            is_open = str(error) == "unexpected end of data"
            reason = "quotation mark that is not closed in its line" if is_open else "line that cannot be parsed"
            drop(reason, f"{where}: {shorten(line) if is_open else error}")
            continue
        if is_header:
            is_header = False
        elif len(cells) != len(form.names):
            drop("row with more or fewer cells than the first", f"{where}: {len(cells)} for {len(form.names)}")
        elif any(cell.strip() for cell in cells):
            values = dict(zip(form.names, cells, strict=True))
            yield from drop_unusable(drop, where, partial(make_label, where, values, form.delimiter == ";"))


def _find_form(line: str) -> _Form | None:
    """Tell by its first line how a table is written, or None if it is none."""
    without_header = None
    for delimiter in "\t,;|":
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            return None
        names = [cell.strip().lower() for cell in cells]
        if set(names).intersection(NAMES["path"]) and set(names).intersection(NAMES["text"]):
            return _Form(delimiter, names, has_header=True)
        is_file = Path(cells[0]).suffix.lower() in AUDIO_SUFFIXES if cells else False
        # Texts have commas: between two columns one is taken for a delimiter only after the name of a recording.
        is_table = len(cells) in (2, 3) if delimiter in "\t|" else len(cells) == 2 and is_file
        if is_table and not _ALL_NAMES.intersection(names) and without_header is None:
            without_header = _Form(delimiter, ["path", *[""] * (len(cells) - 2), "text"], has_header=False)
    return without_header


def _json_lines(file: Path, content: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(split_lines(content), 1):
        if line.strip():
            try:
                yield f"{file}:{number}", json.loads(line, parse_constant=lambda name: None)
            except (ValueError, RecursionError):
                yield f"{file}:{number}", line
