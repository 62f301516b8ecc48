"""The words of a text of any length in a recording of any length, in constant memory: window by window."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from speechssl.decode.gapped_alignment import Array, Placed, align_frames

_ANCHOR_WORDS = 4  # said one after another, with nothing else between them
_ANCHOR_LOG_PROB = math.log(0.2)  # of each
_MOST_LABELS = 6_000  # of a text beside one window


def align_parts(
    parts: Iterable[Array],
    words: Sequence[Sequence[int]],
    blank_id: int,
    delimiter_id: int | None,
    window_frames: int,
) -> Iterator[Placed]:
    """Place words on the frames of a recording, which come in parts.

    A window is aligned with as much of the text as could be said in it. What comes before the last anchor in it, a few
    words that fit well, is final; the next window begins there. Where no word fits, more and more text is tried, then
    half of the window passes for sounds that the text lacks. So text and speech may disagree for any time, but text
    that is not said may have ``_MOST_LABELS`` in one place.

    Args:
        parts: (S, V) natural logarithms each.
        words, blank_id, delimiter_id: As for `align_frames`.
        window_frames: More than the longest stretch without an anchor.

    Yields:
        As `align_frames` returns them, frames counted from the start of the recording.
    """
    window = _Window(words, blank_id, delimiter_id)
    for part in parts:
        window.add(part)
        while window.num_frames >= window_frames:
            yield from window.settle(window_frames)
    yield from window.finish()


class _Window:
    """Frames that are not settled, and the words from which on the text is not."""

    def __init__(self, words: Sequence[Sequence[int]], blank_id: int, delimiter_id: int | None) -> None:
        self.words, self.blank_id, self.delimiter_id = words, blank_id, delimiter_id
        self.first_frame = self.first_word = 0
        self.pending: list[Array] = []

    @property
    def num_frames(self) -> int:
        return sum(map(len, self.pending))

    def add(self, part: Array) -> None:
        self.pending.append(part)

    def settle(self, num_frames: int) -> Iterator[Placed]:
        """Yield what is certain of the first frames, and forget these."""
        frames = np.concatenate(self.pending)
        most_labels = num_frames  # a label a frame: nobody speaks as fast
        while True:
            placed, is_all = self._align(frames[:num_frames], most_labels, may_end_early=True)
            anchor = _last_anchor(placed, num_frames)
            if anchor is not None or is_all or most_labels >= _MOST_LABELS:
                break
            most_labels = min(4 * most_labels, _MOST_LABELS)
        if anchor is None:
            # The first half is no text, except for words that end in it and that nothing contradicts.
            stop = num_frames // 2
            settled = self._align(frames[:stop], 0, may_end_early=False)[0]
        else:
            word = placed[anchor]
            stop = (placed[anchor - 1].tokens[-1].last_frame + 1 + word.tokens[0].first_frame) // 2
            settled = placed[:anchor]
            assert word.word is not None
        yield from self._counted(settled)
        self.first_word += 0 if anchor is None else placed[anchor].word or 0
        self.first_frame += stop
        self.pending = [frames[stop:]]

    def finish(self) -> Iterator[Placed]:
        """Yield what is left of the recording and of the text."""
        none = np.empty((0, self.blank_id + 1), np.float32)
        frames = np.concatenate(self.pending or [none])
        placed: list[Placed] = []
        is_all = True
        if len(frames):
            placed, is_all = self._align(frames, max(len(frames), _MOST_LABELS), may_end_early=False)
        yield from self._counted(placed)
        if not is_all or not len(frames):
            done = max((item.word + 1 for item in placed if item.word is not None), default=0)
            yield from (Placed(number, ()) for number in range(self.first_word + done, len(self.words)))

    def _align(self, frames: Array, most_labels: int, *, may_end_early: bool) -> tuple[list[Placed], bool]:
        """Align frames with the next words that have so many labels; return whether that is the whole text."""
        stop, labels = self.first_word, 0
        while stop < len(self.words) and labels < most_labels:
            labels += len(self.words[stop])
            stop += 1
        words = self.words[self.first_word : stop]
        placed = align_frames(frames, words, self.blank_id, self.delimiter_id, may_end_early=may_end_early)
        return placed, stop == len(self.words)

    def _counted(self, placed: Iterable[Placed]) -> Iterator[Placed]:
        """Count frames and words from the start of the recording and of the text."""
        for item in placed:
            word = None if item.word is None else self.first_word + item.word
            tokens = tuple(
                replace(
                    token,
                    first_frame=token.first_frame + self.first_frame,
                    last_frame=token.last_frame + self.first_frame,
                )
                for token in item.tokens
            )
            yield Placed(word, tokens)


def _last_anchor(placed: Sequence[Placed], num_frames: int) -> int | None:
    """Return which word begins the second half of the last anchor that leaves context behind it."""
    run = 0
    found = None
    for number, item in enumerate(placed):
        is_good = bool(item.word is not None and item.tokens) and item.log_prob > _ANCHOR_LOG_PROB
        run = run + 1 if is_good else 0
        if run >= _ANCHOR_WORDS and item.tokens[-1].last_frame < 0.95 * num_frames:
            middle = number - _ANCHOR_WORDS // 2 + 1
            if placed[middle].tokens[0].first_frame > num_frames // 4:
                found = middle
    return found
