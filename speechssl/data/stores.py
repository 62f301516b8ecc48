"""Where shards are written: a folder, or a prefix of an object store. Each file is there as a whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speechssl.data import remote
from speechssl.files import flush, write_text_file


@dataclass(frozen=True)
class Folder:
    """A local folder of files."""

    place: str

    def path(self, name: str) -> str:
        """Return how a manifest names a file here."""
        return os.path.join(self.place, name)  # noqa: PTH118

    def read(self, name: str) -> bytes | None:
        """Return a small file; None if it is missing."""
        path = Path(self.path(name))
        return path.read_bytes() if path.exists() else None

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None if it is missing."""
        path = Path(self.path(name))
        return path.stat().st_size if path.exists() else None

    def write(self, name: str, content: str) -> None:
        """Write a small file."""
        write_text_file(Path(self.path(name)), content, durable=True)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        Path(self.path(name)).unlink(missing_ok=True)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield a local file to fill, which is gone afterwards unless it was moved to its place."""
        folder = Path(self.place)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}.{os.getpid()}.partial"
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def move_in(self, temporary: Path, name: str) -> None:
        """Put what was filled in its place."""
        flush(temporary)
        temporary.replace(self.path(name))
        flush(Path(self.place))


@dataclass(frozen=True)
class Prefix(Folder):
    """What begins with a URL. A shard is collected in a local file, and uploaded when it is complete."""

    def path(self, name: str) -> str:
        """Return how a manifest names an object here."""
        return f"{self.place.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return a small object; None if it is missing."""
        size = self.size(name)
        return None if size is None else remote.read_range(self.path(name), 0, size)

    def size(self, name: str) -> int | None:
        """Return the bytes of an object; None if it is missing."""
        try:
            return remote.object_size(self.path(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: str) -> None:
        """Write a small object."""
        remote.write_object(self.path(name), content.encode())

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        remote.remove_object(self.path(name))

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield a local file to fill, which is gone afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, name)

    def move_in(self, temporary: Path, name: str) -> None:
        """Upload what was filled."""
        remote.upload(temporary, self.path(name))
