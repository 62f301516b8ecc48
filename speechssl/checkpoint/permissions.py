"""Who may read what is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ordinary_permissions(path: Path) -> Iterator[None]:
    """Give a file that is written meanwhile the permissions of any new file here; safetensors makes private ones."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)
