"""The words of a CTC path, with their times and confidences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.units import Units
from speechssl.decode.greedy import PathToken
from speechssl.frames import FrameGeometry


@dataclass(frozen=True, slots=True)
class Word:
    """A word and when it was said."""

    text: str
    start: float  # in seconds, as the end; never before the end of the previous word
    end: float
    confidence: float  # from 0 to 1, the geometric mean of the probabilities of its symbols

    def to_dict(self) -> dict[str, Any]:
        """Return the word as plain JSON types, times to the millisecond."""
        return {
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "text": self.text,
            "confidence": round(self.confidence, 4),
        }


def words_of_path(
    tokens: Sequence[PathToken], units: Units, geometry: FrameGeometry, num_samples: int
) -> tuple[Word, ...]:
    """Divide a path into words.

    A frame stands for the hop in the middle of the samples that it sees. A word lasts from the first frame of its
    first letter to the last frame of its last one; as CTC says blank where it is sure enough, a letter's frames lie
    inside its sound rather than fill it. No word reaches beyond ``num_samples`` at 16 kHz. Separated by spaces, the
    words are the text that the units decode to.
    """
    silent_ids = {units.delimiter_id, *units.special_ids}
    starts = units.word_starts([token.symbol_id for token in tokens])
    firsts = [position for position, is_start in enumerate(starts) if is_start]
    words = []
    for first, stop in pairwise([*firsts, len(tokens)]):
        letters = [token for token in tokens[first:stop] if token.symbol_id not in silent_ids]
        confidence = math.exp(sum(letter.log_prob for letter in letters) / len(letters))
        words.append(
            Word(
                units.decode(letter.symbol_id for letter in letters),
                frame_seconds(letters[0].first_frame, geometry, num_samples),
                frame_seconds(letters[-1].last_frame + 1, geometry, num_samples),
                min(confidence, 1.0),
            )
        )
    return tuple(words)


def frame_seconds(frame: int, geometry: FrameGeometry, num_samples: int) -> float:
    """Return where the hop of a frame begins, which is where that of the frame before it ends."""
    sample = frame * geometry.hop_samples + (geometry.receptive_field_samples - geometry.hop_samples) / 2
    return min(max(sample, 0), num_samples) / SAMPLE_RATE
