"""A recording that is read in blocks: three hours take as much memory as a minute."""

import math
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import soundfile

from speechssl.data.audio import SAMPLE_RATE, SILENCE_PEAK, Waveform, check_values, cut, mix, peak_of, resampled_length
from speechssl.data.pyav import AVStream
from speechssl.data.sources import (
    OpenedRecording,
    Source,
    is_pipe,
    open_recording,
    seeks,
    source_name,
    spooled,
    translated,
)
from speechssl.errors import AudioError

_BLOCK_SECONDS = 10


class Recording:
    """A recording, or a part of one, as blocks of a waveform at 16 kHz.

    Nothing is read before the first block is asked for. It can be iterated any number of times, and is decoded each
    time. Joined, the blocks are what `read_audio` gives, sample for sample.

    Args:
        source: As for `read_audio`. A file object is read from where it stands. What cannot seek, such as a pipe, is
            read once and kept in a temporary file.
        channel: The channel to hear, counted from 1; None is the mean of all.
        start: Seconds from which on it is heard; None is from its start.
        end: Seconds until which it is heard; None, or more than it lasts, is until its end.
    """

    def __init__(
        self, source: Source, channel: int | None = None, start: float | None = None, end: float | None = None
    ) -> None:
        if not 0 <= (start or 0) < (float("inf") if end is None else end):
            raise ValueError(f"expected a start from 0 on and an end after it, found {start} and {end}")
        self.source, self._name = source, source_name(source)
        self.channel, self.start, self.end = channel, start or 0.0, end
        self._position: int | None = None
        self._is_silent = False

    def __iter__(self) -> Iterator[Waveform]:
        """Yield (n,) float32 blocks; silence is a warning, the first time.

        Raises:
            AudioError: as for `read_audio`, or the recording ends before the start.
        """
        peak = 0.0
        with open_recording(self._rewound(), self._name) as opened:
            for block in resample_blocks(self._blocks(opened), opened.sample_rate):
                peak = max(peak, peak_of(block))
                yield block
            if peak < SILENCE_PEAK and not self._is_silent:
                self._is_silent = True
                warnings.warn(f"{opened.name}: silence", stacklevel=2)

    def _rewound(self) -> Source:
        """The source, or the copy of what can be read only once, where it stood at first."""
        with translated(self._name):
            if is_pipe(self.source):
                self.source = spooled(self._name, self.source)
                weakref.finalize(self, self.source.close)
            if not isinstance(self.source, str | os.PathLike):
                if self._position is None:
                    self._position = self.source.tell()
                self.source.seek(self._position)
            return self.source

    def _blocks(self, opened: OpenedRecording) -> Iterator[Waveform]:
        """The span in mono at its own rate."""
        name, rate, content = opened.name, opened.sample_rate, opened.content
        opened.check_channel(self.channel)
        start = round(self.start * rate)
        stop = math.inf if self.end is None else max(start + 1, round(self.end * rate))
        if isinstance(content, AVStream):
            if math.isinf(stop):
                opened.check_complete()
            blocks = _decode_stream(opened, content, start, stop)
        else:
            if stop >= opened.num_samples:
                opened.check_complete()
            _check_start(name, start, opened.num_samples, rate)
            blocks = _decode(name, content, start, int(min(stop, opened.num_samples)), _BLOCK_SECONDS * rate)
        for block in blocks:
            samples = mix(block, self.channel)
            check_values(name, samples)
            yield samples


def _check_start(name: str, start: int, total: int, sample_rate: int) -> None:
    if not total:
        raise AudioError(f"{name}: expected audio, found 0 samples")
    if start >= total:
        seconds, found = start / sample_rate, total / sample_rate
        raise AudioError(f"{name}: expected more than {seconds:g} seconds of audio, found {found:.3f}")


def _decode_stream(
    opened: OpenedRecording, stream: AVStream, start: int, stop: float
) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks of the samples [start, stop), (n, channels), of frames that are a few hundredths of a second each."""
    total = 0

    def counted() -> Iterator[npt.NDArray[np.float32]]:
        nonlocal total
        for block in stream.blocks:
            total += len(block)
            yield block

    waiting: list[npt.NDArray[np.float32]] = []
    for part in cut(counted(), start, stop):
        waiting.append(part)
        if sum(map(len, waiting)) >= _BLOCK_SECONDS * stream.sample_rate:
            yield np.concatenate(waiting)
            waiting = []
    if total < stop:
        opened.check_complete()
    _check_start(opened.name, start, total, stream.sample_rate)
    if waiting:
        yield np.concatenate(waiting)


def _decode(name: str, sound: soundfile.SoundFile, start: int, stop: int, block_samples: int) -> Iterator[Waveform]:
    """Blocks of the samples [start, stop), (n, channels)."""
    position = 0
    try:
        if seeks(sound):
            position = sound.seek(start)
        # It would seek after each read, to where it already is.
        sound.seekable = lambda: False  # type: ignore[method-assign]
        while position < stop:
            bound = start if position < start else stop
            block = sound.read(min(block_samples, bound - position), dtype="float32", always_2d=True)
            if not len(block):
                raise AudioError(f"{name}: expected {stop} samples, found {position}")
            if position >= start:
                yield np.asarray(block, np.float32)
            position += len(block)
    except soundfile.LibsndfileError as error:
        reason = error.error_string or "the file is damaged or cut off"
        raise AudioError(f"{name}: expected {stop} samples, found a decoding error: {reason}") from None


def resample_blocks(blocks: Iterable[Waveform], sample_rate: int) -> Iterator[Waveform]:
    """Bring blocks to 16 kHz as if they were one."""
    if sample_rate == SAMPLE_RATE:
        yield from blocks
        return
    import soxr  # type: ignore[import-untyped]  # what librosa resamples with

    stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    num_read = num_given = 0
    for block in blocks:
        num_read += len(block)
        resampled = stream.resample_chunk(block)
        num_given += len(resampled)
        if len(resampled):
            yield resampled
    rest = stream.resample_chunk(np.empty(0, np.float32), last=True)
    missing = resampled_length(num_read, sample_rate) - num_given
    if missing > 0:
        yield np.pad(rest[:missing], (0, max(missing - len(rest), 0)))
