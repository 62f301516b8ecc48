"""Writing files and folders: complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
