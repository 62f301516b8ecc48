"""The words of a CTC path, with their times and confidences."""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from wcwidth import iter_graphemes

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.units import Units
from speechssl.decode.greedy import PathToken
from speechssl.frames import FrameGeometry

_SCRIPTS_WITHOUT_SPACES = {"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}


@dataclass(frozen=True, slots=True)
class Letter:
    """A unit of a model, a letter in most, and when it was said."""

    text: str
    start: float  # in seconds, as the end
    end: float
    confidence: float  # from 0 to 1

    def shifted(self, seconds: float) -> "Letter":
        """Return it as said so much later."""
        return replace(self, start=self.start + seconds, end=self.end + seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types, times to the millisecond."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "text": self.text,
            "confidence": round(self.confidence, 4),
        }


@dataclass(frozen=True, slots=True)
class Word:
    """A word and when it was said."""

    text: str
    start: float  # in seconds, as the end; never before the end of the previous word
    end: float
    confidence: (
        float  # from 0 to 1: the geometric mean of the probabilities of its symbols, or what `Calibration` makes of it
    )
    is_joined: bool = False  # to the word before it, without a space
    letters: tuple[Letter, ...] = field(default=(), compare=False, repr=False)
    posterior: float | None = field(default=None, compare=False)  # in the lattice of a search, if one was made

    def to_dict(self, letters: bool = False) -> dict[str, Any]:
        """Return the word as plain JSON types, times to the millisecond; "joined" only if it is."""
        values = Letter(self.text, self.start, self.end, self.confidence).to_dict()
        if self.is_joined:
            values["joined"] = True
        if letters:
            values["letters"] = [letter.to_dict() for letter in self.letters]
        return values


def join_words(words: Sequence[Word]) -> str:
    """Return the text of words."""
    return "".join(word.text if word.is_joined else f" {word.text}" for word in words).strip()


def words_of_path(
    tokens: Sequence[PathToken], units: Units, geometry: FrameGeometry, num_samples: int
) -> tuple[Word, ...]:
    """Divide a path into words.

    A frame stands for the hop in the middle of the samples that it sees. A word lasts from the first frame of its
    first letter to the last frame of its last one; as CTC says blank where it is sure enough, a letter's frames lie
    inside its sound rather than fill it. No word reaches beyond ``num_samples`` at 16 kHz. In scripts without spaces
    each letter (grapheme cluster) is a word, joined to the one before it. `join_words` gives the text that the units
    decode to.
    """
    silent_ids = {units.delimiter_id, *units.special_ids}
    starts = units.word_starts([token.symbol_id for token in tokens])
    firsts = [position for position, is_start in enumerate(starts) if is_start and not _goes_on(tokens, position)]
    words: list[Word] = []
    for first, stop in pairwise([*firsts, len(tokens)]):
        letters = [token for token in tokens[first:stop] if token.symbol_id not in silent_ids]
        spot = letters[0].spot
        shown = spot.phrase.shown if spot else None
        text = shown or units.decode(letter.symbol_id for letter in letters)
        for part, of_part, is_joined in _divided(text, letters, units):
            confidence = math.exp(sum(letter.log_prob for letter in of_part) / len(of_part))
            of_word = letters_of_path(of_part, units, geometry, num_samples)
            start, end = of_word[0].start, of_word[-1].end
            # Letters of one unit, and marks that follow theirs, share frames.
            start = max(start, words[-1].end) if is_joined else start
            words.append(
                Word(part, start, max(start, end), min(confidence, 1.0), is_joined, of_word, of_part[0].posterior)
            )
    return tuple(words)


def _goes_on(tokens: Sequence[PathToken], position: int) -> bool:
    """Return whether a word is shown as one with the word before it, both of a hot phrase."""
    spot = tokens[position].spot
    return bool(spot and spot.phrase.shown and position >= 2 and tokens[position - 2].spot is spot)


def letters_of_path(
    tokens: Sequence[PathToken], units: Units, geometry: FrameGeometry, num_samples: int
) -> tuple[Letter, ...]:
    """Return each unit of a path with its frames in seconds."""
    return tuple(
        Letter(
            units.decode([token.symbol_id]),
            frame_seconds(token.first_frame, geometry, num_samples),
            frame_seconds(token.last_frame + 1, geometry, num_samples),
            min(math.exp(token.log_prob), 1.0),
        )
        for token in tokens
    )


def _divided(text: str, letters: Sequence[PathToken], units: Units) -> Iterator[tuple[str, Sequence[PathToken], bool]]:
    """Divide a word where its script has no spaces: yield parts, their units, whether they are joined to the last."""
    of_character: list[PathToken] = []
    if any(map(has_no_spaces, text)):
        of_character = [letter for letter in letters for _ in units.decode([letter.symbol_id])]
    if len(of_character) != len(text):
        yield text, letters, False
        return
    first = begin = 0
    clusters = list(iter_graphemes(text))
    for number, cluster in enumerate(clusters):
        stop = first + len(cluster)
        following = clusters[number + 1] if number + 1 < len(clusters) else ""
        # Words of other scripts stay whole.
        if not following or has_no_spaces(cluster[0]) or has_no_spaces(following[0]):
            yield text[begin:stop], of_character[begin:stop], begin > 0
            begin = stop
        first = stop


def has_no_spaces(character: str) -> bool:
    """Return whether a character is of a script that is written without spaces between words."""
    return unicodedata.name(character, "").partition(" ")[0] in _SCRIPTS_WITHOUT_SPACES


def frame_seconds(frame: float, geometry: FrameGeometry, num_samples: int) -> float:
    """Return where the hop of a frame begins, which is where that of the frame before it ends."""
    sample = frame * geometry.hop_samples + (geometry.receptive_field_samples - geometry.hop_samples) / 2
    return min(max(sample, 0), num_samples) / SAMPLE_RATE
