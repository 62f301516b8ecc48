"""Read queen.1c, which holds the whole game: a table of entries, then their bytes. All numbers are big-endian."""

import struct
from dataclasses import dataclass
from pathlib import Path

from speechssl.errors import ManifestError, system_errors

NAME = "queen.1c"

_MAGIC = b"QTBL"
_NUM_ENTRIES_AT = 13
_TABLE_AT = 15
_ENTRY = struct.Struct(">12s x I I")  # name, a byte that says which file (there is one), offset, size
_CLIP = ".SB"


@dataclass(frozen=True)
class Archive:
    """Hold the game's file in memory.

    Attributes:
        path: The file.
        content: All of it.
        entries: Offset and size of each entry, by name.
    """

    path: Path
    content: bytes
    entries: dict[str, tuple[int, int]]

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry."""
        if name not in self.entries:
            raise ManifestError(f"{self.path}: expected an entry {name}, found none")
        offset, size = self.entries[name]
        return self.content[offset : offset + size]

    def names(self, suffix: str) -> list[str]:
        """Return the entries of a kind, sorted."""
        return sorted(name for name in self.entries if name.endswith(suffix))

    def clips(self) -> list[str]:
        """Return the names of all recordings, without their suffix, sorted."""
        return [name.removesuffix(_CLIP) for name in self.names(_CLIP)]

    def read_clip(self, clip: str) -> bytes:
        """Return the MP3 stream of a recording."""
        return self.read(clip + _CLIP)


def find_archive(place: Path) -> Path:
    """Return the path itself if it is a file, otherwise queen.1c somewhere below the folder."""
    if place.is_file():
        return place
    found = sorted(path for path in place.rglob("*") if path.name.lower() == NAME)
    if not found:
        raise ManifestError(f"CORPUS={place}: expected {NAME} or a folder with it, found none")
    return found[0]


def read_archive(path: Path) -> Archive:
    """Read the file and its table."""
    with system_errors(ManifestError, path):
        content = path.read_bytes()
    if content[:4] != _MAGIC:
        raise ManifestError(f"{path}: expected a file that begins with {_MAGIC!r}, found {content[:4]!r}")
    entries = {}
    try:
        (num_entries,) = struct.unpack_from(">H", content, _NUM_ENTRIES_AT)
        for number in range(num_entries):
            name, offset, size = _ENTRY.unpack_from(content, _TABLE_AT + number * _ENTRY.size)
            entries[name.split(b"\0")[0].decode("cp437").upper()] = (offset, size)
    except struct.error:
        raise ManifestError(f"{path}: expected a table of entries, found {len(content)} bytes: cut off") from None
    end = max((offset + size for offset, size in entries.values()), default=0)
    if len(content) < end:
        raise ManifestError(f"{path}: expected {end} bytes, found {len(content)}: the file is cut off")
    return Archive(path, content, entries)
