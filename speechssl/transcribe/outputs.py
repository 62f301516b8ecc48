"""Where transcripts go: to standard output, or into files of which an interrupted run keeps the finished ones."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TextIO

from speechssl.data.transcribed import RECORD, digest_of, read_lines
from speechssl.errors import ConfigError, system_errors
from speechssl.terminal import escaped
from speechssl.transcribe.formats import Format, render

if TYPE_CHECKING:
    from speechssl.transcribe.inputs import InputFile
    from speechssl.transcribe.transcript import Transcript

Finished = tuple[dict["InputFile", str | None], dict["InputFile", ConfigError]]
"""Finished recordings with their text, None if no file has it alone; and those whose files may not be written."""


def open_stdout(errors: str = "strict") -> TextIO:
    """Return stdout, in UTF-8 whatever the locale; a `ConfigError` says that it is closed."""
    if sys.stdout is None:
        raise ConfigError("stdout: expected it open, found it closed")
    sys.stdout.reconfigure(encoding="utf-8", errors=errors)  # type: ignore[union-attr]
    return sys.stdout


class Printer:
    """Results on stdout, each as soon as it is known, for whoever waits at the other end of a pipe.

    With ``words``, subtitles and tables have each word by itself; with ``letters``, JSON has those of each word; with
    ``is_named``, a line of text begins with the recording's path. A closed stdout raises a `ConfigError`.
    """

    def __init__(self, output_format: Format, words: bool, letters: bool, is_named: bool) -> None:
        self.format, self.words, self.letters, self.is_named = output_format, words, letters, is_named
        # Names that are no UTF-8 come out as the bytes they are; JSON, also in a page, needs them escaped.
        open_stdout("backslashreplace" if output_format in (Format.JSON, Format.HTML) else "surrogateescape")

    def find_finished(self, inputs: Sequence["InputFile"]) -> Finished:
        """Find nothing; several recordings in a format that holds one raise a `ConfigError`."""
        if len(inputs) > 1 and self.format not in (Format.TXT, Format.JSON):
            raise ConfigError(f"--format {self.format}: expected one recording or --output-dir, found {len(inputs)}")
        return {}, {}

    def write(self, file: "InputFile", transcript: "Transcript") -> None:
        """Print what is said in a recording."""
        name = f"{escaped(file.path)}\t" if self.is_named and self.format is Format.TXT else ""
        sys.stdout.write(name + render(file, transcript, self.format, self.words, self.letters, Path.cwd()))
        sys.stdout.flush()

    def finish(self) -> list[ConfigError]:
        """Do nothing: all is printed."""
        return []


class OutputFolder:
    """Results in files named as the recordings, replaced atomically, so that a file that exists is complete.

    ``words`` and ``letters`` are as for `Printer`. ``settings`` are all that results depend on besides the recording. A
    folder that cannot be made, or that was made with other settings, raises a `ConfigError`.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[Format],
        words: bool,
        letters: bool,
        overwrite: bool,
        settings: Mapping[str, Any],
    ) -> None:
        self.folder, self.formats, self.words, self.letters, self.overwrite = folder, formats, words, letters, overwrite
        self._settings = dict(settings)
        with system_errors(ConfigError, folder):
            folder.mkdir(parents=True, exist_ok=True)
        before, self._origins = _read_record(folder / RECORD)
        self._has_settings = before == self._settings
        if not self._has_settings and overwrite:
            self._origins = {}
        if before and not self._has_settings and not overwrite:
            changed = [name.replace("_", " ") for name, value in settings.items() if before.get(name) != value]
            instead = "use --overwrite, or --output-dir with another folder"
            raise ConfigError(f"{folder}: was made with another {' and '.join(changed)}; {instead}")

    def find_finished(self, inputs: Sequence["InputFile"]) -> Finished:
        """Find recordings all of whose files exist and were made from them as they are now.

        A `ConfigError` says that there are others, and that nothing can be written into the folder.
        """
        finished: dict[InputFile, str | None] = {}
        refused: dict[InputFile, ConfigError] = {}
        owners: dict[str, InputFile] = {}
        for file in inputs:
            owner = owners.setdefault(file.name, file)
            if owner is not file:
                refused[file] = ConfigError(f"{file.path}: would overwrite the output of {owner.path}; skipped")
            elif foreign := self._find_foreign(file):
                refused[file] = foreign
            elif not self._missing(file):
                finished[file] = self._read_text(file)
        if len(finished) + len(refused) < len(inputs):
            prepare_folder(self.folder)
        return finished, refused

    def write(self, file: "InputFile", transcript: "Transcript") -> None:
        """Write the files of a recording that are missing; a `ConfigError` names one that cannot be written."""
        missing = self._missing(file)
        contents = [
            render(file, transcript, format_, self.words, self.letters, path.parent) for format_, path in missing
        ]
        recording = _describe_recording(file)
        digests = {
            self._name(path): digest_of(_encode(content)) for (_, path), content in zip(missing, contents, strict=True)
        }
        line = {"files": digests, "recording": recording}
        try:
            # Whenever this is interrupted, what exists fits the last line about it.
            for _, path in missing:
                path.unlink(missing_ok=True)
            lines = [line] if self._has_settings else [{"settings": self._settings}, line]
            with (self.folder / RECORD).open("a", encoding="utf-8") as record:
                # Behind a line break, which ends a line that was interrupted.
                record.write("".join("\n" + json.dumps(line) for line in lines))
            self._has_settings = True
        except OSError as error:
            raise ConfigError(f"{error.filename or self.folder}: {error.strerror or error}") from None
        for (_, path), content in zip(missing, contents, strict=True):
            write_text(path, content)
        self._origins |= dict.fromkeys(digests, recording)

    def finish(self) -> list[ConfigError]:
        """Write the index of the pages in the folder; return why it cannot be written."""
        if Format.HTML in self.formats:
            from speechssl.transcribe.page_index import write_index

            try:
                write_index(self.folder, self._origins)
            except ConfigError as error:
                return [error]
        return []

    def _find_foreign(self, file: "InputFile") -> ConfigError | None:
        """Return an error if a file exists that was made from something else."""
        recording = _describe_recording(file)
        for path in [] if self.overwrite else [path for _, path in self._paths(file) if os.path.lexists(path)]:
            origin = self._origins.get(self._name(path))
            if origin != recording or recording["modified"] is None:
                is_older = origin is not None and origin["path"] == recording["path"]
                version = f"{file.label} as it is now" if is_older else file.label
                return ConfigError(f"{path}: already exists and was not made from {version} (use --overwrite)")
        return None

    def _read_text(self, file: "InputFile") -> str | None:
        paths = dict(self._paths(file))
        if Format.TXT in paths:
            return paths[Format.TXT].read_text("utf-8").strip()
        if Format.JSON in paths:
            text: str = json.loads(paths[Format.JSON].read_text("utf-8"))["text"]
            return text
        return None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _paths(self, file: "InputFile") -> list[tuple[Format, Path]]:
        return [(output_format, self.folder / f"{file.name}.{output_format}") for output_format in self.formats]

    def _missing(self, file: "InputFile") -> list[tuple[Format, Path]]:
        return [pair for pair in self._paths(file) if self.overwrite or not os.path.lexists(pair[1])]


