"""Where phrases of a list are said: the likeliest path of a CTC model that may leave its greedy path for a phrase.

Word spotting beside greedy decoding (Andrusenko et al., 2024, https://arxiv.org/abs/2406.07096) as one Viterbi search.
A path follows the greedy path, and may spell a phrase from one of its word borders to another. It gets the boost once
the second border is reached. Where no phrase pays, the best path is the greedy one.

Shapes: S frames, V units, N letters of all phrases, P phrases.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Phrase:
    """Words to listen for."""

    labels: tuple[int, ...]  # the letters, with a delimiter between words
    boost: float  # in nats, for the whole phrase
    shown: str | None = None  # what is written instead of its letters, as one word


@dataclass(frozen=True, eq=False)
class Spot:
    """A phrase where it is said."""

    phrase: Phrase
    first_frame: int
    symbols: tuple[int, ...]  # of the frames from there on: the border before the phrase, its own, a delimiter

    @property
    def stop_frame(self) -> int:
        """The frame after its last."""
        return self.first_frame + len(self.symbols)

    @property
    def border(self) -> tuple[int, ...]:
        """The symbols before its first letter."""
        return self.symbols[: self.symbols.index(self.phrase.labels[0])]

    def symbol_of_frame(self) -> Iterator[tuple[int, int]]:
        """Yield its frames and their symbols."""
        return enumerate(self.symbols, self.first_frame)


@dataclass(frozen=True)
class _Step:
    """Where the best paths come from that a frame ends."""

    leaves_border: bool  # whether that with the greedy symbol comes from a border
    phrase: (
        int | None
    )  # at whose end that in a border comes; None if it was in a border before, -1 if on the greedy path
    is_letter: Flags  # (N,), whether a phrase is at the letter rather than at the blank behind it, before the frame
    stays: Flags  # (N,), whether that with a letter had the letter before, too


class Spotter:
    """Finds phrases in log probabilities. Units of ``silent_ids`` have no letter: blank, delimiter, special ones."""

    def __init__(self, phrases: Sequence[Phrase], blank_id: int, delimiter_id: int, silent_ids: frozenset[int]) -> None:
        assert phrases
        assert {blank_id, delimiter_id} <= silent_ids
        self.phrases, self.blank_id, self.delimiter_id, self.silent_ids = phrases, blank_id, delimiter_id, silent_ids
        self._labels = np.array([label for phrase in phrases for label in phrase.labels], np.int64)
        self._lasts = np.cumsum([len(phrase.labels) for phrase in phrases], dtype=np.int64) - 1
        self._firsts = np.concatenate(([0], self._lasts[:-1] + 1))
        self._boosts = np.array([phrase.boost for phrase in phrases])
        self._is_first = np.isin(np.arange(len(self._labels)), self._firsts)
        self._is_doubled = np.concatenate(([False], self._labels[1:] == self._labels[:-1]))  # CTC needs a blank before

    def find(self, log_probs: Array, *, is_border: bool = True, is_end: bool = True) -> list[Spot]:
        """Return the phrases that are said, in their order.

        Args:
            log_probs: (S, V) natural logarithms.
            is_border: Whether no word is under way before the first frame.
            is_end: Whether nothing follows the last frame, so that it ends a word.
        """
        num_frames = len(log_probs)
        if is_end:  # one more frame, for a delimiter that need not be heard
            end = np.full((1, log_probs.shape[1]), -np.inf)
            end[0, self.delimiter_id] = 0.0
            log_probs = np.concatenate((log_probs, end))
        steps, ends_in_border = self._search(log_probs, is_border)
        spots = list(self._read(steps, ends_in_border, log_probs))[::-1]
        return [Spot(spot.phrase, spot.first_frame, spot.symbols[: num_frames - spot.first_frame]) for spot in spots]

    def _search(self, log_probs: Array, is_border: bool) -> tuple[list[_Step], bool]:
        """Return where the best paths come from, frame by frame, and whether the best of all ends in a border."""
        greedy = log_probs.max(axis=1)
        is_between = self._is_between(log_probs.argmax(axis=1).tolist(), is_border)
        followed, border = (-np.inf, 0.0) if is_border else (0.0, -np.inf)
        letter, rest = np.full((2, len(self._labels)), -np.inf)  # the last symbol: a letter, or a blank behind it
        steps = []
        for frame, row in enumerate(log_probs):
            is_letter = letter >= rest
            said = np.where(is_letter, letter, rest)
            # To the border: from the end of a phrase, from a border, from the greedy path.
            ends = said[self._lasts] + self._boosts
            best = int(ends.argmax())
            leave = row[self.delimiter_id] if is_between[frame] else -np.inf
            stay = border + max(row[self.blank_id], row[self.delimiter_id])
            new_border, phrase = max(
                (ends[best] + leave, best), (stay, None), (followed + leave, -1), key=itemgetter(0)
            )
            # To a letter: from itself; from the one before it, or only the blank behind that; the first from a border.
            arrive = np.roll(said, 1)
            arrive[self._is_doubled] = np.roll(rest, 1)[self._is_doubled]
            arrive[self._firsts] = border
            stays = letter >= arrive
            steps.append(_Step(bool(border >= followed), phrase, is_letter, stays))
            letter, rest = np.where(stays, letter, arrive) + row[self._labels], said + row[self.blank_id]
            followed, border = max(border, followed) + greedy[frame], new_border
        return steps, bool(border >= followed)

    def _is_between(self, greedy: Sequence[int], is_border: bool) -> Flags:
        """Return which frames lie between two words of the greedy path, or before or behind all, (S,)."""
        is_between = np.zeros(len(greedy), np.bool_)
        first, is_open = 0, is_border  # of the frames since the last letter, and whether a delimiter is among them
        for frame, symbol in enumerate(greedy):
            if symbol not in self.silent_ids:
                is_between[first:frame] = is_open
                first, is_open = frame + 1, False
            is_open = is_open or symbol == self.delimiter_id
        is_between[first:] = is_open
        return is_between

    def _read(self, steps: Sequence[_Step], ends_in_border: bool, log_probs: Array) -> Iterator[Spot]:
        """Follow the best path back, and yield its phrases, the last first."""
        is_border = ends_in_border
        frame = len(steps) - 1
        while frame >= 0:
            origin = steps[frame].phrase
            if not is_border:
                is_border = steps[frame].leaves_border
            elif origin is None or origin < 0:
                is_border = origin is None
            else:
                symbols = [self.delimiter_id]
                frame = self._read_phrase(steps, origin, frame, symbols)
                # The border before it reaches back to where the greedy path or another phrase was left.
                while frame and steps[frame - 1].phrase is None:
                    frame -= 1
                    blank, delimiter = log_probs[frame, [self.blank_id, self.delimiter_id]]
                    symbols.append(self.delimiter_id if delimiter > blank else self.blank_id)
                if frame and steps[frame - 1].phrase == -1:
                    frame -= 1
                    symbols.append(self.delimiter_id)
                    is_border = False
                yield Spot(self.phrases[origin], frame, tuple(reversed(symbols)))
            frame -= 1

    def _read_phrase(self, steps: Sequence[_Step], phrase: int, stop: int, symbols: list[int]) -> int:
        """Append the symbols of a phrase before a frame, the last first, and return its first frame."""
        state = int(self._lasts[phrase])
        is_letter = bool(steps[stop].is_letter[state])
        for frame in range(stop - 1, -1, -1):
            symbols.append(int(self._labels[state]) if is_letter else self.blank_id)
            if not is_letter:
                is_letter = bool(steps[frame].is_letter[state])
            elif not steps[frame].stays[state]:
                if self._is_first[state]:
                    return frame
                is_letter = not self._is_doubled[state] and bool(steps[frame].is_letter[state - 1])
                state -= 1
        raise AssertionError("a phrase begins after a border")
