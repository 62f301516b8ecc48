"""Where a recording comes from: a path, a file inside an archive, a file object or a pipe, opened for reading."""

import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import soundfile

from speechssl.data.container import expected_bytes, states_mp3_length
from speechssl.data.pyav import AVStream, open_with_av
from speechssl.errors import AudioError

_MIN_SAMPLE_RATE = 1000  # less is a broken header, and a second of it would become an hour
_SPOOL_BYTES = 1 << 24  # of what cannot seek, kept in memory; more goes into a temporary file
_BUFFER_BYTES = 1 << 16

Source = str | os.PathLike[str] | BinaryIO


def source_name(source: Source) -> str:
    """What messages call it."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "stream"  # temporary files and pipes have numbers


class _Part(io.RawIOBase):
    """A part of a file object as a file with a position of its own, so that any number can be read at a time.

    It ends where reading fails, because libsndfile cannot be told; what failed is in `errors`.
    """

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file, self.start, self.size = file, start, size
        self.position = 0
        self.errors: list[Exception] = []

    def opened(self) -> BinaryIO:
        part = _Part(self.file, self.start, self.size)
        part.errors = self.errors
        return io.BufferedReader(part, _BUFFER_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = max(0, (0, self.position, self.size)[whence] + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Read at the position; an error of the file ends what can be read and is kept in `errors`."""
        num_read, wanted = 0, max(0, min(len(buffer), self.size - self.position))
        try:
            if wanted:
                self.file.seek(self.start + self.position)
            while num_read < wanted and (block := self.file.read(wanted - num_read)):
                buffer[num_read : num_read + len(block)] = block
                num_read += len(block)
        except (OSError, ValueError, TypeError) as error:
            self.errors.append(error)
        self.position += num_read
        return num_read


@dataclass(frozen=True)
class OpenedRecording:
    """A recording that libsndfile opened or PyAV decodes.

    Attributes:
        name: What messages call it.
        file: Its path, or the part of a file that it is.
        sample_rate: Samples a second.
        num_channels: Channels.
        num_samples: Samples of each channel; of what PyAV decodes not known, 0.
        content: What reads or decodes it.
    """

    name: str
    file: str | _Part
    sample_rate: int
    num_channels: int
    num_samples: int
    content: soundfile.SoundFile | AVStream

    def check_complete(self) -> None:
        """Refuse a file that was cut off, where its format says how long it is.

        Raises:
            AudioError: it has fewer bytes than it should.
        """
        with _opened(self.file) as stream:
            expected, found = expected_bytes(stream), stream.seek(0, os.SEEK_END)
        if found < expected:
            raise AudioError(f"{self.name}: expected {expected} bytes, found {found}: the file is cut off")

    def check_channel(self, channel: int | None) -> None:
        """Refuse a channel, counted from 1, that the recording lacks; None is the mean of all.

        Raises:
            AudioError: there is no such channel.
        """
        if channel is not None and not 1 <= channel <= self.num_channels:
            raise AudioError(f"{self.name}: expected a channel from 1 to {self.num_channels}, found {channel}")


@contextmanager
def open_recording(source: Source, name: str) -> Iterator[OpenedRecording]:
    """Open a recording; what is opened here is closed at the end, and a file object left where it ends.

    Args:
        source: As for `read_audio`.
        name: What messages call it.

    Raises:
        AudioError: it is missing, empty, a folder, no audio, or cannot be read.
    """
    with ExitStack() as stack:
        with translated(name):
            file = _locate(name, source, stack)
        try:
            yield _opened_recording(name, file, stack)
        except AudioError:
            _check_read(name, file)  # what follows from it says less
            raise
        _check_read(name, file)


def _opened_recording(name: str, file: str | _Part, stack: ExitStack) -> OpenedRecording:
    sound = _open_with_libsndfile(file)
    if sound is None:
        stream = stack.enter_context(open_with_av(name, file if isinstance(file, str) else file.opened()))
        recording = OpenedRecording(name, file, stream.sample_rate, stream.num_channels, 0, stream)
    else:
        stack.enter_context(sound)
        recording = OpenedRecording(name, file, sound.samplerate, sound.channels, sound.frames, sound)
    rate = recording.sample_rate
    if rate < _MIN_SAMPLE_RATE:
        raise AudioError(f"{name}: expected {_MIN_SAMPLE_RATE} samples a second or more, found {rate}")
    return recording


