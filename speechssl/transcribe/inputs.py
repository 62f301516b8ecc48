"""Recordings that a command is given: files, folders, patterns or standard input, each once."""

import glob
import os
import shutil
import struct
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from speechssl.data.labels.files import read_labels
from speechssl.data.labels.names import RecordingNames
from speechssl.data.manifest import is_manifest, read_manifest
from speechssl.data.recording import Recording
from speechssl.data.scan import closed_folder, find_recordings, read_text
from speechssl.data.transcribed import is_transcript
from speechssl.errors import AudioError, ManifestError, SpeechSSLError
from speechssl.terminal import count, escaped

STDIN = "-"

Span = tuple[str, float, str, str | None]
"""A recording's real path, when something is said in it in seconds, what, and in which language."""


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
        """What lines of text call it."""
        return "<stdin>" if self.path == STDIN else escaped(self.path)

    def open(self) -> Recording:
        """Open the recording; an `AudioError` says that standard input is closed, reading raises the others."""
        if self.path == STDIN and sys.stdin is None:
            raise AudioError(f"{self.label}: expected audio, found it closed")
        source = (self.file or sys.stdin.buffer) if self.path == STDIN else self.path
        return Recording(source, self.channel, self.start, self.end, self.label)

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
        num_errors = len(errors)
        found = list(_expand(os.fspath(path), errors))
        if not found and len(errors) == num_errors:
            errors.append(AudioError(f"{escaped(os.fspath(path)) or repr('')}: expected recordings, found none"))
        for file, name in found:
            key = STDIN if file == STDIN else os.path.abspath(file)  # noqa: PTH100
            inputs.setdefault(key, InputFile(file, name, channel, start, end))
    return _told_apart(list(inputs.values())), errors


@dataclass(frozen=True, slots=True)
class Reference:
    """What is said in a recording; an empty text says that nothing is."""

    text: str
    language: str | None = None


@contextmanager
def spooled_stdin(inputs: Sequence[InputFile], raw_rate: int | None = None) -> Iterator[list[InputFile]]:
    """Yield inputs that can all be read in another thread: a pipe is read to its end here, where Ctrl-C reaches it.

    With ``raw_rate`` it holds samples of that rate, of 16 bits, little-endian and mono, instead of a file.
    """
    is_read = sys.stdin is not None and any(file.path == STDIN for file in inputs)
    if not is_read or (sys.stdin.buffer.seekable() and not raw_rate):
        yield list(inputs)
        return
    with tempfile.TemporaryFile() as copy:
        if raw_rate:  # a header of unknown length makes it a file
            sizes = struct.pack("<IHHIIHH", 16, 1, 1, raw_rate, 2 * raw_rate, 2, 16)
            copy.write(b"RIFF\xff\xff\xff\xffWAVEfmt " + sizes + b"data\xff\xff\xff\xff")
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.seek(0)
        yield [replace(file, file=copy) if file.path == STDIN else file for file in inputs]


def read_references(reference: Path, inputs: Sequence[InputFile]) -> dict[InputFile, Reference]:
    """Read what is said in recordings, for scoring. One without a text is a warning.

    Args:
        reference: A manifest with texts or another file of labels (those of several spans of a recording are joined),
            or a folder with a ``.txt`` file a recording: beside it if the recording lies in that folder, else with the
            recording's name, in the same subfolders or, if no other recording is called so, in none.
        inputs: The recordings.

    Raises:
        ManifestError: the manifest is wrong, or no recording has a text.
    """
    if reference.is_dir():
        times_named = Counter(Path(file.name).name for file in inputs)
        found = [_text_in_folder(reference, file, times_named) for file in inputs]
    else:
        said = _join(_spans_of_manifest(reference) if is_manifest(reference) else _spans_of_labels(reference, inputs))
        found = [said.get(os.path.realpath(file.path)) for file in inputs]
    texts = {file: text for file, text in zip(inputs, found, strict=True) if text is not None}
    missing = [file.path for file in inputs if file not in texts]
    if missing and not texts:
        raise ManifestError(f"{reference}: expected a text for {missing[0]}, found none")
    for path in missing:
        warnings.warn(f"{reference}: expected a text for {path}, found none", stacklevel=2)
    return texts


def _expand(path: str, errors: list[SpeechSSLError]) -> Iterator[tuple[str, str]]:
    """Yield the files that a path means, each with its name; note the folders that cannot be read."""
    if path == STDIN:
        yield path, "stdin"
    elif not path:
        return  # an unset variable, and not the current folder
    elif os.path.isdir(path):  # noqa: PTH112, which raises for long names
        for file in find_recordings(Path(path), errors):
            yield str(file), str(file.relative_to(path).with_suffix(""))
    elif glob.has_magic(path) and not os.path.lexists(path):
        errors += _closed_folders(path)
        for match in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207
            # `**` matches folders beside the files in them.
            if not Path(match).is_dir() or "**" not in path:
                yield from _expand(match, errors)
    else:
        yield path, Path(path).stem


def _closed_folders(pattern: str) -> Iterator[SpeechSSLError]:
    """Yield an error for each folder that a pattern means and that cannot be read, of which `glob` says nothing."""
    folder = Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    closed: list[OSError] = []
    walk = os.walk(folder, onerror=closed.append)
    for _ in walk if "**" in pattern else islice(walk, 1):
        pass
    yield from (closed_folder(error) for error in closed if not isinstance(error, FileNotFoundError))


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


def _text_in_folder(folder: Path, file: InputFile, times_named: Mapping[str, int]) -> Reference | None:
    name = Path(file.name).name
    paths = [folder / f"{file.name}.txt", *([folder / f"{name}.txt"] if times_named[name] == 1 else [])]
    beside = Path(file.path).with_suffix(".txt")
    if file.path != STDIN and beside.resolve().is_relative_to(folder.resolve()):
        paths = [beside]
    for path in paths:
        if is_transcript(path):
            heard = "expected what is said, found what transcribe-audio wrote, unchanged"
            warnings.warn(f"{path}: {heard}; it is not read", stacklevel=2)
        elif (text := read_text(path)) is not None:
            return Reference(text)
    return None


def _spans_of_manifest(path: Path) -> Iterator[Span]:
    manifest = read_manifest(path)
    for utterance in manifest if manifest.has_texts else []:
        start = utterance.start / utterance.sample_rate
        yield os.path.realpath(utterance.path), start, utterance.text or "", utterance.language


def _spans_of_labels(path: Path, inputs: Sequence[InputFile]) -> Iterator[Span]:
    unusable: list[str] = []
    labels = read_labels(path, lambda reason, what: unusable.append(f"{reason}: {what}"))
    names = RecordingNames([Path(file.path) for file in inputs if file.is_file], [path.parent])
    for label in labels:
        if (recording := names.find(*label.paths)) is not None:
            yield os.path.realpath(recording), label.start, label.text, label.language
    if unusable:
        warnings.warn(f"{path}: {count(len(unusable), 'label')} not used, such as {unusable[0]}", stacklevel=2)


def _join(spans: Iterable[Span]) -> dict[str, Reference]:
    """Return what is said in each recording, by its real path."""
    texts: dict[str, list[str]] = defaultdict(list)
    languages: dict[str, str | None] = {}
    for recording, _, text, language in sorted(spans, key=itemgetter(1)):
        texts[recording] += [text] if text else []
        languages[recording] = language
    return {recording: Reference(" ".join(said), languages[recording]) for recording, said in texts.items()}
