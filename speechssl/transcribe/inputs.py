"""Recordings that a command is given: files, folders, patterns or standard input, each once."""

import glob
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from speechssl.data.manifest import read_manifest
from speechssl.data.recording import Recording
from speechssl.data.scan import find_recordings, read_text
from speechssl.errors import AudioError, ManifestError, SpeechSSLError

STDIN = "-"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A recording, or a part of one."""

    path: str  # "-" is standard input
    name: str  # of its results, a path without a suffix: with its subfolders if it was found in a folder
    channel: int | None = None  # as for `Recording`, like start and end
    start: float | None = None
    end: float | None = None
    file: BinaryIO | None = field(default=None, compare=False)  # to read instead of standard input

    @property
    def label(self) -> str:
        """What messages call it."""
        return "<stdin>" if self.path == STDIN else self.path

    def open(self) -> Recording:
        """Open the recording; an `AudioError` says that standard input is closed, reading raises the others."""
        if self.path == STDIN and sys.stdin is None:
            raise AudioError(f"{self.label}: expected audio, found it closed")
        source = (self.file or sys.stdin.buffer) if self.path == STDIN else self.path
        return Recording(source, self.channel, self.start, self.end)

    @property
    def is_file(self) -> bool:
        """Whether it is an ordinary file, which can be looked at again."""
        return self.path != STDIN and os.path.isfile(self.path)  # noqa: PTH113, which raises for long names


def find_inputs(
    paths: Sequence[str | os.PathLike[str]],
    channel: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> tuple[list[InputFile], list[SpeechSSLError]]:
    """Find the recordings that are meant, in the order given, each once.

    Args:
        paths: Files, which need not exist; folders, searched with their subfolders for the suffixes of recordings;
            patterns with ``*``, ``?``, ``[`` and ``**``, for shells that leave them as they are; "-" is standard input.
        channel, start, end: As for `Recording`.

    Returns:
        The recordings, those of one name from several folders named by their paths, and an error for each folder or
        pattern without any.
    """
    inputs: dict[str, InputFile] = {}
    errors: list[SpeechSSLError] = []
    for path in paths:
        found = list(_expand(os.fspath(path)))
        if not found:
            errors.append(AudioError(f"{os.fspath(path) or repr('')}: expected recordings, found none"))
        for file, name in found:
            key = STDIN if file == STDIN else os.path.abspath(file)  # noqa: PTH100
            inputs.setdefault(key, InputFile(file, name, channel, start, end))
    return _told_apart(list(inputs.values())), errors


@contextmanager
def spooled_stdin(inputs: Sequence[InputFile]) -> Iterator[list[InputFile]]:
    """Yield inputs that can all be read in another thread: a pipe is read to its end here, where Ctrl-C reaches it."""
    if sys.stdin is None or sys.stdin.buffer.seekable() or not any(file.path == STDIN for file in inputs):
        yield list(inputs)
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.seek(0)
        yield [replace(file, file=copy) if file.path == STDIN else file for file in inputs]


def read_references(reference: Path, inputs: Sequence[InputFile]) -> dict[InputFile, str]:
    """Read what is said in recordings, for scoring. One without a text is a warning.

    Args:
        reference: A manifest with texts (those of several spans of a recording are joined), or a folder with a
            ``.txt`` file a recording: beside it if the recording lies in that folder, else with the recording's name,
            in the same subfolders or, if no other recording is called so, in none.
        inputs: The recordings.

    Raises:
        ManifestError: the manifest is wrong, or no recording has a text.
    """
    if reference.is_dir():
        times_named = Counter(Path(file.name).name for file in inputs)
        found = [_text_in_folder(reference, file, times_named) for file in inputs]
    else:
        said = _texts_of_manifest(reference)
        found = [said.get(os.path.realpath(file.path)) for file in inputs]
    texts = {file: text for file, text in zip(inputs, found, strict=True) if text is not None}
    missing = [file.path for file in inputs if file not in texts]
    if missing and not texts:
        raise ManifestError(f"{reference}: expected a text for {missing[0]}, found none")
    for path in missing:
        warnings.warn(f"{reference}: expected a text for {path}, found none; it is not scored", stacklevel=2)
    return texts


def _expand(path: str) -> Iterator[tuple[str, str]]:
    """Yield the files that a path means, each with its name."""
    if path == STDIN:
        yield path, "stdin"
    elif not path:
        return  # an unset variable, and not the current folder
    elif os.path.isdir(path):  # noqa: PTH112, which raises for long names
        for file in find_recordings(Path(path)):
            yield str(file), str(file.relative_to(path).with_suffix(""))
    elif glob.has_magic(path) and not os.path.lexists(path):
        for match in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207
            # `**` matches folders beside the files in them.
            if not Path(match).is_dir() or "**" not in path:
                yield from _expand(match)
    else:
        yield path, Path(path).stem


def _told_apart(inputs: list[InputFile]) -> list[InputFile]:
    """Give recordings of one name from several folders the paths below the folder that has all of these."""
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for file in inputs:
        folders[file.name].add(os.path.dirname(os.path.abspath(file.path)))  # noqa: PTH100, PTH120
    named = []
    for file in inputs:
        if len(folders[file.name]) > 1 and file.path != STDIN:
            above = os.path.commonpath(folders[file.name])
            file = replace(file, name=os.path.splitext(os.path.relpath(file.path, above))[0])  # noqa: PTH122
        named.append(file)
    return named


def _text_in_folder(folder: Path, file: InputFile, times_named: Mapping[str, int]) -> str | None:
    beside = Path(file.path).with_suffix(".txt")
    if file.path != STDIN and beside.resolve().is_relative_to(folder.resolve()):
        return read_text(beside)
    text = read_text(folder / f"{file.name}.txt")
    name = Path(file.name).name
    return text if text is not None or times_named[name] > 1 else read_text(folder / f"{name}.txt")


def _texts_of_manifest(path: Path) -> dict[str, str]:
    """Read the text of each recording of a manifest, by its real path."""
    texts: dict[str, str] = {}
    for utterance in sorted(read_manifest(path), key=lambda utterance: utterance.start):
        if utterance.text is not None:
            key = os.path.realpath(utterance.path)
            texts[key] = f"{texts[key]} {utterance.text}" if key in texts else utterance.text
    return texts
