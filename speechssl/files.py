"""Writing files and folders: complete or not at all, and on the disk before what they replace goes."""

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from speechssl.errors import ManifestError, SpeechSSLError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def path_inside(folder: Path, name: str, where: str) -> Path:
    """Return the path of ``name`` below a folder, for names that a manifest, an archive or a script chooses.

    Args:
        folder: What the user named; it need not exist.
        name: With subfolders, if any.
        where: The file, and the line or entry in it, that chose the name.

    Raises:
        SpeechSSLError: the name is absolute, leads out of the folder (a link that is there counts), is the folder
            itself, or has control characters.
    """
    # In this order: resolve() knows no zero bytes.
    if not any(character < " " for character in name):
        place = folder.resolve()
        if not Path(name).is_absolute() and place in (place / name).resolve().parents:
            return folder / name
    raise SpeechSSLError(f"{where}: expected a name inside {folder}, found {name!r}")


def write_text_file(path: Path, content: str, *, durable: bool = False) -> None:
    """Replace a UTF-8 text file atomically: a reader sees the old or the new content, never a part.

    If it is to be ``durable``, so does a reader after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with named_errors(path):
        with replaced_file(path) as temporary:
            temporary.write_text(content, "utf-8", newline="")
            if durable:
                flush(temporary)
        if durable:
            flush(path.parent)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Fill a temporary file that takes the place of ``path`` if nothing fails, and is gone otherwise."""
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}.tmp")  # no longer than the name may be
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name a file in what the system says of writing it: "No space left on device" alone names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def ordinary_permissions(path: Path) -> Iterator[None]:
    """Give a file that is written meanwhile the permissions of any new file here; safetensors makes private ones."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder that takes the place of ``folder`` once it is complete and on the disk."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(folder.parent)


def replace_link(link: Path, target: Path) -> None:
    """Point a symbolic link to a path beside or below it, atomically; on the disk when this returns."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.relative_to(link.parent))
        temporary.replace(link)
    finally:
        temporary.unlink(missing_ok=True)
    flush(link.parent)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk: no power cut loses them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot wait for a folder
            raise
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be.

    The lock belongs to the process: a killed one cannot leave it behind, nor do its children keep it. On a system or a
    file system without such locks there is a warning instead.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be opened.
    """
    with path.open("a") as file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, error.strerror) from None
            problem = f"no locks here ({error.strerror})"
            warnings.warn(f"{path}: {problem}: make sure that no other process writes here", stacklevel=3)
        yield


def digest_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of files, one after another, as hexadecimal digits."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: total)
    return total.hexdigest()


@contextmanager
def open_table(path: Path) -> Iterator[BinaryIO]:
    """Open a manifest or a file of labels; a `ManifestError` says why it cannot be read."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ManifestError(f"{path}: expected a file, found none") from None
    except IsADirectoryError:
        raise ManifestError(f"{path}: expected a file, found a folder") from None
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from None


def read_table(path: Path) -> bytes:
    """Read a manifest or a file of labels as a whole, as `open_table`."""
    with open_table(path) as file:
        return file.read()
