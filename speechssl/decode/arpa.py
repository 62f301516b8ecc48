"""N-gram models as ARPA files."""

import gzip
import math
import re
import unicodedata
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TextIO

from speechssl.decode.ngram import NEVER, UNKNOWN, Ngram, NgramModel
from speechssl.errors import LanguageModelError, system_errors
from speechssl.files import write_text_file

_LN_10 = math.log(10)
_COLUMNS = re.compile("[ \t]+")  # a word may hold other white space, such as a no-break space

Entries = dict[Ngram, tuple[float, float]]


def write_arpa(path: Path, model: NgramModel) -> None:
    """Write a model atomically."""
    with system_errors(LanguageModelError, path):
        write_text_file(path, "".join(f"{line}\n" for line in _lines(model)))


def read_arpa(path: Path) -> NgramModel:
    """Read a model, which may be compressed by gzip.

    Words that the model does not know are as likely as ``<unk>`` (or ``<UNK>``), or as its least likely word if it has
    no such mark or gives it no probability.
    """
    try:
        with path.open("rb") as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if is_compressed else path.open(encoding="utf-8") as lines:
            entries, order = _read(path, lines)
            for _ in lines:  # to the end, where gzip has its checksum
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise LanguageModelError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except UnicodeDecodeError as error:
        raise LanguageModelError(f"{path}: expected an ARPA file in UTF-8: {error}") from None
    said = [entry[0] for ngram, entry in entries.items() if len(ngram) == 1 and entry[0] > NEVER]
    if not said:
        raise LanguageModelError(f"{path}: expected words with a probability, found none")
    log_prob, back_off = entries.get((UNKNOWN,), (NEVER, 0.0))
    entries[(UNKNOWN,)] = log_prob if log_prob > NEVER else min(said), back_off
    return NgramModel(order, entries)


def _lines(model: NgramModel) -> Iterator[str]:
    ngrams = sorted(model.entries, key=lambda ngram: (len(ngram), ngram))
    by_length = [(length, list(of_length)) for length, of_length in groupby(ngrams, len)]
    yield "\\data\\"
    for length, of_length in by_length:
        yield f"ngram {length}={len(of_length)}"
    for length, of_length in by_length:
        yield f"\n\\{length}-grams:"
        for ngram in of_length:
            log_prob, back_off = model.entries[ngram]
            line = f"{max(log_prob, NEVER) / _LN_10:.7g}\t{' '.join(ngram)}"
            yield line if length == model.order else f"{line}\t{back_off / _LN_10:.7g}"
    yield "\n\\end\\"


def _read(path: Path, lines: TextIO) -> tuple[Entries, int]:
    counts: list[int] | None = None  # as the head states them, None before it
    found: list[int] = []
    entries: Entries = {}
    known: dict[str, str] = {}  # each word once, however many n-grams have it
    number = 0
    for number, line in enumerate(lines, start=1):
        line = unicodedata.normalize("NFC", line.strip(" \t\r\n"))
        if counts is None:
            if line == "\\data\\":
                counts = []
            elif number == 1000:  # comments may come first, but not a book
                break
        elif not line:
            continue
        elif line == "\\end\\":
            if not counts or found != counts:
                raise LanguageModelError(f"{path}: expected as many n-grams as its head says, {counts}, found {found}")
            return entries, len(counts)
        elif line == f"\\{len(found) + 1}-grams:":
            found.append(0)
        elif found:
            ngram, entry = _parse(line, len(found), f"{path}:{number}")
            entries[tuple(known.setdefault(word, word) for word in ngram)] = entry
            found[-1] += 1
        else:
            count = line.partition("=")[2].strip()
            if not line.startswith("ngram ") or not count.isdecimal():
                raise LanguageModelError(f"{path}:{number}: expected 'ngram N=COUNT', found {line!r:.80}")
            counts.append(int(count))
    if counts is None:
        raise LanguageModelError(f"{path}: expected an ARPA file, which begins with \\data\\, found something else")
    raise LanguageModelError(f"{path}:{number}: expected \\end\\ at the end of the file, found none")


def _parse(line: str, length: int, where: str) -> tuple[Ngram, tuple[float, float]]:
    number, *rest = _COLUMNS.split(line)
    try:
        log_prob, back_off = float(number), float(rest[length]) if len(rest) > length else 0.0
        if not (length <= len(rest) <= length + 1 and log_prob <= 0 and math.isfinite(back_off)):
            raise ValueError
    except ValueError:
        expected = f"a logarithm, {length} word{'' if length == 1 else 's'} and at most a back-off weight"
        raise LanguageModelError(f"{where}: expected {expected}, found {line!r:.80}") from None
    words = tuple(UNKNOWN if word == UNKNOWN.upper() else word for word in rest[:length])
    return words, (max(log_prob * _LN_10, NEVER), back_off * _LN_10)
