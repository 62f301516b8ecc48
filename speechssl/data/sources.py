"""Where the bytes of a recording come from: a path, a file inside an archive, a file object or a pipe."""

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

from speechssl.data.paths import is_url, split_range
from speechssl.errors import AudioError
from speechssl.terminal import escaped

_SPOOL_BYTES = 1 << 24  # of what cannot seek, kept in memory; more goes into a temporary file
_BUFFER_BYTES = 1 << 16
_REMOTE_CLIP_BYTES = 1 << 24  # of a URL's range, fetched at once; of a longer one and of whole objects, parts

Source = str | os.PathLike[str] | BinaryIO
AudioInput = Source | bytes | bytearray | memoryview
"""A path or a URL, either with fairseq's ``:offset:bytes`` for a file inside an uncompressed archive, a file object
opened in binary mode, which is read from where it stands to its end, or the bytes of a file. What cannot seek, such as
a pipe, is copied first."""


Patches = tuple[tuple[int, bytes], ...]  # places, and the bytes to find there


class _ByteRange(io.RawIOBase):
    """A part of a file object as a file with its own position, so that several can be read at once.

    It ends where reading fails, because libsndfile cannot be told; `errors` keeps what failed. Some bytes of it can be
    replaced by others.
    """

    def __init__(self, file: BinaryIO, start: int, size: int, patches: Patches = ()) -> None:
        self.file, self.start, self.size, self.patches = file, start, size, patches
        self.position = 0
        self.errors: list[Exception] = []

    def open(self) -> BinaryIO:
        part = _ByteRange(self.file, self.start, self.size, self.patches)
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
        """Read bytes from the position on, patched; return how many, also if an error, kept in ``errors``, cut it."""
        num_read, wanted = 0, max(0, min(len(buffer), self.size - self.position))
        try:
            if wanted:
                self.file.seek(self.start + self.position)
            while num_read < wanted and (block := self.file.read(wanted - num_read)):
                buffer[num_read : num_read + len(block)] = block
                num_read += len(block)
        except (OSError, ValueError, TypeError) as error:
            self.errors.append(error)
        for place, content in self.patches:
            for at, byte in enumerate(content, place - self.position):
                if 0 <= at < num_read:
                    buffer[at] = byte
        self.position += num_read
        return num_read


File = str | _ByteRange


def is_buffer(source: object) -> TypeGuard[bytes | bytearray | memoryview]:
    """Return whether it is a file in memory, or what would be taken for samples of 8 bits."""
    if isinstance(source, memoryview):
        return source.ndim == 1 and source.format in ("B", "b", "c")
    return isinstance(source, bytes | bytearray)


def source_name(source: AudioInput) -> str:
    """Return the name of a recording in messages."""
    if isinstance(source, str | os.PathLike):
        return escaped(os.fspath(source))
    name = getattr(source, "name", "buffer" if is_buffer(source) else None)
    return escaped(name) if isinstance(name, str) else "stream"  # temporary files and pipes have numbers


@contextmanager
def open_source(source: Source, name: str) -> Iterator[File]:
    """Find the bytes of a recording: its path, or the part of a file object that it is.

    What is opened here is closed afterwards; a file object is left at its end.

    Raises:
        AudioError: the recording is missing, empty, a folder, or cannot be read, now or later.
    """
    with ExitStack() as stack:
        with translated(name):
            file = _locate(name, source, stack)
        if isinstance(file, str):
            yield file
            return
        if file.size <= 0:
            raise AudioError(f"{name}: expected audio, found an empty file")
        try:
            yield file
        except AudioError:
            if not file.errors:  # what follows from these says less
                raise
        if file.errors:
            with translated(name):
                raise file.errors[0]


def open_bytes(file: File) -> BinaryIO:
    """Open the bytes that `open_source` found; several can be open at once."""
    return file.open() if isinstance(file, _ByteRange) else Path(file).open("rb")


