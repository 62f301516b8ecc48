"""Recordings by the names that labels give them."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from speechssl.data.scan import AUDIO_SUFFIXES
from speechssl.terminal import print_status


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _caseless(path: str) -> str:
    return _composed(path).casefold()


def _without_suffix(path: str) -> str:
    caseless = Path(_caseless(path))
    return str(caseless.with_suffix("") if caseless.suffix in AUDIO_SUFFIXES else caseless)


def _name_alone(path: str) -> str:
    return Path(_without_suffix(path)).name


_WAYS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("by the composed form of its letters", _composed),
    ("in another letter case", _caseless),
    ("without its suffix", _without_suffix),
    ("in another folder", _name_alone),  # only what names no folder: a file of one name may be another's
)


class RecordingNames:
    """Finds recordings by what labels call them: exactly, or else in ways that are said once.

    Args:
        recordings: The only ones that are found in other ways than exactly.
        folders: Where relative names start, in this order; the working folder comes last.
    """

    def __init__(self, recordings: Sequence[Path], folders: Sequence[Path]) -> None:
        self.recordings = recordings
        self.folders = list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in (*folders, Path.cwd())))
        self._exact = {os.path.realpath(path): path for path in recordings}
        self._known: dict[str, Path | None] = {}  # as written
        self._found: dict[str, dict[str, Path]] = defaultdict(dict)  # by the way, as written

    def find(self, *written: str) -> Path | None:
        """Return the recording that is meant, called by any of these, or None if none is more likely than others."""
        for name in written:
            if name not in self._known:
                self._known[name] = self._find(name)
            if (path := self._known[name]) is not None:
                return path
        return None

    def report(self, labels: str) -> None:
        """Say once how those were found that are not called exactly so, and how the others were looked for."""
        for way, found in self._found.items():
            written, path = next(iter(found.items()))
            print_status(f"{labels}: {len(found)} found {way}, such as {written!r} for {path}")
        if None in self._known.values():
            print_status(
                f"{labels}: what is missing was looked for in {self._places}, in any letter case and Unicode form and "
                "without suffix; what names no folder, in all of them"
            )

    def describe(self, *written: str) -> str:
        """Return where a recording was looked for."""
        return f"{' or '.join(map(repr, written))} not in {self._places}"

    @property
    def _places(self) -> str:
        return ", ".join(map(str, self.folders))

    def _find(self, written: str) -> Path | None:
        spoken = written.strip().replace("\\", "/")
        for way, name in ("", written), ("without blanks around it or backslashes", spoken):
            for folder in self.folders:
                if (path := self._existing(folder / name)) is not None:
                    if not way and folder == self.folders[-1] and not Path(name).is_absolute():
                        way = "from the working folder" if len(self.folders) > 1 else ""
                    if way:
                        self._found[way][written] = path
                    return path
        for (way, key), index in zip(_WAYS, self._by_way, strict=True):
            if key is _name_alone and "/" in spoken:
                return None
            keys = {key(os.path.normpath(folder / spoken)) for folder in self.folders}
            found = {path for name in keys for path in index.get(name, ())}
            if len(found) == 1:
                [self._found[way][written]] = found
                return self._found[way][written]
            if found:
                return None
        return None

    def _existing(self, path: Path) -> Path | None:
        try:
            real = os.path.realpath(path)
            return self._exact[real] if real in self._exact else Path(real) if Path(real).is_file() else None
        except (OSError, ValueError):  # a name that is too long, or has a zero byte
            return None

    @cached_property
    def _by_way(self) -> list[Mapping[str, set[Path]]]:
        """The recordings by what each way makes of their paths."""
        indices: list[Mapping[str, set[Path]]] = []
        for _, key in _WAYS:
            index: dict[str, set[Path]] = defaultdict(set)
            for path in self.recordings:
                index[key(os.path.normpath(path.absolute()))].add(path)
            indices.append(index)
        return indices
