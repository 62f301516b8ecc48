"""Where transcripts go: to standard output, or into files of which a broken-off run keeps the finished ones."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.errors import ConfigError

if TYPE_CHECKING:
    from speechssl.transcribe.sources import Source
    from speechssl.transcribe.transcript import Transcript

RECORD = ".transcribed.jsonl"
"""In an output folder, of what recording each file is and how it was transcribed: a JSON object a line."""


class Format(StrEnum):
    """What is written of a recording."""

    TXT = "txt"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"
    TSV = "tsv"


class Printer:
    """Results on stdout, each as soon as it is known, for whoever waits at the other end of a pipe.

    Args:
        output_format: What is printed.
        words: Whether subtitles and tables have each word by itself.
        is_named: Whether a line of text begins with the recording's path.

    Raises:
        ConfigError: there is no stdout.
    """

    def __init__(self, output_format: Format, words: bool, is_named: bool) -> None:
        self.format, self.words, self.is_named = output_format, words, is_named
        if sys.stdout is None:
            raise ConfigError("stdout: expected it open, or --output-dir, found it closed")

    def check(self, sources: Sequence["Source"]) -> None:
        """Refuse to print several recordings in a format that holds one."""
        if len(sources) > 1 and self.format not in (Format.TXT, Format.JSON):
            raise ConfigError(f"--format {self.format}: expected one recording or --output-dir, found {len(sources)}")

    def write(self, source: "Source", transcript: "Transcript") -> None:
        """Print what is said in a recording."""
        name = f"{source.path}\t" if self.is_named and self.format is Format.TXT else ""
        sys.stdout.write(name + _render(source, transcript, self.format, self.words))
        sys.stdout.flush()


class FileWriter:
    """Results in files named as the recordings, replaced at once, so that a file that exists is whole.

    Args:
        formats: What is written of each recording.
        words: Whether subtitles and tables have each word by itself.
        folder: Where.
        overwrite: Whether what is there is written anew.
        how: All that results depend on but the recording; what was made otherwise is not taken for finished.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(
        self, formats: Sequence[Format], words: bool, folder: Path, overwrite: bool, how: Mapping[str, Any]
    ) -> None:
        self.formats, self.words, self.folder, self.overwrite, self.how = formats, words, folder, overwrite, how
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder}: {error.strerror or error}") from None
        self._records = _read_records(folder / RECORD)

    def is_finished(self, source: "Source") -> bool:
        """Whether all files of a recording are there, made from it, as it is now, in the same way.

        Raises:
            ConfigError: one is there that was made from something else, or in another way.
        """
        there = [path for _, path in self._paths(source) if os.path.lexists(path)]
        if self.overwrite or not there:
            return False
        expected = self._describe(source)
        for path in there:
            record = self._records.get(self._key(path))
            if record is None or expected["modified"] is None:
                raise ConfigError(f"{path}: is there, not known to be of {source.label}; --overwrite replaces it")
            changed = [key for key in expected if record.get(key) != expected[key]]
            if changed:
                key = changed[0]
                found = f"{key} was {record.get(key)}, now {expected[key]}"
                if key in ("size", "modified"):
                    found = f"{source.label} has changed since"
                raise ConfigError(f"{path}: was made otherwise ({found}); --overwrite replaces it")
        return not self._missing(source)

    def write(self, source: "Source", transcript: "Transcript") -> None:
        """Write the files of a recording that are missing.

        Raises:
            ConfigError: one cannot be written.
        """
        from speechssl.files import write_text_file

        missing = self._missing(source)
        contents = [_render(source, transcript, output_format, self.words) for output_format, _ in missing]
        try:
            # Whenever this is broken off, what is there fits the last record.
            for _, path in missing:
                path.unlink(missing_ok=True)
            with (self.folder / RECORD).open("a", encoding="utf-8") as file:
                for _, path in missing:
                    file.write(json.dumps({"file": self._key(path)} | self._describe(source)) + "\n")
            for (_, path), content in zip(missing, contents, strict=True):
                # What a path holds that is no UTF-8 becomes a JSON escape.
                write_text_file(path, content.encode("utf-8", "backslashreplace").decode("utf-8"))
        except OSError as error:
            raise ConfigError(f"{error.filename or self.folder}: {error.strerror or error}") from None

    def read_text(self, source: "Source") -> str | None:
        """What a finished recording's files say, or None if none of them is read back."""
        paths = dict(self._paths(source))
        if Format.TXT in paths:
            return paths[Format.TXT].read_text("utf-8").strip()
        if Format.JSON in paths:
            text: str = json.loads(paths[Format.JSON].read_text("utf-8"))["text"]
            return text
        return None

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _paths(self, source: "Source") -> list[tuple[Format, Path]]:
        return [(output_format, self.folder / f"{source.name}.{output_format}") for output_format in self.formats]

    def _missing(self, source: "Source") -> list[tuple[Format, Path]]:
        return [pair for pair in self._paths(source) if self.overwrite or not os.path.lexists(pair[1])]

    def _describe(self, source: "Source") -> dict[str, Any]:
        description: dict[str, Any] = {"recording": os.path.abspath(source.path), "size": None, "modified": None}  # noqa: PTH100
        if source.is_file:
            status = os.stat(source.path)  # noqa: PTH116
            description |= {"size": status.st_size, "modified": status.st_mtime_ns}
        part = {"channel": source.channel, "start": source.start, "end": source.end}
        return description | part | dict(self.how)


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    """The last record of each file; a line that was broken off is left out."""
    records: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return records
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    for line in lines:
        try:
            record = json.loads(line)
            records[record["file"]] = record
        except (ValueError, TypeError, KeyError):
            continue
    return records


def _render(source: "Source", transcript: "Transcript", output_format: Format, words: bool) -> str:
    match output_format:
        case Format.TXT:
            return f"{transcript.text}\n"
        case Format.JSON:
            return f"{transcript.to_json(source.path)}\n"
        case Format.SRT:
            return transcript.to_srt(words)
        case Format.VTT:
            return transcript.to_vtt(words)
        case Format.TSV:
            return transcript.to_tsv(words)
