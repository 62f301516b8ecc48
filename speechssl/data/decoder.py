"""An open recording that is decoded block by block, by libsndfile or else by PyAV."""

import io
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import soundfile

from speechssl.data.audio import Waveform, check_values, gather, mix
from speechssl.data.container import begins_like_recording, inspect_file
from speechssl.data.levels import Levels
from speechssl.data.packets import Contents, find_another
from speechssl.data.pyav import AVStream, open_with_av
from speechssl.data.sources import (
    AudioInput,
    File,
    Source,
    open_bytes,
    open_source,
    patched,
    translated,
)
from speechssl.errors import AudioError

_MIN_SAMPLE_RATE = 1000  # less is a broken header, and a second of it would become an hour
_BLOCK_SECONDS = 10

_Block = npt.NDArray[np.float32]  # (n, channels)


@dataclass(frozen=True)
class Decoder:
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


def as_file_object(source: AudioInput) -> Source:
    """Return a source, bytes as a file object; an `AudioError` says that they do not begin like an audio file."""
    if not isinstance(source, bytes | bytearray | memoryview):
        return source
    content = bytes(source)
    if not begins_like_recording(content[:4096]):
        advice = "for samples without a header, write numpy.frombuffer(data, numpy.int16) and their sample_rate"
        raise AudioError(f"buffer: expected the bytes of an audio file, found others ({advice})")
    return io.BytesIO(content)


@contextmanager
def open_decoder(source: AudioInput, name: str) -> Iterator[Decoder]:
    """Open a recording, which messages call ``name``; raises `AudioError` as `read_audio` does."""
    with ExitStack() as stack:
        file = stack.enter_context(open_source(as_file_object(source), name))
        with translated(name):
            contents = inspect_file(file)
            file = stack.enter_context(patched(file, contents.patches))
        sound = _open_with_libsndfile(file, contents)
        if sound is not None:
            stack.enter_context(sound)
            reader = Decoder(name, file, contents, sound, sound.samplerate, sound.channels, sound.frames)
        else:
            try:
                stream = stack.enter_context(open_with_av(name, file if isinstance(file, str) else file.open()))
            except AudioError:
                if contents.problem is None:
                    raise
                raise AudioError(f"{name}: {contents.problem}") from None
            contents = replace(contents, remark=stream.remark or contents.remark)
            reader = Decoder(name, file, contents, stream, stream.sample_rate, stream.num_channels, None)
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
