"""A given text beside a recording: when each of its words was said, and where text and speech disagree."""

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from torch import Tensor

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.units import Units, list_characters, split_words
from speechssl.decode.gapped_alignment import Placed
from speechssl.decode.long_alignment import align_parts
from speechssl.decode.words import Letter, Word, letters_of_path
from speechssl.frames import FrameGeometry

WINDOW_SECONDS = 90.0
JSON_FORMAT, JSON_VERSION = "speechssl-alignment", 1


class Status(StrEnum):
    """How a word of text and speech belong together."""

    SAID = "said"
    NOT_SAID = "not said"  # it is in the text alone
    NOT_IN_TEXT = "not in text"  # it was heard alone
    NOT_SPELLED = "not spelled"  # the model has no letters for it: its time is what lies between its neighbors


@dataclass(frozen=True, slots=True)
class AlignedWord:
    """A word of the text as it is written there, or what was heard between its words."""

    text: str
    status: Status
    letters: tuple[Letter, ...] = ()

    @property
    def start(self) -> float | None:
        """Seconds from the start of the recording; None if it is not said."""
        return self.letters[0].start if self.letters else None

    @property
    def end(self) -> float | None:
        """Seconds from the start of the recording; None if it is not said."""
        return self.letters[-1].end if self.letters else None

    @property
    def confidence(self) -> float | None:
        """From 0 to 1, the geometric mean of its letters; None if it is not said."""
        if not self.letters:
            return None
        logs = [math.log(max(letter.confidence, 1e-30)) for letter in self.letters]
        return math.exp(sum(logs) / len(logs))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        values: dict[str, Any] = {"text": self.text, "status": str(self.status)}
        if self.letters:
            assert self.start is not None
            assert self.end is not None
            assert self.confidence is not None
            values |= Word(self.text, self.start, self.end, self.confidence, letters=self.letters).to_dict(letters=True)
        return values


@dataclass(frozen=True)
class Alignment:
    """A text and a recording, word by word in their common order."""

    seconds: float  # length of the recording, or of its part up to the end of an utterance
    words: tuple[AlignedWord, ...]
    notes: tuple[str, ...] = ()  # what of the text the model cannot spell

    def shifted(self, seconds: float) -> "Alignment":
        """Return the alignment as part of a recording, in which it starts at ``seconds``."""
        words = (
            replace(word, letters=tuple(letter.shifted(seconds) for letter in word.letters)) for word in self.words
        )
        return replace(self, seconds=self.seconds + seconds, words=tuple(words))

    def to_dict(self, path: str | None = None) -> dict[str, Any]:
        """Return it as plain JSON types, times in seconds to the millisecond."""
        return {
            "format": JSON_FORMAT,
            "version": JSON_VERSION,
            "path": path,
            "seconds": round(self.seconds, 3),
            "confidences": "uncalibrated",
            "words": [word.to_dict() for word in self.words],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class SpelledWord:
    """A word as it is written, and the labels of what of it a model can say; none if it cannot be spelled."""

    text: str
    labels: tuple[int, ...]


def spell(text: str, units: Units) -> tuple[list[SpelledWord], list[str]]:
    """Spell a text as it is written, punctuation and capitals included, in the units of a model.

    Returns:
        Its words, and a note on each that has letters or digits which no unit stands for.
    """
    words: list[SpelledWord] = []
    notes: list[str] = []
    for number, word in enumerate(split_words(text)):
        labels, unknown = _spell_word(word, units)
        if unknown:
            notes.append(f"word {number + 1}: {word!r} is skipped over: no unit for {list_characters(unknown)}")
        elif not labels and words:  # a dash, which belongs to the word before it
            words[-1] = SpelledWord(f"{words[-1].text} {word}", words[-1].labels)
            continue
        words.append(SpelledWord(word, labels))
    return words, notes


def _spell_word(word: str, units: Units) -> tuple[tuple[int, ...], Sequence[str]]:
    """Return the labels of a word, and the letters and digits, or phonemes, that no unit stands for."""
    forms = (word, word.lower())
    for form in forms:
        if not units.unknown_characters(form):
            return tuple(units.encode(form)), ""
    unknown = units.unknown_characters(forms[1])
    lacking = [found for found in unknown if any(unicodedata.category(character)[0] in "LN" for character in found)]
    if lacking:
        return (), lacking
    known = "".join(character for character in forms[1] if character not in unknown)
    return (tuple(units.encode(known)) if known else ()), ""


class WordAligner:
    """Aligns texts by what one model says of the frames."""

    def __init__(self, units: Units, geometry: FrameGeometry) -> None:
        self.units, self.geometry = units, geometry
        self.window_frames = round(WINDOW_SECONDS * SAMPLE_RATE / geometry.hop_samples)

    def place(self, parts: Iterable[Tensor], words: Sequence[SpelledWord]) -> Iterator[Placed]:
        """Place the words on the frames of a recording, whose (S, V) log probabilities come in parts."""
        labels = [word.labels for word in words]
        arrays = (part.numpy() for part in parts)
        return align_parts(arrays, labels, self.units.blank_id, self.units.delimiter_id, self.window_frames)

    def name(self, placed: Iterable[Placed], words: Sequence[SpelledWord], num_samples: int) -> Iterator[AlignedWord]:
        """Turn frames into seconds and numbers of words into words."""
        for item in placed:
            letters = letters_of_path(item.tokens, self.units, self.geometry, num_samples)
            if item.word is None:
                heard = self.units.decode(token.symbol_id for token in item.tokens)
                yield AlignedWord(heard, Status.NOT_IN_TEXT, letters)
                continue
            word = words[item.word]
            status = Status.SAID if word.labels else Status.NOT_SPELLED
            yield AlignedWord(word.text, status if letters else Status.NOT_SAID, letters)
