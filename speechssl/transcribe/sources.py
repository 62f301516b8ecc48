"""What a command is asked to listen to: files, folders, patterns or standard input -> recordings, each once."""

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.data.manifest import read_manifest
from speechssl.data.recording import Recording
from speechssl.data.scan import find_recordings, read_text
from speechssl.errors import AudioError, ConfigError, ManifestError

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Source:
    """A recording, or a part of one.

    Attributes:
        path: The file; "-" is standard input.
        name: What its results are named after, a path without a suffix: the recording's name, and for one that was
            found in a folder, its subfolders.
        channel: The channel to hear, counted from 1; None is the mean of all.
        start: Seconds from which on it is heard; None is from its start.
        end: Seconds until which it is heard; None is until its end.
    """

    path: str
    name: str
    channel: int | None = None
    start: float | None = None
    end: float | None = None

    @property
    def label(self) -> str:
        """How errors call it."""
        return "<stdin>" if self.path == STDIN else self.path

    def open(self) -> Recording:
        """The recording, to be read.

        Raises:
            AudioError: standard input is closed; reading raises the others.
        """
        if self.path == STDIN and sys.stdin is None:
            raise AudioError(f"{self.label}: expected audio, found it closed")
        file = sys.stdin.buffer if self.path == STDIN else self.path
        return Recording(file, self.channel, self.start, self.end)


def find_sources(
    paths: Sequence[str | os.PathLike[str]],
    channel: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> tuple[list[Source], list[AudioError]]:
    """Find the recordings that are meant, in the order given, each once.

    Args:
        paths: Files, which need not exist; folders, searched with their subfolders for the suffixes of recordings;
            patterns with ``*``, ``?``, ``[`` and ``**``, for shells that leave them as they are; "-" is standard input.
        channel, start, end: As for `Source`.

    Returns:
        The recordings, and an error for each folder or pattern without any.
    """
    sources: dict[str, Source] = {}
    errors = []
    for path in paths:
        found = list(_expand(os.fspath(path)))
        if not found:
            errors.append(AudioError(f"{os.fspath(path)}: expected recordings, found none"))
        for file, name in found:
            key = STDIN if file == STDIN else os.path.abspath(file)  # noqa: PTH100
            sources.setdefault(key, Source(file, name, channel, start, end))
    return list(sources.values()), errors


def check_names(sources: Sequence[Source]) -> None:
    """Make sure that no two recordings would write the same files.

    Raises:
        ConfigError: two have the same name.
    """
    owners: dict[str, Source] = {}
    for source in sources:
        owner = owners.setdefault(source.name, source)
        if owner is not source:
            raise ConfigError(f"expected recordings with different names, found {owner.path} and {source.path}")


def read_references(reference: Path, sources: Sequence[Source]) -> list[str]:
    """What is said in each recording, for scoring.

    Args:
        reference: A manifest with texts (those of several spans of a recording are joined), or a folder with a
            ``.txt`` file a recording: beside it if the recording lies in that folder, else with the recording's name.
        sources: The recordings.

    Raises:
        ManifestError: the manifest is wrong, or a recording has no text.
    """
    if reference.is_dir():
        texts = [_text_in_folder(reference, source) for source in sources]
    else:
        said = _texts_of_manifest(reference)
        texts = [said.get(os.path.realpath(source.path)) for source in sources]
    for source, text in zip(sources, texts, strict=True):
        if text is None:
            raise ManifestError(f"{reference}: expected a text for {source.path}, found none")
    return [text for text in texts if text is not None]


def _expand(path: str) -> Iterator[tuple[str, str]]:
    """The files that a path means, each with its name."""
    if path == STDIN:
        yield path, "stdin"
    elif Path(path).is_dir():
        for file in find_recordings(Path(path)):
            yield str(file), str(file.relative_to(path).with_suffix(""))
    elif glob.has_magic(path) and not os.path.lexists(path):
        for match in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207
            # `**` matches folders beside the files in them.
            if not Path(match).is_dir() or "**" not in path:
                yield from _expand(match)
    else:
        yield path, Path(path).stem


def _text_in_folder(folder: Path, source: Source) -> str | None:
    beside = Path(source.path).with_suffix(".txt")
    is_inside = beside.resolve().is_relative_to(folder.resolve())
    return read_text(beside if is_inside else folder / f"{Path(source.name).name}.txt")


def _texts_of_manifest(path: Path) -> dict[str, str]:
    """The text of each recording of a manifest, by its real path."""
    texts: dict[str, str] = {}
    for utterance in sorted(read_manifest(path), key=lambda utterance: utterance.start):
        if utterance.text is not None:
            key = os.path.realpath(utterance.path)
            texts[key] = f"{texts[key]} {utterance.text}" if key in texts else utterance.text
    return texts
