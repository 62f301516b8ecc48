"""N-gram language models: how likely a word is after others, and the ARPA files that hold them."""

import gzip
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

from speechssl.data.text import write_text_file
from speechssl.errors import LanguageModelError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
_LN_10 = math.log(10)
_NEVER = -99.0  # what ARPA files say in the place of minus infinity
_BETWEEN_WORDS = " \t\n\r\f\v"  # a word may hold other white space, such as a no-break space

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class NgramModel:
    """A back-off model of words (Katz, 1987).

    Attributes:
        order: The longest n-gram.
        entries: For each n-gram, the natural logarithms of the probability of its last word after the others, and of
            the weight with which shorter n-grams count after it.
    """

    order: int
    entries: Mapping[Ngram, tuple[float, float]]

    def score(self, context: Ngram, word: str) -> float:
        """The natural logarithm of the probability of a word after others.

        Args:
            context: The words before, at most ``order - 1`` of them count; the first of a sentence is ``<s>``.
            word: The word, or ``</s>``. One that the model does not know has the probability of ``<unk>``.
        """
        if (word,) not in self.entries:
            word = UNKNOWN
        context = self.shortened(context)
        back_off = 0.0
        for first in range(len(context) + 1):
            history = context[first:]
            if (entry := self.entries.get((*history, word))) is not None:
                return back_off + entry[0]
            back_off += self.entries.get(history, (0.0, 0.0))[1]
        return _NEVER * _LN_10  # a model without <unk>

    def shortened(self, context: Ngram) -> Ngram:
        """The end of a context that counts, with ``<unk>`` for words that the model does not know."""
        last = context[len(context) - min(self.order - 1, len(context)) :]
        return tuple(word if (word,) in self.entries else UNKNOWN for word in last)

    @cached_property
    def words(self) -> frozenset[str]:
        """The words that the model knows, without its marks."""
        return frozenset(ngram[0] for ngram in self.entries if len(ngram) == 1) - {START, END, UNKNOWN}

    def save(self, path: Path) -> None:
        """Write the model as an ARPA file, complete or not at all.

        Raises:
            LanguageModelError: the file cannot be written.
        """
        try:
            write_text_file(path, "".join(f"{line}\n" for line in self._lines()))
        except OSError as error:
            raise LanguageModelError(f"{path}: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: Path) -> "NgramModel":
        """Read an ARPA file, which may be compressed by gzip.

        Raises:
            LanguageModelError: the file is missing, cut or no ARPA file.
        """
        try:
            with path.open("rb") as file:
                is_compressed = file.read(2) == b"\x1f\x8b"
            with gzip.open(path, "rt", encoding="utf-8") if is_compressed else path.open(encoding="utf-8") as lines:
                return cls._read(path, lines)
        except (OSError, EOFError) as error:
            raise LanguageModelError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        except UnicodeDecodeError as error:
            raise LanguageModelError(f"{path}: expected an ARPA file in UTF-8: {error}") from None

    def _lines(self) -> Iterator[str]:
        ngrams = [
            [ngram for ngram in sorted(self.entries) if len(ngram) == length] for length in range(1, self.order + 1)
        ]
        yield "\\data\\"
        for length, of_length in enumerate(ngrams, start=1):
            yield f"ngram {length}={len(of_length)}"
        for length, of_length in enumerate(ngrams, start=1):
            yield ""
            yield f"\\{length}-grams:"
            for ngram in of_length:
                log_prob, back_off = self.entries[ngram]
                line = f"{max(log_prob / _LN_10, _NEVER):.7g}\t{' '.join(ngram)}"
                yield line if length == self.order else f"{line}\t{back_off / _LN_10:.7g}"
        yield ""
        yield "\\end\\"

    @classmethod
    def _read(cls, path: Path, lines: TextIO) -> "NgramModel":
        counts: list[int] = []  # as the head states them
        found: list[int] = []
        entries: dict[Ngram, tuple[float, float]] = {}
        for number, line in enumerate(lines, start=1):
            line = unicodedata.normalize("NFC", line.strip(_BETWEEN_WORDS))
            if line.startswith("ngram ") and not found:
                _, _, count = line.partition("=")
                if not count.strip().isdecimal():
                    raise LanguageModelError(f"{path}:{number}: expected 'ngram N=COUNT', found {line!r:.80}")
                counts.append(int(count))
            elif counts and line == f"\\{len(found) + 1}-grams:":
                found.append(0)
            elif line == "\\end\\":
                if not counts or found != counts:
                    raise LanguageModelError(
                        f"{path}: expected as many n-grams as its head says, {counts}, found {found}"
                    )
                return cls(len(counts), entries)
            elif line and found:
                ngram, entry = _parse(line, len(found), f"{path}:{number}")
                entries[ngram] = entry
                found[-1] += 1
            elif number > 1000 and not counts:  # comments may come first, but not a book
                break
        raise LanguageModelError(f"{path}: expected an ARPA file, from \\data\\ to \\end\\, found none")


def _parse(line: str, length: int, where: str) -> tuple[Ngram, tuple[float, float]]:
    log_prob, *rest = _fields(line)
    try:
        if not length <= len(rest) <= length + 1:
            raise ValueError
        back_off = float(rest[length]) if len(rest) > length else 0.0
        return tuple(rest[:length]), (float(log_prob) * _LN_10, back_off * _LN_10)
    except ValueError:
        expected = f"a logarithm, {length} word{'' if length == 1 else 's'} and at most a back-off weight"
        raise LanguageModelError(f"{where}: expected {expected}, found {line!r:.80}") from None


def _fields(line: str) -> Iterable[str]:
    return line.replace("\t", " ").split(" ")