@contextmanager
def patched(file: File, patches: Patches) -> Iterator[File]:
    """Replace some bytes of what `open_source` found by others."""
    if not patches:
        yield file
    elif isinstance(file, str):
        with Path(file).open("rb") as stream:
            yield _ByteRange(stream, 0, Path(file).stat().st_size, patches)
    else:
        part = _ByteRange(file.file, file.start, file.size, patches)
        part.errors = file.errors
        yield part


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Raise errors of opening and reading files as those of the recording."""
    try:
        yield
    except FileNotFoundError:
        raise AudioError(f"{name}: expected an audio file, found none") from None
    except (OSError, ValueError, TypeError) as error:  # ValueError: a closed file, or a zero byte in the path
        raise AudioError(f"{name}: expected an audio file: {getattr(error, 'strerror', None) or error}") from None


def _locate(name: str, source: Source, stack: ExitStack) -> File:
    if is_pipe(source):
        source = stack.enter_context(spooled(name, source))
    if not isinstance(source, str | os.PathLike):
        start = source.tell()
        _check_binary(name, source.read(0))
        part = _ByteRange(source, start, source.seek(0, os.SEEK_END) - start)
        stack.callback(_leave_at_end, source)
        return part
    path = os.fspath(source)
    if is_url(path):
        return _locate_object(name, path, stack)
    if (member := split_range(path)) and not Path(path).exists():
        archive = stack.enter_context(open_bytes(member[0]))
        return _part(name, archive, archive.seek(0, os.SEEK_END), *member[1:])
    status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{name}: expected an audio file, found a folder")
    if not status.st_size:
        raise AudioError(f"{name}: expected audio, found an empty file")
    return path


def _locate_object(name: str, url: str, stack: ExitStack) -> _ByteRange:
    from speechssl.data.remote import object_size, open_object, read_range

    member = split_range(url)
    if member is None:
        num_bytes = object_size(url)
        return _ByteRange(stack.enter_context(open_object(url, num_bytes)), 0, num_bytes)
    archive, start, size = member
    if size <= _REMOTE_CLIP_BYTES:
        content = read_range(archive, start, size)
        _check_found(name, start, size, len(content))
        return _ByteRange(io.BytesIO(content), 0, size)
    found = object_size(archive)
    return _part(name, stack.enter_context(open_object(archive, found)), found, start, size)


def _part(name: str, archive: BinaryIO, archive_bytes: int, start: int, size: int) -> _ByteRange:
    _check_found(name, start, size, max(0, archive_bytes - start))
    return _ByteRange(archive, start, size)


def _check_found(name: str, start: int, size: int, found: int) -> None:
    if found < size:
        raise AudioError(f"{name}: expected {size} bytes from byte {start} on, found {found}")


def _leave_at_end(file: BinaryIO) -> None:
    with suppress(OSError, ValueError):  # its owner may have closed it
        file.seek(0, os.SEEK_END)


def is_pipe(source: Source) -> bool:
    """Return whether it can be read only once: a pipe, or an object that does not seek."""
    if not isinstance(source, str | os.PathLike):
        seekable = getattr(source, "seekable", None)
        return seekable is None or not seekable()
    with suppress(OSError, ValueError):
        mode = Path(source).stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def spooled(name: str, source: Source) -> BinaryIO:
    """Copy a pipe; the copy is in memory if it is small, and gone when it is closed."""
    copy = cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOL_BYTES))  # noqa: SIM115
    with Path(source).open("rb") if isinstance(source, str | os.PathLike) else nullcontext(source) as file:
        while block := file.read(_BUFFER_BYTES):
            _check_binary(name, block)
            copy.write(block)
    copy.seek(0)
    return copy


def _check_binary(name: str, content: object) -> None:
    if not isinstance(content, bytes):
        raise AudioError(f"{name}: expected a file opened in binary mode, found {type(content).__name__}")
