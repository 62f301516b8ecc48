"""Writing files and folders: complete or not at all, and nowhere but where the user said."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speechssl.errors import SpeechSSLError


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


def write_text_file(path: Path, content: str) -> None:
    """Replace a UTF-8 text file at once: a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}.tmp")  # no longer than the name may be
    try:
        temporary.write_text(content, "utf-8", newline="")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def ordinary_permissions(path: Path) -> Iterator[None]:
    """Give a file that is written meanwhile the permissions of any new file here; safetensors makes private ones."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder that takes the place of ``folder`` once it is complete."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
