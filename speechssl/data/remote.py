"""Objects behind URLs (``s3://``, ``https://``, ...), read by ranges of bytes through fsspec, with retries."""

import errno
import io
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # before each new try: a store may fail for a minute
_AT_ONCE_BYTES = 1 << 22  # that are asked for where more will be needed
_FINAL_KINDS = (FileNotFoundError, PermissionError, IsADirectoryError, FileExistsError, ValueError, TypeError)
_FINAL_ERRNOS = {errno.EINVAL, errno.EPERM, errno.ENOSYS}  # s3fs raises them for requests that S3 refuses
_PASSING_STATUSES = {408, 425, 429}  # of 400 to 499, HTTP's "you are wrong": too slow, too early, too often

Result = TypeVar("Result")


def read_range(url: str, start: int, num_bytes: int) -> bytes:
    """Read a range of an object's bytes in one request; there are fewer of them if the object ends before.

    Every error is taken for one that passes, and followed by up to six more tries after 1, 2, 4, 8, 16 and 32 seconds,
    except that the object is missing, the access is denied or the request is refused (HTTP 400 to 499 without 408, 425
    and 429). fsspec's file systems may try again on their own at each of these.

    Raises:
        OSError: what stayed wrong; FileNotFoundError if the object is missing.
    """

    def read(files: Any, path: str) -> bytes:
        try:
            content: bytes = files.cat_file(path, start=start, end=start + num_bytes)
        except Exception as error:
            if _is_final(error) and _is_about_range(error) and files.info(path)["size"] <= start:
                return b""
            raise
        return content

    content = _with_retries(url, read)
    if len(content) > num_bytes:
        found = f"found one that sent {len(content)} bytes for a range of {num_bytes}"
        raise OSError(errno.EIO, f"expected a server that reads ranges, {found}")
    return content


def object_size(url: str) -> int:
    """Return the number of an object's bytes; errors and retries are those of `read_range`."""
    size = _with_retries(url, lambda files, path: files.info(path)["size"])
    if size is None:
        raise OSError(errno.EIO, "expected a server that states sizes, found none stated")
    return int(size)


def open_object(url: str, num_bytes: int) -> BinaryIO:
    """Open an object of so many bytes as a file that seeks, of which 4 MiB are fetched at a time."""
    return io.BufferedReader(_Object(url, num_bytes), _AT_ONCE_BYTES)


def write_object(url: str, content: bytes) -> None:
    """Write a small object; a reader sees the old or the new content. Errors and retries as in `read_range`."""
    _with_retries(url, lambda files, path: files.pipe_file(path, content))


def upload(file: Path, url: str) -> None:
    """Write an object from a file, as `write_object` does."""
    _with_retries(url, lambda files, path: files.put_file(str(file), path))


def remove_object(url: str) -> None:
    """Remove an object, if it is there. Errors and retries as in `read_range`."""

    def remove(files: Any, path: str) -> None:
        with suppress(FileNotFoundError):
            files.rm_file(path)

    _with_retries(url, remove)


class _Object(io.RawIOBase):
    """An object as a file; each read is a request."""

    def __init__(self, url: str, num_bytes: int) -> None:
        self.url, self.num_bytes, self.position = url, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = max(0, (0, self.position, self.num_bytes)[whence] + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Read bytes from the position on by one request; return how many, 0 at the end. Raises OSError."""
        num_wanted = min(len(buffer), self.num_bytes - self.position)
        if num_wanted <= 0:
            return 0
        content = read_range(self.url, self.position, num_wanted)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def _with_retries(url: str, request: Callable[[Any, str], Result]) -> Result:
    """Return what a request to the URL's file system gives.

    The file system is asked for each time: fsspec keeps it, but not across a fork, after which it would hang.
    """
    num_tries = 0
    while True:
        num_tries += 1
        try:
            files, path = _file_system(url)
            return request(files, path)
        except Exception as error:  # those of aiohttp, botocore and others have no common kind
            if _is_final(error):
                if isinstance(error, OSError):
                    raise
                raise OSError(errno.EIO, _describe(error)) from None
            if num_tries > len(_WAITS_SECONDS):
                raise OSError(errno.EIO, f"{_describe(error)} ({num_tries} tries)") from None
        time.sleep(_WAITS_SECONDS[num_tries - 1])


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        missing = f"{scheme}:// needs the extra 'remote' (pip install 'speechssl[remote]'): {error}"
        raise OSError(errno.ENOSYS, missing) from None
    files.invalidate_cache()
    return files, path


def _is_final(error: Exception) -> bool:
    """Whether trying again would give the same."""
    status = getattr(error, "status", None)  # of aiohttp's errors
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _PASSING_STATUSES
    return isinstance(error, _FINAL_KINDS) or getattr(error, "errno", None) in _FINAL_ERRNOS


def _is_about_range(error: Exception) -> bool:
    """Whether it may say that the object ends before the range begins."""
    return getattr(error, "status", None) == 416 or getattr(error, "errno", None) == errno.EINVAL


def _describe(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__
