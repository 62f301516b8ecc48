"""The one reader of recordings: any common format, rate and number of channels -> mono float32 samples, in blocks."""

import io
import math
import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import soundfile

from speechssl.data.audio import Waveform, check_values, gather, join, mix, resample_blocks
from speechssl.data.container import begins_like_recording, inspect_file
from speechssl.data.levels import Levels
from speechssl.data.packets import Contents, find_another
from speechssl.data.pyav import AVStream, open_with_av
from speechssl.data.sources import (
    AudioInput,
    File,
    Source,
    is_pipe,
    open_bytes,
    open_source,
    patched,
    source_name,
    spooled,
    translated,
)
from speechssl.errors import AudioError

_MIN_SAMPLE_RATE = 1000  # less is a broken header, and a second of it would become an hour
_BLOCK_SECONDS = 10

_Block = npt.NDArray[np.float32]  # (n, channels)


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
    with _opened(source, source_name(source)) as reader:
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
    with _opened(source, name) as reader:
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
    """

    def __init__(
        self, source: AudioInput, channel: int | None = None, start: float | None = None, end: float | None = None
    ) -> None:
        if not 0 <= (start or 0) < (math.inf if end is None else end):
            raise ValueError(f"expected a start from 0 on and an end after it, found {start} and {end}")
        self.source, self._name = _as_file(source), source_name(source)
        self.channel, self.start, self.end = channel, start or 0.0, end
        self._position: int | None = None
        self._was_read = False

    def __iter__(self) -> Iterator[Waveform]:
        """Yield (n,) float32 blocks; an `AudioWarning` at the end, the first time, says what should be mended.

        Errors are those of `read_audio`.
        """
        with _opened(self._rewound(), self._name) as reader:
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


@dataclass(frozen=True)
class _Reader:
    """A recording that libsndfile opened or PyAV decodes."""

    name: str
    file: File
    contents: Contents
    content: soundfile.SoundFile | AVStream
    sample_rate: int
    num_channels: int
    num_samples: int | None  # None if only decoding tells

    def levels(self, channel: int | None) -> Levels:
        """Return what measures a channel, or all."""
        return Levels(self.sample_rate, 1 if channel else self.num_channels)

    def blocks(self, start: int, stop: float, channel: int | None, levels: Levels | None = None) -> Iterator[Waveform]:
        """Yield the samples from ``start`` until ``stop`` or the end, mono, (n,) at a time.

        Only these are decoded, except that MP3, GSM and what only PyAV reads are decoded from their start. A file that
        was cut off is an error only if its end is asked for.
        """
        if channel is not None and not 1 <= channel <= self.num_channels:
            raise AudioError(f"{self.name}: expected a channel from 1 to {self.num_channels}, found {channel}")
        if math.isinf(stop) or (self.num_samples is not None and stop > self.num_samples):
            self.check_complete()
        first = start
        for block in gather(self._parts(start, stop), _BLOCK_SECONDS * self.sample_rate):
            samples = mix(block, channel)
            check_values(self.name, samples, first)
            first += len(samples)
            if levels is not None:
                levels.add(block if channel is None else block[:, channel - 1 : channel])
            yield samples

    def _parts(self, start: int, stop: float) -> Iterator[_Block]:
        total = 0
        for position, block in self.decode(start, stop):
            total = position + len(block)
            part = block[max(start - position, 0) : int(min(stop - position, len(block)))]
            if len(part):
                yield part
            if total >= stop:
                return
        if self.num_samples is None:
            if not math.isinf(stop):
                self.check_complete()  # before, it was not known that the end is asked for
        else:
            total = self.num_samples
        if not total:
            raise AudioError(f"{self.name}: expected audio, found 0 samples")
        if start >= total:
            seconds, found = start / self.sample_rate, total / self.sample_rate
            raise AudioError(f"{self.name}: expected more than {seconds:g} seconds of audio, found {found:.3f}")

    def decode(self, start: int, stop: float) -> Iterator[tuple[int, _Block]]:
        """Yield (position, block) from ``start`` or an earlier sample until ``stop`` or the end."""
        if isinstance(self.content, AVStream):
            position = 0
            for block in self.content.blocks:
                yield position, block
                position += len(block)
        else:
            yield from self._decode_sound(self.content, start, int(min(stop, self.content.frames)))

    def _decode_sound(self, sound: soundfile.SoundFile, start: int, stop: int) -> Iterator[tuple[int, _Block]]:
        block_samples = _BLOCK_SECONDS * self.sample_rate
        try:
            # It does not go where it should in GSM, and in MP3 by guess.
            position = sound.seek(min(start, stop)) if sound.format != "MP3" and sound.seekable() else 0
            # It would seek after each read, to where it already is.
            sound.seekable = lambda: False  # type: ignore[method-assign]
            while position < stop:
                num_wanted = (start if position < start else stop) - position
                block = sound.read(min(num_wanted, block_samples), dtype="float32", always_2d=True)
                if not len(block):
                    raise AudioError(f"{self.name}: expected {stop} samples, found {position}")
                yield position, np.asarray(block, np.float32)
                position += len(block)
        except soundfile.LibsndfileError as error:
            reason = error.error_string or "the file is damaged or cut off"
            raise AudioError(f"{self.name}: expected {stop} samples, found a decoding error: {reason}") from None

    def check_complete(self, is_thorough: bool = True) -> None:
        """Refuse a file that cannot be read to its end, and warn of what is suspicious in it."""
        problem = self.contents.problem
        if is_thorough and problem is None and not isinstance(self.content, AVStream):
            with open_bytes(self.file) as stream:
                problem = find_another(stream)
        if problem is not None:
            raise AudioError(f"{self.name}: {problem}")
        if self.contents.remark is not None:
            warnings.warn(f"{self.name}: {self.contents.remark}", stacklevel=2)


def _as_file(source: AudioInput) -> Source:
    if not isinstance(source, bytes | bytearray | memoryview):
        return source
    content = bytes(source)
    if not begins_like_recording(content[:4096]):
        advice = "for samples without a header, write numpy.frombuffer(data, numpy.int16) and their sample_rate"
        raise AudioError(f"buffer: expected the bytes of an audio file, found others ({advice})")
    return io.BytesIO(content)


@contextmanager
def _opened(source: AudioInput, name: str) -> Iterator[_Reader]:
    with ExitStack() as stack:
        file = stack.enter_context(open_source(_as_file(source), name))
        with translated(name):
            contents = inspect_file(file)
            file = stack.enter_context(patched(file, contents.patches))
        sound = _open_with_libsndfile(file, contents)
        if sound is not None:
            stack.enter_context(sound)
            reader = _Reader(name, file, contents, sound, sound.samplerate, sound.channels, sound.frames)
        else:
            try:
                stream = stack.enter_context(open_with_av(name, file if isinstance(file, str) else file.open()))
            except AudioError:
                if contents.problem is None:
                    raise
                raise AudioError(f"{name}: {contents.problem}") from None
            contents = replace(contents, remark=stream.remark or contents.remark)
            reader = _Reader(name, file, contents, stream, stream.sample_rate, stream.num_channels, None)
        rate = reader.sample_rate
        if rate < _MIN_SAMPLE_RATE:
            raise AudioError(f"{name}: expected {_MIN_SAMPLE_RATE} samples a second or more, found {rate}")
        yield reader


def _open_with_libsndfile(file: File, contents: Contents) -> soundfile.SoundFile | None:
    """Open a recording; None if libsndfile does not know the format or its length."""
    if not contents.is_for_libsndfile:
        return None
    try:
        # As bytes, because a name need not be UTF-8.
        sound = soundfile.SoundFile(os.fsencode(file) if isinstance(file, str) else file.open())  # type: ignore[arg-type]
    except (soundfile.LibsndfileError, TypeError):  # TypeError: it takes *.raw for samples without a header
        return None
    if sound.frames > 2**62:  # FLAC written to a pipe
        return None
    return sound if sound.format != "MP3" or contents.has_true_mp3_tag else None  # without a tag it guesses
