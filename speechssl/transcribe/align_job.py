"""What ``speechssl align`` does: recordings and texts in, times of words on stdout or in a folder."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from speechssl.data.manifest import is_manifest, read_manifest
from speechssl.data.scan import read_text
from speechssl.errors import AudioError, ConfigError, ManifestError, SpeechSSLError, system_errors
from speechssl.terminal import count, escaped, print_error, print_status, progress
from speechssl.transcribe.align import Alignment, Status
from speechssl.transcribe.alignment_formats import AlignmentFormat, ctm_name, format_alignment
from speechssl.transcribe.inputs import STDIN, InputFile, find_inputs, read_references
from speechssl.transcribe.outputs import open_stdout, prepare_folder, write_text

if TYPE_CHECKING:
    from speechssl.transcribe.transcriber import Open, Transcriber


@dataclass(frozen=True)
class Pair:
    """A recording, or a span of one, and its text."""

    path: str
    name: str
    open: "Open"
    text: str
    start: float = 0.0  # of the span, in seconds
    line: int | None = None  # of the manifest that it is from, which tells utterances of one recording apart


def find_pairs(audio: Path, text: Path | None) -> tuple[list[Pair], list[SpeechSSLError]]:
    """Return recordings with their texts, and what of them cannot be found.

    Args:
        audio: A recording, a folder of recordings, or a manifest.
        text: A text file, beside one recording; or what `read_references` takes. None is the manifest's own texts, or
            the ``.txt`` files beside the recordings.

    Raises:
        ManifestError: nothing has a text.
    """
    if audio.suffix == ".tsv" and is_manifest(audio):
        if text is not None:
            raise ManifestError(f"{text}: expected no text beside a manifest, which has its own")
        return list(_pairs_of_manifest(audio)), []
    inputs, failures = find_inputs([str(audio)], None, None, None)
    if text is not None and text.is_file() and text.suffix.lower() == ".txt":
        if audio.is_dir():
            raise ManifestError(f"{text}: expected a folder of texts beside a folder of recordings, found a file")
        said = read_text(text)
        if said is None:
            raise ManifestError(f"{text}: expected a text, found none")
        return [_pair(file, said) for file in inputs], failures
    missing = [file for file in inputs if file.path != STDIN and not os.path.lexists(file.path)]
    if missing or not inputs:  # what a folder or a pattern finds is there
        return [], failures + [AudioError(f"{file.label}: expected an audio file, found none") for file in missing]
    references = read_references(text or (audio if audio.is_dir() else audio.parent), inputs)
    return [_pair(file, reference.text) for file, reference in references.items()], failures


def _pair(file: InputFile, text: str) -> Pair:
    return Pair(file.path, file.name, file.open, text)


def _pairs_of_manifest(path: Path) -> Iterator[Pair]:
    manifest = read_manifest(path)
    if not manifest.has_texts:
        raise ManifestError(f"{path}: expected texts to align, found no column of texts")
    for number, utterance in enumerate(manifest):
        name, start, line = Path(utterance.path).stem, utterance.start / utterance.sample_rate, manifest.first_line
        yield Pair(utterance.path, name, partial(manifest.read, number), utterance.text or "", start, line + number)


def refuse_taken(
    pairs: Sequence[Pair], output_format: AlignmentFormat, output_dir: Path, overwrite: bool
) -> tuple[list[Pair], list[ConfigError]]:
    """Return the recordings that may write their file, and an error for each other one.

    A `ConfigError` says that nothing can be written into the folder.
    """
    owners: dict[Path, Pair] = {}
    refused: list[ConfigError] = []
    for pair in pairs:
        path = _path(pair, output_format, output_dir)
        if path in owners:
            refused.append(ConfigError(f"{pair.path}: would overwrite the output of {owners[path].path}; skipped"))
        elif not overwrite and os.path.lexists(path):
            refused.append(ConfigError(f"{path}: already exists (use --overwrite)"))
        else:
            owners[path] = pair
    if owners:
        prepare_folder(output_dir)
    return [*owners.values()], refused


def refuse_namesakes(pairs: Sequence[Pair]) -> tuple[list[Pair], list[ConfigError]]:
    """Return the recordings whose lines a CTM tells from those of others, and an error for each other one."""
    owners: dict[str, str] = {}
    told_apart: list[Pair] = []
    refused: list[ConfigError] = []
    for pair in pairs:
        owner = owners.setdefault(ctm_name(pair.name), pair.path)
        if owner == pair.path:
            told_apart.append(pair)
        else:
            refused.append(ConfigError(f"{pair.path}: would have the name of {owner} in the CTM; skipped"))
    return told_apart, refused


def align_pairs(
    transcriber: "Transcriber",
    pairs: Sequence[Pair],
    output_format: AlignmentFormat,
    output_dir: Path | None,
    is_quiet: bool,
) -> bool:
    """Align recordings with their texts, each failure costing a line on stderr; return whether all went well."""
    if output_dir is None:
        open_stdout("backslashreplace" if output_format is AlignmentFormat.JSON else "surrogateescape")
    num_failed = 0
    statuses: list[Status] = []
    has_bar = not is_quiet and (output_dir is not None or not sys.stdout.isatty())
    names = (escaped(pair.path) for pair in pairs)
    results = transcriber.align_many((pair.open for pair in pairs), (pair.text for pair in pairs), names)
    with progress("", len(pairs)) if has_bar else nullcontext() as advance:
        for pair, result in zip(pairs, results, strict=True):
            try:
                if isinstance(result, SpeechSSLError):
                    raise result
                for note in result.notes:
                    print_status(f"{escaped(pair.path)}: {note}")
                _write(result, pair, output_format, output_dir)
                statuses += [word.status for word in result.words]
            except SpeechSSLError as error:
                print_error(error)
                num_failed += 1
            if advance:
                advance()
    if not is_quiet:
        numbers = ", ".join(f"{statuses.count(status)} {status}" for status in Status if status in statuses)
        print_status(f"{count(len(pairs), 'recording')}, {num_failed} failed; words: {numbers or 'none'}")
    return not num_failed


def _write(alignment: Alignment, pair: Pair, output_format: AlignmentFormat, output_dir: Path | None) -> None:
    content = format_alignment(alignment.shifted(pair.start), output_format, pair.path, pair.name)
    if output_dir is None:
        sys.stdout.write(content)
        sys.stdout.flush()
        return
    path = _path(pair, output_format, output_dir)
    with system_errors(ConfigError, path.parent):
        os.makedirs(path.parent, exist_ok=True)  # noqa: PTH103
    write_text(path, content)


def _path(pair: Pair, output_format: AlignmentFormat, output_dir: Path) -> Path:
    line = "" if pair.line is None else f"_{pair.line}"
    return output_dir / f"{pair.name}{line}.{output_format.extension}"