class BesideRecordings:
    """Results beside each recording, as those of an `OutputFolder` that is the recording's own; ``options`` are its."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._folders: dict[Path, OutputFolder] = {}

    def find_finished(self, inputs: Sequence["InputFile"]) -> Finished:
        """Find what `OutputFolder.find_finished` does, folder by folder."""
        finished: dict[InputFile, str | None] = {}
        refused: dict[InputFile, ConfigError] = {}
        originals: dict[Path, dict[InputFile, InputFile]] = {}
        for file in inputs:
            if file.is_file:
                originals.setdefault(Path(file.path).parent, {})[_named_alone(file)] = file
            elif file.path == "-":  # of a file that is not there an error tells when it is read
                refused |= {file: ConfigError(f"{file.label}: expected a file, to write beside it")}
        for folder, of_folder in originals.items():
            try:
                of_its = self._folder(folder).find_finished(list(of_folder))
            except ConfigError as error:
                refused |= dict.fromkeys(of_folder.values(), error)
                continue
            finished |= {of_folder[file]: text for file, text in of_its[0].items()}
            refused |= {of_folder[file]: error for file, error in of_its[1].items()}
        return finished, refused

    def write(self, file: "InputFile", transcript: "Transcript") -> None:
        """Write the files of a recording that are missing; a `ConfigError` names one that cannot be written."""
        self._folder(Path(file.path).parent).write(_named_alone(file), transcript)

    def finish(self) -> list[ConfigError]:
        """Do what `OutputFolder.finish` does, folder by folder."""
        return [error for folder in self._folders.values() for error in folder.finish()]

    def _folder(self, folder: Path) -> OutputFolder:
        if folder not in self._folders:
            self._folders[folder] = OutputFolder(folder, **self._options)
        return self._folders[folder]


def _named_alone(file: "InputFile") -> "InputFile":
    return replace(file, name=Path(file.path).stem)


Writer = Printer | OutputFolder | BesideRecordings


def prepare_folder(folder: Path, output: Path | None = None) -> None:
    """Make a folder; a `ConfigError` says before the work that nothing, or not this file, can be written into it."""
    with system_errors(ConfigError, f"{output or folder}: cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass


def prepare_file(output: Path) -> None:
    """Make the folder of a file; a `ConfigError` says before the work that the file cannot be written."""
    prepare_folder(output.parent, output)
    if output.is_dir():
        raise ConfigError(f"{output}: expected a file to write, found a folder")


def write_text(path: Path, content: str) -> None:
    """Write a file atomically or raise a `ConfigError`; what names hold that is no UTF-8 is escaped."""
    from speechssl.files import write_text_file

    try:
        write_text_file(path, _encode(content).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror or error}") from None


def _encode(content: str) -> bytes:
    return content.encode("utf-8", "backslashreplace")


def _describe_recording(file: "InputFile") -> dict[str, Any]:
    """Return what tells a recording from others and from what it was before; standard input is like nothing."""
    description: dict[str, Any] = {"path": os.path.abspath(file.path), "size": None, "modified": None}  # noqa: PTH100
    if file.is_file:
        status = os.stat(file.path)  # noqa: PTH116
        description |= {"size": status.st_size, "modified": status.st_mtime_ns}
    return description


def _read_record(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Read the last settings, and what each file since was made from."""
    settings: dict[str, Any] = {}
    origins: dict[str, dict[str, Any]] = {}
    try:
        for line in read_lines(path):
            if line.get("settings", settings) != settings:
                settings, origins = line["settings"], {}
            origins |= dict.fromkeys(line.get("files", ()), line.get("recording", {}))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return settings, origins
