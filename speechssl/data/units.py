"""Text -> labels for CTC and back: a vocabulary of letters of any script."""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from speechssl.errors import CheckpointError, ManifestError
from speechssl.files import write_text_file

BLANK = "<blank>"
WORD_DELIMITER = "|"


@dataclass(frozen=True)
class Vocabulary:
    """The symbols that a CTC model can emit; a symbol's position is its label.

    Attributes:
        symbols: The blank, the delimiter that ends each word, then letters.
    """

    symbols: tuple[str, ...]

    blank_id: ClassVar[int] = 0
    word_delimiter_id: ClassVar[int] = 1

    def __post_init__(self) -> None:
        assert self.symbols[:2] == (BLANK, WORD_DELIMITER), self.symbols
        assert len(set(self.symbols)) == len(self.symbols), self.symbols

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "Vocabulary":
        """The vocabulary of all letters of the texts, sorted by code point.

        Raises:
            ManifestError: a text contains the word delimiter, or there is no letter at all.
        """
        letters: set[str] = set()
        for text in texts:
            letters.update("".join(split_words(text)))
            if WORD_DELIMITER in text:
                raise ManifestError(f"expected texts without '{WORD_DELIMITER}', found {_shortened(text)}")
        if not letters:
            raise ManifestError("expected texts to build a vocabulary from, found no letter")
        return cls((BLANK, WORD_DELIMITER, *sorted(letters)))

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Turn a text into labels: the letters of each word, then the delimiter, after the last word too.

        Raises:
            ManifestError: the text has characters that are not in the vocabulary.
        """
        unknown = self.unknown_characters(text)
        if unknown:
            listed = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown)
            raise ManifestError(f"expected characters of the vocabulary, found {listed} in {_shortened(text)}")
        return [self._ids[symbol] for word in split_words(text) for symbol in (*word, WORD_DELIMITER)]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn labels into text: blanks are left out and delimiters become spaces; repeats stay repeats."""
        symbols = (self.symbols[i] for i in ids if i != self.blank_id)
        return " ".join("".join(" " if symbol == WORD_DELIMITER else symbol for symbol in symbols).split())

    def unknown_characters(self, text: str) -> str:
        """The distinct characters of a text that the vocabulary lacks, sorted."""
        characters = {character for word in split_words(text) for character in word}
        return "".join(sorted(characters - self._letters))

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON, ``{symbol: label}``."""
        write_text_file(path, json.dumps(self._ids, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read a vocabulary that `save` wrote.

        Raises:
            CheckpointError: the file is missing, or is no such vocabulary.
        """
        try:
            ids = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}") from None
        except ValueError as error:
            raise CheckpointError(f"{path}: expected JSON: {error}") from None
        if not isinstance(ids, dict) or list(ids.values()) != list(range(len(ids))):
            raise CheckpointError(f"{path}: expected an object of symbols numbered 0, 1, 2, ...")
        symbols = tuple(ids)
        if symbols[:2] != (BLANK, WORD_DELIMITER):
            raise CheckpointError(
                f"{path}: expected the symbols {BLANK} and {WORD_DELIMITER} first, found {symbols[:2]}"
            )
        return cls(symbols)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    @cached_property
    def _letters(self) -> frozenset[str]:
        return frozenset(self.symbols[2:])


def split_words(text: str) -> list[str]:
    """The words of a text between white space, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text).split()


def num_frames_needed(labels: Sequence[int]) -> int:
    """The fewest frames that can carry labels: CTC puts a blank between equal neighbors."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