def _check_read(name: str, file: str | _Part) -> None:
    if isinstance(file, _Part) and file.errors:
        with translated(name):
            raise file.errors[0]


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Errors of opening and reading files, as those of the recording."""
    try:
        yield
    except FileNotFoundError:
        raise AudioError(f"{name}: expected an audio file, found none") from None
    except (OSError, ValueError, TypeError) as error:  # ValueError: a closed file, or a zero byte in the path
        raise AudioError(f"{name}: expected an audio file: {getattr(error, 'strerror', None) or error}") from None


def _locate(name: str, source: Source, stack: ExitStack) -> str | _Part:
    """The recording's path or, when a path would not do, the part of a file that it is; the stack closes that."""
    if is_pipe(source):
        return _rest(name, stack.enter_context(spooled(name, source)))
    if not isinstance(source, str | os.PathLike):
        stack.callback(_leave_at_end, source)
        return _rest(name, source)
    path = os.fspath(source)
    if not Path(path).exists() and (member := re.fullmatch(r"(.+):(\d+):(\d+)", path, re.DOTALL)):
        archive = Path(member[1])
        return _archive_member(name, stack.enter_context(archive.open("rb")), int(member[2]), int(member[3]))
    status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{name}: expected an audio file, found a folder")
    if not status.st_size:
        raise AudioError(f"{name}: expected audio, found an empty file")
    return path


def is_pipe(source: Source) -> bool:
    """Whether it is a pipe, or an object that does not seek."""
    if not isinstance(source, str | os.PathLike):
        seekable = getattr(source, "seekable", None)
        return seekable is None or not seekable()
    with suppress(OSError, ValueError):
        mode = Path(source).stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def spooled(name: str, source: Source) -> BinaryIO:
    """A copy of what can be read only once; it is in memory if it is small, and gone when it is closed."""
    copy = cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOL_BYTES))  # noqa: SIM115
    with Path(source).open("rb") if isinstance(source, str | os.PathLike) else nullcontext(source) as file:
        while block := file.read(_BUFFER_BYTES):
            _check_binary(name, block)
            copy.write(block)
    copy.seek(0)
    return copy


def _rest(name: str, file: BinaryIO) -> _Part:
    """All of a file object from where it stands."""
    start = file.tell()
    _check_binary(name, file.read(0))
    file.seek(0, os.SEEK_END)
    size = file.tell() - start
    if size <= 0:
        raise AudioError(f"{name}: expected audio, found an empty file")
    return _Part(file, start, size)


def _check_binary(name: str, content: object) -> None:
    if not isinstance(content, bytes):
        raise AudioError(f"{name}: expected a file opened in binary mode, found {type(content).__name__}")


def _leave_at_end(file: BinaryIO) -> None:
    with suppress(OSError, ValueError):  # its owner may have closed it
        file.seek(0, os.SEEK_END)


def _archive_member(name: str, archive: BinaryIO, offset: int, size: int) -> _Part:
    found = max(0, archive.seek(0, os.SEEK_END) - offset)
    if found < size:
        raise AudioError(f"{name}: expected {size} bytes from byte {offset} on, found {found}")
    if not size:
        raise AudioError(f"{name}: expected audio, found an empty file")
    return _Part(archive, offset, size)


def _open_with_libsndfile(file: str | _Part) -> soundfile.SoundFile | None:
    """The opened recording; None if libsndfile does not know the format or its length."""
    try:
        # As bytes, because a name need not be UTF-8.
        sound = soundfile.SoundFile(os.fsencode(file) if isinstance(file, str) else file.opened())  # type: ignore[arg-type]
    except (soundfile.LibsndfileError, TypeError):  # TypeError: it takes *.raw for samples without a header
        return None
    if sound.frames > 2**62:  # FLAC written to a pipe
        return None
    if sound.format == "MP3":
        with _opened(file) as stream:
            return sound if states_mp3_length(stream) else None
    return sound


def _opened(file: str | _Part) -> BinaryIO:
    return Path(file).open("rb") if isinstance(file, str) else file.opened()


def seeks(sound: soundfile.SoundFile) -> bool:
    """Whether it goes where it should: not in GSM, and in MP3 by guess, after each read too, so that it can miss."""
    return sound.format != "MP3" and sound.seekable()
