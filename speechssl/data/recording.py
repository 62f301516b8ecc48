"""The one reader of recordings: any common format, rate and number of channels -> mono float32 samples, in blocks."""

import math
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

from speechssl.data.audio import Waveform, join, resample_blocks
from speechssl.data.decoder import as_file_object, open_decoder
from speechssl.data.levels import Levels
from speechssl.data.sources import (
    AudioInput,
    Source,
    is_pipe,
    source_name,
    spooled,
    translated,
)
from speechssl.errors import AudioError


@dataclass(frozen=True)
class AudioInfo:
    """The size of a recording."""

    num_samples: int  # of each channel, at the recording's own rate
    sample_rate: int
    num_channels: int


def audio_info(source: AudioInput, *, decode: bool = True) -> AudioInfo:
    """Read the length, rate and channels of a recording.

    What states no length, which only PyAV reads, is decoded, or without ``decode`` has the length 0. Nor are Ogg and
    FLAC then searched for another recording behind the first, for which all of the file is read.

    Raises:
        AudioError: the recording is missing, empty, cut off or no audio.
    """
    with open_decoder(source, source_name(source)) as reader:
        reader.check_complete(is_thorough=decode)
        num_samples = reader.num_samples
        if num_samples is None:
            num_samples = sum(len(block) for _, block in reader.decode(0, math.inf)) if decode else 0
        elif not num_samples:
            raise AudioError(f"{reader.name}: expected audio, found 0 samples")
        return AudioInfo(num_samples, reader.sample_rate, reader.num_channels)


def read_audio(
    source: AudioInput,
    *,
    start: int = 0,
    num_samples: int | None = None,
    sample_rate: int | None = None,
    channel: int | None = None,
) -> Waveform:
    """Read a recording, or a span of it, as a waveform at 16 kHz; an `AudioWarning` says what should be mended in it.

    Args:
        source: As `AudioInput` says.
        start: First sample of the span, at the recording's own rate.
        num_samples: Samples in the span, at the recording's own rate; None means until the end.
        sample_rate: The rate that the recording must have; None means any.
        channel: The channel to read, counted from 1; None means the mean of all.

    Returns:
        (T,) float32, nominally in [-1, 1] (lossy formats and resampling overshoot a little), mono; T is
        ``resampled_length`` of the samples read.

    Raises:
        AudioError: the recording is missing, cut off, damaged or no audio, has not that rate, channel or span, or does
            not fit into memory.
    """
    waveform, levels = read_span(source, start, num_samples, channel, sample_rate)
    levels.warn(source_name(source))
    return join(resample_blocks([waveform], levels.sample_rate))


def read_span(
    source: AudioInput,
    start: int = 0,
    num_samples: int | None = None,
    channel: int | None = None,
    sample_rate: int | None = None,
) -> tuple[Waveform, Levels]:
    """Read as `read_audio` does, but at the recording's own rate, with the levels of its channels."""
    name = source_name(source)
    if start < 0 or (num_samples is not None and num_samples < 1):
        raise AudioError(f"{name}: expected a span inside the recording, found {num_samples} from {start}")
    stop = math.inf if num_samples is None else start + num_samples
    with open_decoder(source, name) as reader:
        if sample_rate is not None and reader.sample_rate != sample_rate:
            raise AudioError(f"{name}: expected {sample_rate} samples a second, found {reader.sample_rate}")
        levels = reader.levels(channel)
        try:
            samples = join(reader.blocks(start, stop, channel, levels))
        except MemoryError:
            raise AudioError(f"{name}: expected audio that fits into memory") from None
    if num_samples is not None and len(samples) < num_samples:
        at = f" from sample {start} on" if start else ""
        raise AudioError(f"{name}: expected {num_samples} samples{at}, found {len(samples)}")
    return samples, levels


class Recording:
    """A recording, or a part of one, as blocks of a waveform at 16 kHz: three hours take as much memory as a minute.

    Nothing is read before the first block is asked for. It can be iterated any number of times, and is decoded each
    time. Joined, the blocks are what `read_audio` gives, sample for sample.

    Args:
        source: As `AudioInput` says; the copy of what cannot seek is kept, so that it too can be iterated again.
        channel: The channel to hear, counted from 1; None is the mean of all.
        start: Seconds from which on it is heard; None is from its start.
        end: Seconds until which it is heard; None, or more than it lasts, is until its end.
        name: What messages call it; None is its path, or what kind of source it is.
    """

    def __init__(
        self,
        source: AudioInput,
        channel: int | None = None,
        start: float | None = None,
        end: float | None = None,
        name: str | None = None,
    ) -> None:
        if not 0 <= (start or 0) < (math.inf if end is None else end):
            raise ValueError(f"expected a start from 0 on and an end after it, found {start} and {end}")
        self.source, self._name = as_file_object(source), name or source_name(source)
        self.channel, self.start, self.end = channel, start or 0.0, end
        self._position: int | None = None
        self._was_read = False

    def __iter__(self) -> Iterator[Waveform]:
        """Yield (n,) float32 blocks; an `AudioWarning` at the end, the first time, says what should be mended.

        Errors are those of `read_audio`.
        """
        with open_decoder(self._rewound(), self._name) as reader:
            rate = reader.sample_rate
            start = round(self.start * rate)
            stop = math.inf if self.end is None else max(start + 1, round(self.end * rate))
            levels = reader.levels(self.channel)
            yield from resample_blocks(reader.blocks(start, stop, self.channel, levels), rate)
            if not self._was_read:
                levels.warn(self._name)
            self._was_read = True

    def _rewound(self) -> Source:
        """Return the source, or the copy of what can be read only once, where it stood at first."""
        with translated(self._name):
            if is_pipe(self.source):
                self.source = spooled(self._name, self.source)
                weakref.finalize(self, self.source.close)
            if not isinstance(self.source, str | os.PathLike):
                if self._position is None:
                    self._position = self.source.tell()
                self.source.seek(self._position)
            return self.source
