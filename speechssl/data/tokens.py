"""The vocabularies of other toolkits: which unit is the blank, which ends a word, and what each writes, is stated."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from speechssl.data.units import Letters, list_characters, split_words
from speechssl.errors import ManifestError
from speechssl.files import write_text_file


@dataclass(frozen=True)
class Tokens(Letters):
    """Units of one or more characters each.

    Attributes:
        symbols: By their ids. One that is white space writes a space.
        blank: CTC's blank.
        delimiter: The unit between words; None if there is none.
        special: Units that are no part of any text, the blank among them.
        lower_case: Whether texts are written in lower case.
        each_is_a_word: Whether a space follows every unit (phonemes).
    """

    blank: str
    delimiter: str | None = None
    special: frozenset[str] = frozenset()
    lower_case: bool = False
    each_is_a_word: bool = False

    def __post_init__(self) -> None:
        assert len(set(self.symbols)) == len(self.symbols), self.symbols
        assert {self.blank, *self.special, self.delimiter or self.blank} <= {*self.symbols}

    @property
    def kind(self) -> str:
        """What the units are."""
        return "phonemes" if self.each_is_a_word else "letters"

    @cached_property
    def blank_id(self) -> int:
        """CTC's blank."""
        return self._ids[self.blank]

    @cached_property
    def delimiter_id(self) -> int | None:  # type: ignore[override]
        """The unit between words, if there is one."""
        return None if self.delimiter is None else self._ids[self.delimiter]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The units that are no part of any text."""
        return frozenset(self._ids[symbol] for symbol in {self.blank, *self.special})

    def encode(self, text: str) -> list[int]:
        """Turn a text into labels, the longest units first; a delimiter follows each word, if there is one."""
        if unknown := self.unknown_characters(text):
            raise ManifestError(f"expected characters of the vocabulary, found {list_characters(unknown)} in {text!r}")
        end = [] if self.delimiter_id is None else [self.delimiter_id]
        return [
            i for word in split_words(text) for i in (*(self._letter_ids[x] for x in self._pattern.findall(word)), *end)
        ]

    def unknown_characters(self, text: str) -> str:
        """Return the distinct characters of a text that the vocabulary lacks, sorted."""
        return "".join(sorted(set("".join(self._pattern.sub("", word) for word in split_words(text)))))

    def decode(self, ids: Iterable[int]) -> str:
        """Turn labels into text: special units are left out and delimiters become spaces; repeats stay repeats."""
        between = " " if self.each_is_a_word else ""
        spoken = (i for i in ids if i not in self.special_ids)
        text = between.join(" " if i == self.delimiter_id else self.symbols[i] for i in spoken)
        return " ".join((text.lower() if self.lower_case else text).split())

    def _begins_word(self, i: int) -> bool:
        return self.each_is_a_word

    def save(self, path: Path) -> None:
        """Write everything as JSON; `load_units` of units_file reads it."""
        content = asdict(self) | {"symbols": self._ids, "special": sorted(self.special)}
        write_text_file(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @cached_property
    def _letter_ids(self) -> dict[str, int]:
        return {symbol: i for symbol, i in super()._letter_ids.items() if symbol}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._letter_ids, key=len, reverse=True))) or r"(?!)")
