"""Transcripts of audio while it is recorded: words that are final, and what the rest may become."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from speechssl.data.audio import SAMPLE_RATE, Waveform, mono_samples, resample_blocks, whole_rate
from speechssl.data.units import Units
from speechssl.decode.greedy import PathToken, join_repeats
from speechssl.decode.words import Word, words_of_path
from speechssl.errors import AudioError
from speechssl.frames import FrameGeometry
from speechssl.transcribe.listener import Listener
from speechssl.transcribe.transcript import PAUSE_SECONDS

LONGEST_WORD_SECONDS = 5.0
"""How long an exact stream waits for the end of a word. Then a part of it is final, so that what waits cannot grow."""


@dataclass(frozen=True, slots=True)
class PartialTranscript:
    """What is known of a stream since the result before."""

    words: tuple[Word, ...]  # final since then; they never change
    partial: str  # of what follows the final words, as it looks now
    seconds: float  # of audio so far


def stream_transcripts(
    chunks: Iterable[npt.ArrayLike],
    sample_rate: int,
    step_seconds: float | None,
    listener: Listener,
    units: Units,
    geometry: FrameGeometry,
) -> Iterator[PartialTranscript]:
    """Transcribe a stream.

    A word is final once a delimiter or ``PAUSE_SECONDS`` of silence behind it are decided. Then it never changes.
    Memory does not grow, but with the past of a causal transformer without ``attention_frames``.

    **A causal model** decides on a frame as soon as the chunk has come that completes it. It keeps what it knows of the
    past (`Past`), and computes each frame once. Its log probabilities, to rounding, and its text are those of the whole
    recording in one piece. Only a word with a pause in it, or longer than ``LONGEST_WORD_SECONDS``, is divided into
    words that are joined without a space. A model that normalizes waveforms does so by the minute before each sample
    (`RunningNorm`): the text is that of the whole recording normalized in this way, not as a whole.

    **Any other model** runs on a window that moves along: after each step on what is not decided yet and the
    ``LEFT_SECONDS`` before it. A frame's symbol is decided once ``RIGHT_SECONDS`` of audio follow it. So a word becomes
    final at most ``PAUSE_SECONDS`` + ``RIGHT_SECONDS`` + ``step_seconds`` and a chunk after its end, besides what the
    model takes. These models are trained on whole recordings, and a window is not one: its text differs a little from
    that of `transcribe`, more so in the first seconds. A model that normalizes over time does so within the window. A
    pause ends a word even where the model says no delimiter. Each second costs the model (``LEFT_SECONDS`` +
    ``RIGHT_SECONDS``) / ``step_seconds`` seconds of audio and a step more: a model that is no faster needs longer
    steps.

    Args:
        chunks, sample_rate: As for `Transcriber.stream`.
        step_seconds: New audio from one result to the next; None is ``listener.step_seconds``.
        listener: The model.
        units: What its outputs stand for.
        geometry: Samples to frames.

    Raises:
        AudioError: the chunks are not as for `as_waveform` (but they may be empty), or the rate or the step is no
            positive number; at the first result.
    """
    if step_seconds is None:
        step_seconds = listener.step_seconds
    if not step_seconds > 0:
        raise AudioError(f"stream: expected step_seconds above 0, found {step_seconds}")
    rate = whole_rate(sample_rate)
    stream = _Stream(listener, units, geometry)
    num_waiting = 0
    for samples in resample_blocks(filter(len, map(mono_samples, chunks)), rate):
        stream.add(samples)
        num_waiting += len(samples)
        if num_waiting >= step_seconds * SAMPLE_RATE and stream.has_new_frames:
            num_waiting = 0
            yield stream.decide(is_over=False)
    yield stream.decide(is_over=True)


class _Stream:
    """The window, and the frames that are decided but belong to no final word.

    Frames count from the start of the stream.
    """

    def __init__(self, listener: Listener, units: Units, geometry: FrameGeometry) -> None:
        self.listener, self.units, self.geometry = listener, units, geometry
        self.left_frames, self.right_frames, self.pause_frames, self.longest_frames = (
            round(seconds * SAMPLE_RATE / geometry.hop_samples)
            for seconds in (listener.left_seconds, listener.right_seconds, PAUSE_SECONDS, LONGEST_WORD_SECONDS)
        )
        self.num_samples = 0
        self.window = np.empty(0, np.float32)
        self.window_frame = 0  # the window's first
        self.log_probs: list[float] = []
        self.symbols: list[int] = []
        self.first_frame = 0  # of those in the two lists
        self.last_ids: list[int] = []  # the last letter or delimiter before that, if there is one

    @property
    def has_new_frames(self) -> bool:
        return self.geometry.num_frames(self.num_samples) > self.first_frame + len(self.symbols)

    def add(self, samples: Waveform) -> None:
        self.num_samples += len(samples)
        if self.listener.normalize is not None:
            samples = self.listener.normalize(samples)
        self.window = np.concatenate((self.window, samples))

    def decide(self, is_over: bool) -> PartialTranscript:
        """Run the model on the window, decide on frames and words, and forget what is no longer needed."""
        log_probs, symbols = self.log_probs, self.symbols
        num_frames = self.geometry.num_frames(self.num_samples)
        num_decided = self.first_frame + len(symbols)
        if num_frames > num_decided:
            best = self.listener.score(self.window)[num_decided - self.window_frame :].max(dim=1)
            log_probs, symbols = log_probs + best.values.tolist(), symbols + best.indices.tolist()
            num_decided = max(num_decided, num_frames - (0 if is_over else self.right_frames))
        stop = num_frames if is_over else self._end_of_words(log_probs, symbols, num_decided)
        num_final = stop - self.first_frame
        final = join_repeats(log_probs[:num_final], symbols[:num_final], self.units.blank_id, self.first_frame)
        rest = join_repeats(log_probs[num_final:], symbols[num_final:], self.units.blank_id, stop)
        self.log_probs = log_probs[num_final : num_decided - self.first_frame]
        self.symbols = symbols[num_final : num_decided - self.first_frame]
        self.first_frame = stop
        self._move_window(num_decided - self.left_frames)
        return PartialTranscript(
            self._words(final),
            self.units.decode(token.symbol_id for token in rest),
            self.num_samples / SAMPLE_RATE,
        )

    def _words(self, tokens: list[PathToken]) -> tuple[Word, ...]:
        """Divide final tokens into words; an exact stream joins what no delimiter divides, as the whole has it."""
        words = words_of_path(tokens, self.units, self.geometry, self.num_samples)
        ids = [token.symbol_id for token in tokens]
        if words and self.listener.is_exact:
            first = self.units.word_starts(ids).index(True)
            if not self.units.word_starts([*self.last_ids, *ids])[len(self.last_ids) + first]:
                words = (replace(words[0], is_joined=True), *words[1:])
        self.last_ids = [i for i in (*self.last_ids, *ids) if i not in self.units.special_ids][-1:]
        return words

    def _end_of_words(self, log_probs: list[float], symbols: list[int], num_decided: int) -> int:
        """Return the last frame up to which all is decided and no word is under way."""
        num_tokens = num_decided - self.first_frame
        tokens = join_repeats(log_probs[:num_tokens], symbols[:num_tokens], self.units.blank_id, self.first_frame)
        starts = self.units.word_starts([token.symbol_id for token in tokens])
        end = self.first_frame
        for position, token in enumerate(tokens):
            is_last = position + 1 == len(tokens)
            next_frame = num_decided if is_last else tokens[position + 1].first_frame
            is_end = token.symbol_id == self.units.delimiter_id or (not is_last and starts[position + 1])
            if is_end or next_frame - token.last_frame > self.pause_frames:
                end = token.last_frame + 1
        if self.listener.is_exact and num_tokens > self.longest_frames and len(tokens) > 1:
            end = max(end, tokens[-2].last_frame + 1)  # the last one may go on
        is_word_under_way = bool(tokens) and end <= tokens[-1].last_frame
        return end if is_word_under_way else num_decided

    def _move_window(self, first_frame: int) -> None:
        if first_frame > self.window_frame:
            self.window = self.window[(first_frame - self.window_frame) * self.geometry.hop_samples :]
            self.window_frame = first_frame
