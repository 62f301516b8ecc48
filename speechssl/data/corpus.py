"""What the preparation of every corpus shares: recordings and texts -> manifests, and what was left out and why."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from speechssl.data.manifest import IMPOSSIBLE_IN_CELLS, Utterance, write_manifest
from speechssl.data.recording import AudioInfo, audio_info
from speechssl.data.scan import parallel_map
from speechssl.errors import AudioError, ManifestError
from speechssl.files import write_text_file
from speechssl.terminal import print_status

_HEADERS_FILE = "headers.tsv"
_DROPPED_FILE = "dropped.tsv"
_HEADERS_AT_ONCE = 1000  # what an interruption can lose
_NUM_NAMED = 3  # of what was dropped for one reason, on the console; the file has all


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or a part of one, as a corpus lists it.

    Attributes:
        path: The recording.
        text: What is said, already as it shall be learned, or None if unknown.
        speaker: Who says it, or None if unknown.
        language: In which language, or None if unknown.
        start: Seconds from which on it counts.
        end: Seconds until which it counts; None is until its end.
    """

    path: Path
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    start: float = 0.0
    end: float | None = None


class Preparation:
    """A folder of manifests in the making.

    The headers of recordings, the slow part of a large corpus, are kept in the folder as they are read, so that a
    preparation that was broken off goes on; a file that has changed is read again. Everything else is made anew.

    Args:
        folder: Where the manifests go.

    Raises:
        ManifestError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._dropped: dict[str, list[str]] = defaultdict(list)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ManifestError(f"{folder}: {error.strerror or error}") from None

    def drop(self, reason: str, what: str) -> None:
        """Note that something of the corpus is not used.

        Args:
            reason: In a few words, the same for all alike.
            what: Which, and if it helps, why: a path, a line of a file.
        """
        self._dropped[reason].append(what)

    def utterances(self, clips: Sequence[Clip]) -> list[Utterance]:
        """Read the recordings' headers; clips whose recording is missing or damaged are dropped.

        Returns:
            An utterance for each of the others, in the order given.
        """
        paths = list(dict.fromkeys(clip.path for clip in clips))
        with _Headers(self.folder / _HEADERS_FILE) as headers:
            found = dict(zip(paths, headers.read(paths), strict=True))
        utterances = []
        for clip in clips:
            header = found[clip.path]
            if IMPOSSIBLE_IN_CELLS.search(str(clip.path)):
                self.drop("path with tabs, line breaks or bytes that are no UTF-8", repr(str(clip.path)))
            elif isinstance(header, AudioError):
                self.drop("recording that cannot be read", str(header))
            else:
                start = round(clip.start * header.sample_rate)
                end = header.num_samples if clip.end is None else round(clip.end * header.sample_rate)
                end = min(end, header.num_samples)
                if start >= end:
                    self.drop("span outside its recording", f"{clip.path}: {clip.start:g} to {clip.end} s")
                    continue
                utterance = Utterance(str(clip.path), end - start, start, header.sample_rate)
                utterances.append(replace(utterance, text=clip.text, speaker=clip.speaker, language=clip.language))
        return utterances

    def write(self, splits: Mapping[str, Sequence[Utterance]], root: Path) -> None:
        """Write a manifest a split, and say what is in them.

        Args:
            splits: Utterances by the name of their manifest.
            root: A folder above all recordings, as their paths name it; the manifests have it without links. Links
                below it stay.

        Raises:
            ManifestError: a split is empty, or something cannot be written.
        """
        for name, utterances in splits.items():
            if not utterances:
                self.report_dropped()
                raise ManifestError(f"{self.folder / name}.tsv: expected at least one utterance, found none")
        resolved = root.resolve()
        for name, utterances in splits.items():
            below = [replace(item, path=str(resolved / os.path.relpath(item.path, root))) for item in utterances]
            write_manifest(self.folder / f"{name}.tsv", below, resolved)
            hours = sum(utterance.seconds for utterance in utterances) / 3600
            speakers = len({utterance.speaker for utterance in utterances if utterance.speaker})
            duration = f"{hours:.2f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
            print_status(
                f"{self.folder / name}.tsv: {len(utterances)} utterances, {duration}"
                + (f", {speakers} speaker{'' if speakers == 1 else 's'}" if speakers else "")
            )

    def report_dropped(self) -> None:
        """Say how much was dropped for what reason, and write all of it to ``dropped.tsv``: the last thing to do.

        Raises:
            ManifestError: it cannot be written.
        """
        rows = [f"{reason}\t{' '.join(what.split())}\n" for reason, whats in self._dropped.items() for what in whats]
        content = "".join(["reason\twhat\n", *rows]).encode("utf-8", "backslashreplace").decode("utf-8")
        try:
            write_text_file(self.folder / _DROPPED_FILE, content)
        except OSError as error:
            raise ManifestError(f"{self.folder / _DROPPED_FILE}: {error.strerror or error}") from None
        for reason, whats in self._dropped.items():
            named = "; ".join(whats[:_NUM_NAMED]) + (" ..." if len(whats) > _NUM_NAMED else "")
            print_status(f"dropped {len(whats)}: {reason}: {named}")


def expect_folder(path: Path, contents: str) -> None:
    """Make sure that a corpus is where it is said to be.

    Args:
        path: The folder.
        contents: What it should hold, for the message.

    Raises:
        ManifestError: it is missing or a file.
    """
    if not path.is_dir():
        raise ManifestError(f"{path}: expected a folder with {contents}, found {'a file' if path.exists() else 'none'}")


class _Headers:
    """Headers of recordings, in a file that grows as they are read; recognized by path, size and time of change."""

    def __init__(self, file: Path) -> None:
        self.path = file

    def __enter__(self) -> Self:
        self._known: dict[str, AudioInfo] = {}
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1  # a kill can cut the last line short
            os.truncate(self.path, whole)
            for line in content[:whole].decode("utf-8").splitlines():
                key, _, numbers = line.rpartition("\t")
                self._known[key] = AudioInfo(*map(int, numbers.split(" ")))
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, paths: Sequence[Path]) -> list[AudioInfo | AudioError]:
        """The header of each file, or why it has none; what is read for the first time is noted."""
        keys = [_file_key(path) for path in paths]
        unknown = [n for n, key in enumerate(keys) if key not in self._known]
        errors: dict[int, AudioError] = {}
        for first in range(0, len(unknown), _HEADERS_AT_ONCE):
            part = unknown[first : first + _HEADERS_AT_ONCE]
            description = f"reading headers, {first} of {len(unknown)} done"
            for number, header in zip(part, parallel_map(_header, [paths[n] for n in part], description), strict=True):
                if isinstance(header, AudioError):
                    errors[number] = header
                else:
                    self._known[keys[number]] = header
                    numbers = f"{header.num_samples} {header.sample_rate} {header.num_channels}"
                    self._file.write(f"{keys[number]}\t{numbers}\n")
            self._file.flush()
        return [errors[n] if n in errors else self._known[key] for n, key in enumerate(keys)]


def _header(path: Path) -> AudioInfo | AudioError:
    try:
        return audio_info(path)
    except AudioError as error:
        return error


def _file_key(path: Path) -> str:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return f"{path}"  # reading says what is wrong
    return f"{status.st_size} {status.st_mtime_ns} {os.fspath(path)!a}"
