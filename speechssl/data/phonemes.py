"""Phonemes as units: texts in which slashes join the phonemes of a word."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from speechssl.data.units import BLANK, WORD_DELIMITER, Units, list_characters, split_words
from speechssl.errors import ManifestError
from speechssl.files import write_text_file

JOINER = "/"
"""Between the phonemes of a word: no common writing has it in a phoneme, where hyphens are in TIMIT's ``ax-h``."""


@dataclass(frozen=True)
class Phonemes(Units):
    """Units of a phoneme each, of any writing, such as ``h/ə/l/oʊ w/ɜː/l/d`` or ``HH/AH/L/OW W/ER/L/D``.

    Where word boundaries are not known each phoneme is a word, ``sh iy hh ae d``; then there is no delimiter. A text
    comes back from its labels as it was. The symbols are the blank, the delimiter if there is one, and phonemes.
    """

    def __post_init__(self) -> None:
        assert BLANK in self.symbols, self.symbols
        assert len(set(self.symbols)) == len(self.symbols), self.symbols

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "Phonemes":
        """Return the blank, a delimiter if a word has several phonemes, and all phonemes, sorted."""
        words = {word for text in texts for word in split_words(text)}
        phonemes = {phoneme for word in words for phoneme in word.split(JOINER)}
        if wrong := phonemes & {"", BLANK, WORD_DELIMITER}:
            example = min(word for word in words if wrong & {*word.split(JOINER)})
            raise ManifestError(
                f"expected phonemes joined by '{JOINER}', none of them empty, {BLANK} or '{WORD_DELIMITER}', "
                f"found {example!r}"
            )
        if not phonemes:
            raise ManifestError("expected texts of phonemes to build a vocabulary from, found none")
        delimiter = (WORD_DELIMITER,) if any(JOINER in word for word in words) else ()
        return cls((BLANK, *delimiter, *sorted(phonemes)))

    @property
    def kind(self) -> str:
        """What the units are."""
        return "phonemes"

    @cached_property
    def delimiter_id(self) -> int | None:
        """The unit after each word; None if each phoneme is a word."""
        return self._ids.get(WORD_DELIMITER)

    def encode(self, text: str) -> list[int]:
        """Turn a text into labels: the phonemes of each word, then the delimiter, if there is one."""
        if unknown := self.unknown_characters(text):
            raise ManifestError(
                f"expected phonemes of the vocabulary, found {list_characters(unknown)} in {text!r:.60}"
            )
        end = () if self.delimiter_id is None else (self.delimiter_id,)
        return [i for word in split_words(text) for i in (*(self._ids[x] for x in self._split(word)), *end)]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn labels into text; repeats stay repeats."""
        spoken = [i for i in ids if i != self.blank_id]
        if self.delimiter_id is None:
            return " ".join(self.symbols[i] for i in spoken)
        words: list[list[str]] = [[]]
        for i in spoken:
            if i == self.delimiter_id:
                words.append([])
            else:
                words[-1].append(self.symbols[i])
        return " ".join(JOINER.join(word) for word in words if word)

    def _begins_word(self, i: int) -> bool:
        return self.delimiter_id is None

    def unknown_characters(self, text: str) -> tuple[str, ...]:
        """Return the distinct phonemes of a text that the vocabulary lacks, sorted."""
        phonemes = {phoneme for word in split_words(text) for phoneme in self._split(word)}
        return tuple(sorted(phonemes - (self._ids.keys() - {BLANK, WORD_DELIMITER})))

    def save(self, path: Path) -> None:
        """Write them as JSON; `load_units` reads it."""
        content = {"kind": self.kind, "symbols": self._ids}
        write_text_file(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    def _split(self, word: str) -> list[str]:
        return [word] if self.delimiter_id is None else word.split(JOINER)
