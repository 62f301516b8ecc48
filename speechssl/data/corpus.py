"""What the preparation of every corpus shares: recordings and texts -> manifests, and what was left out and why."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from speechssl.data.headers import read_noted_headers
from speechssl.data.manifest import IMPOSSIBLE_IN_CELLS, Utterance, write_manifest
from speechssl.errors import AudioError, ManifestError, system_errors
from speechssl.terminal import count, format_duration, print_status

_HEADERS_FILE = "headers.tsv"
_DROPPED_FILE = "dropped.tsv"
_IN_CELLS = re.compile("[\t\r\n]+")  # what cannot stand in a cell
_NUM_NAMED = 3  # of what was dropped for one reason, on the console; the file has all


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or a part of one, as a corpus lists it."""

    path: Path
    text: str | None = None  # already as it shall be learned
    speaker: str | None = None
    language: str | None = None
    start: float = 0.0  # in seconds, as the end; None is the recording's
    end: float | None = None


class Preparation:
    """Makes a folder of manifests.

    The headers of recordings, the slow part of a large corpus, are kept in the folder as they are read, so that an
    interrupted preparation resumes. Everything else is made anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._dropped: dict[str, list[str]] = defaultdict(list)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / _DROPPED_FILE).open("w", 1, "utf-8", "backslashreplace")  # written line by line
            self._file.write("reason\twhat\n")
        except OSError as error:
            raise ManifestError(f"{error.filename or folder}: {error.strerror or error}") from None

    def drop(self, reason: str, what: str) -> None:
        """Note that something of the corpus is not used, for a reason of a few words that is the same for all alike.

        It is in ``dropped.tsv`` at once, so whatever becomes of the preparation.
        """
        what = _IN_CELLS.sub(" ", what)
        self._dropped[reason].append(what)
        with system_errors(ManifestError, self._file.name):
            self._file.write(f"{reason}\t{what}\n")

    def utterances(self, clips: Sequence[Clip]) -> list[Utterance]:
        """Read the recordings' headers, drop what is missing or damaged, and return the others in the order given."""
        headers = read_noted_headers((str(clip.path) for clip in clips), self.folder / _HEADERS_FILE)
        utterances = []
        for clip in clips:
            path = str(clip.path)
            header = headers[path]
            if IMPOSSIBLE_IN_CELLS.search(path):
                self.drop("path with tabs, line breaks or bytes that are no UTF-8", repr(path))
            elif isinstance(header, AudioError):
                self.drop("recording that cannot be read", str(header))
            else:
                start = round(clip.start * header.sample_rate)
                end = header.num_samples
                if clip.end is not None:
                    end = min(end, round(clip.end * header.sample_rate))
                if start < end:
                    words = (clip.text, clip.speaker, clip.language)
                    utterances.append(Utterance(path, end - start, start, header.sample_rate, *words))
                else:
                    self.drop("span outside its recording", f"{clip.path}: {clip.start:g} to {clip.end} s")
        return utterances

    def write(self, splits: Mapping[str, Sequence[Utterance]], root: Path) -> None:
        """Write a manifest for each split, and say what is in them.

        Args:
            splits: Utterances by the name of their manifest.
            root: A folder above all recordings, as their paths name it. Links in it are resolved, those below it stay.

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
            duration = format_duration(sum(utterance.seconds for utterance in utterances))
            speakers = len({utterance.speaker for utterance in utterances if utterance.speaker})
            print_status(
                f"{self.folder / name}.tsv: {count(len(utterances), 'utterance')}, {duration}"
                + (f", {count(speakers, 'speaker')}" if speakers else "")
            )

    def report_dropped(self) -> None:
        """Say how much was dropped for what reason."""
        for reason, whats in self._dropped.items():
            named = "; ".join(whats[:_NUM_NAMED]) + (" ..." if len(whats) > _NUM_NAMED else "")
            print_status(f"dropped {len(whats)}: {reason}: {named}")
