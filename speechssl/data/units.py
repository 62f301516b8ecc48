"""Text -> labels for CTC and back: what a model's outputs stand for."""

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from speechssl.errors import CheckpointError, ManifestError
from speechssl.files import write_text_file

BLANK = "<blank>"
WORD_DELIMITER = "|"

_BLANKS = (BLANK, "<pad>", "[PAD]")  # the first that a vocabulary has: other toolkits pad with the blank
_SPECIAL = re.compile(r"<.+>|\[.+\]")


@dataclass(frozen=True)
class Units(ABC):
    """What the outputs of a CTC model stand for, by their ids: 0 to ``len() - 1``."""

    symbols: tuple[str, ...]

    @property
    @abstractmethod
    def kind(self) -> str:
        """What they are: "letters", "pieces" (of words, a few letters each) or "phonemes"."""

    @cached_property
    def blank_id(self) -> int:
        """CTC's blank."""
        return self.symbols.index(BLANK)

    @property
    @abstractmethod
    def delimiter_id(self) -> int | None:
        """The unit between words that has no letter; None if words are told otherwise."""

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The units that are no part of any text, the blank among them."""
        return frozenset({self.blank_id})

    def __len__(self) -> int:
        return len(self.symbols)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Turn a text into labels; a ManifestError names characters that no unit has."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Turn labels into text, words with single spaces between; repeats stay repeats."""

    def word_starts(self, ids: Sequence[int]) -> list[bool]:
        """Tell which labels begin a word; a delimiter or special unit never does."""
        starts = []
        is_between = True
        for i in ids:
            is_spoken = i != self.delimiter_id and i not in self.special_ids
            starts.append(is_spoken and (is_between or self._begins_word(i)))
            is_between = i == self.delimiter_id or (is_between and not is_spoken)
        return starts

    def _begins_word(self, i: int) -> bool:
        """Whether a unit begins a word wherever it stands."""
        return False

    @abstractmethod
    def unknown_characters(self, text: str) -> Sequence[str]:
        """Return the distinct characters, or phonemes, of a text that no unit has, sorted."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write them to a file."""

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}


@dataclass(frozen=True)
class Letters(Units):
    """Units of a letter each, of any script, with a delimiter that ends every word.

    A lower-case letter that is lacking stands for its capital: many models of other toolkits have capitals only. The
    symbols are, in any order, a blank, the delimiter, letters, and units such as <unk> that are no part of any text.
    """

    def __post_init__(self) -> None:
        assert WORD_DELIMITER in self.symbols, self.symbols
        assert not set(_BLANKS).isdisjoint(self.symbols), self.symbols
        assert len(set(self.symbols)) == len(self.symbols), self.symbols

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "Letters":
        """Return the blank, the delimiter and all letters of the texts, sorted by code point."""
        letters: set[str] = set()
        for text in texts:
            letters.update("".join(split_words(text)))
            if WORD_DELIMITER in text:
                raise ManifestError(f"expected texts without '{WORD_DELIMITER}', found {_shortened(text)}")
        if not letters:
            raise ManifestError("expected texts to build a vocabulary from, found no letter")
        return cls((BLANK, WORD_DELIMITER, *sorted(letters)))

    @property
    def kind(self) -> str:
        """What the units are."""
        return "letters"

    @cached_property
    def blank_id(self) -> int:
        """CTC's blank."""
        return next(self._ids[symbol] for symbol in _BLANKS if symbol in self._ids)

    @cached_property
    def delimiter_id(self) -> int:
        """The unit after each word."""
        return self._ids[WORD_DELIMITER]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The blank, and all other units in angle or square brackets."""
        return frozenset(i for symbol, i in self._ids.items() if _SPECIAL.fullmatch(symbol))

    def encode(self, text: str) -> list[int]:
        """Turn a text into labels: the letters of each word, then the delimiter, after the last word too."""
        if unknown := self.unknown_characters(text):
            found = list_characters(unknown)
            raise ManifestError(f"expected characters of the vocabulary, found {found} in {_shortened(text)}")
        return [i for word in split_words(text) for i in (*(self._letter_ids[c] for c in word), self.delimiter_id)]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn labels into text: special units are left out and delimiters become spaces; repeats stay repeats."""
        spoken = (i for i in ids if i not in self.special_ids)
        return " ".join("".join(" " if i == self.delimiter_id else self.symbols[i] for i in spoken).split())

    def unknown_characters(self, text: str) -> str:
        """Return the distinct characters of a text that the vocabulary lacks, sorted."""
        characters = {character for word in split_words(text) for character in word}
        return "".join(sorted(characters - self._letter_ids.keys()))

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON, ``{symbol: label}``."""
        write_text_file(path, json.dumps(self._ids, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Letters":
        """Read a vocabulary of JSON, ``{symbol: label}``, whose symbols stand in any order."""
        try:
            ids = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror or error}") from None
        except ValueError as error:
            raise CheckpointError(f"{path}: expected JSON: {error}") from None
        numbers = ids.values() if isinstance(ids, dict) else [None]
        if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(numbers))):
            raise CheckpointError(f"{path}: expected an object of symbols numbered 0, 1, 2, ...")
        symbols = tuple(sorted(ids, key=ids.__getitem__))
        if WORD_DELIMITER not in ids or not any(blank in ids for blank in _BLANKS):
            expected = f"{WORD_DELIMITER} and one of {', '.join(_BLANKS)} among the symbols"
            raise CheckpointError(f"{path}: expected {expected}, found {symbols[:5]}")
        return cls(symbols)

    @cached_property
    def _letter_ids(self) -> dict[str, int]:
        letters = {symbol: i for symbol, i in self._ids.items() if i != self.delimiter_id and i not in self.special_ids}
        return {letter.lower(): i for letter, i in letters.items()} | letters


def list_characters(characters: Iterable[str]) -> str:
    """Return characters with their numbers, or phonemes, for a message."""
    return ", ".join(f"{found!r} (U+{ord(found):04X})" if len(found) == 1 else repr(found) for found in characters)


def split_words(text: str) -> list[str]:
    """Return the words of a text between white space, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text).split()


def num_frames_needed(labels: Sequence[int]) -> int:
    """Return the fewest frames that can carry labels: CTC puts a blank between equal neighbors."""
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
