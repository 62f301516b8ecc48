"""What `transcribe-audio` does: recordings in, transcripts on stdout or in a folder, scores and a summary on stderr."""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.cpu import tune_cpu
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.terminal import count, print_error, print_status, progress
from speechssl.transcribe.inputs import InputFile, drop_name_clashes, find_inputs, read_references, spooled_stdin
from speechssl.transcribe.outputs import Format, OutputFolder, Printer

if TYPE_CHECKING:
    from speechssl.model.device import Precision
    from speechssl.transcribe.pauses import VAD
    from speechssl.transcribe.transcriber import Transcriber
    from speechssl.transcribe.transcript import Transcript


@dataclass(frozen=True)
class TranscriptionJob:
    """Recordings to transcribe, and how.

    Attributes:
        files, channel, start, end: As for `find_inputs`.
        model, device, lm, precision: As for `Transcriber.load`.
        formats: What is written; one if it is printed.
        output_dir: Where files are written; None prints.
        overwrite, words: As for `OutputFolder`.
        split_at_pauses, vad, batch_seconds: As for `Transcriber.transcribe_many`.
        reference: As for `read_references`, to score the transcripts.
        is_quiet: Whether neither progress nor summary is shown.
    """

    files: Sequence[str]
    model: Path
    formats: Sequence[Format]
    output_dir: Path | None = None
    overwrite: bool = False
    words: bool = False
    channel: int | None = None
    start: float | None = None
    end: float | None = None
    split_at_pauses: bool = False
    vad: "VAD" = "energy"
    lm: Path | None = None
    reference: Path | None = None
    device: str | None = None
    precision: "Precision | None" = None
    batch_seconds: float = 60.0
    is_quiet: bool = False

    def run(self) -> bool:
        """Transcribe the recordings; each failure costs a line on stderr.

        Returns:
            Whether all went well.

        Raises:
            SpeechSSLError: nothing could be transcribed: the model, the language model or the references cannot be
                read, or the output cannot be written.
        """
        inputs, failures = find_inputs(self.files, self.channel, self.start, self.end)
        finished: dict[InputFile, str | None] = {}  # with what is said in them
        writer: Printer | OutputFolder
        if self.output_dir is None:
            [output_format] = self.formats
            writer = Printer(output_format, self.words, is_named=[file.path for file in inputs[:1]] != self.files)
            if len(inputs) > 1 and output_format not in (Format.TXT, Format.JSON):
                raise ConfigError(
                    f"--format {output_format}: expected one recording or --output-dir, found {len(inputs)}"
                )
        else:
            writer = OutputFolder(self.output_dir, self.formats, self.words, self.overwrite, self._settings())
            inputs, clashes = drop_name_clashes(inputs)
            finished, refused = _find_finished(inputs, writer)
            failures += clashes + list(refused.values())
            inputs = [file for file in inputs if file not in refused]
        for failure in failures:
            print_error(failure)
        summary = _Summary(len(inputs) + len(failures), len(failures), len(finished))
        references = read_references(self.reference, inputs) if self.reference else {}
        pending = [file for file in inputs if file not in finished]
        texts = {file: text for file, text in finished.items() if text is not None}
        if pending:
            tune_cpu()  # before torch is imported
            from speechssl.transcribe.transcriber import Transcriber

            transcriber = Transcriber.load(self.model, self.device, self.lm, self.precision)
            texts |= self._transcribe(transcriber, pending, writer, summary)
        if self.reference:
            _print_score(references, texts, len(inputs))
        if not self.is_quiet:
            print_status(summary.describe())
        return not summary.num_failed

    def _settings(self) -> dict[str, Any]:
        """Return what results depend on besides the recording."""
        return {
            "model": _describe_model(self.model),
            "language_model": None if self.lm is None else _describe_lm(self.lm),
            "precision": self.precision,
            "channel": self.channel,
            "start": self.start,
            "end": self.end,
            "split_at_pauses": self.split_at_pauses,
            "vad": self.vad,
        }

    def _transcribe(
        self,
        transcriber: "Transcriber",
        pending: Sequence[InputFile],
        writer: Printer | OutputFolder,
        summary: "_Summary",
    ) -> dict[InputFile, str]:
        """Write transcripts as they are made; return what is said in those that did not fail."""
        texts: dict[InputFile, str] = {}
        started = time.perf_counter()
        # A terminal that shows the results themselves needs no bar between them.
        has_bar = not self.is_quiet and (self.output_dir is not None or not sys.stdout.isatty())
        with spooled_stdin(pending) as readable, progress("", len(pending)) if has_bar else nullcontext() as advance:
            results: Iterable[Transcript | SpeechSSLError] = transcriber.transcribe_many(
                (file.open for file in readable),
                self.batch_seconds,
                self.split_at_pauses,
                self.vad,
                names=(file.label for file in readable),
            )
            for file, result in zip(pending, results, strict=True):
                try:
                    if isinstance(result, SpeechSSLError):
                        raise result
                    summary.audio_seconds += result.seconds
                    writer.write(file, result.shifted(file.start or 0))
                    texts[file] = result.text
                except SpeechSSLError as error:
                    print_error(error)
                    summary.num_failed += 1
                if advance:
                    advance()
        summary.seconds = time.perf_counter() - started
        summary.device = transcriber.inference.describe()
        return texts


@dataclass
class _Summary:
    """The last line."""

    num_files: int
    num_failed: int
    num_finished: int
    audio_seconds: float = 0.0
    seconds: float = 0.0
    device: str = ""

    def describe(self) -> str:
        parts = [count(self.num_files, "file"), f"{self.num_failed} failed"]
        if self.num_finished:
            parts.append(f"{self.num_finished} finished before")
        parts.append(f"{self.audio_seconds:.1f} s of audio")
        if self.audio_seconds:
            parts.append(f"real-time factor {self.seconds / self.audio_seconds:.3f} on {self.device}")
        return ", ".join(parts)


def _find_finished(
    inputs: Sequence[InputFile], folder: OutputFolder
) -> tuple[dict[InputFile, str | None], dict[InputFile, SpeechSSLError]]:
    """Return the finished recordings with their texts, and those whose output would overwrite something else."""
    finished: dict[InputFile, str | None] = {}
    refused: dict[InputFile, SpeechSSLError] = {}
    for file in inputs:
        try:
            if folder.is_finished(file):
                finished[file] = folder.read_text(file)
        except ConfigError as error:
            refused[file] = error
    return finished, refused


def _describe_model(model: Path) -> str:
    """Say which weights results were made with: where they are and when they were written."""
    for folder in (model / "best", model):  # of a run, or of a model
        weights = folder / "model.safetensors"
        if weights.is_file():
            return _describe_file(weights)
    return os.path.realpath(model)


def _describe_lm(path: Path) -> dict[str, Any]:
    from speechssl.decode.settings import BeamSearchConfig

    config = BeamSearchConfig.read(path)
    return config.to_dict() | {"lm": _describe_file(config.lm)}


def _describe_file(path: Path) -> str:
    return f"{os.path.realpath(path)} of {path.stat().st_mtime_ns if path.exists() else 'never'}"


def _print_score(references: Mapping[InputFile, str], texts: Mapping[InputFile, str], num_files: int) -> None:
    from speechssl.scoring.bootstrap import bootstrap_interval
    from speechssl.scoring.error_rates import score

    scored = [(reference, texts[file]) for file, reference in references.items() if file in texts]
    if not scored:
        print_status("score: no recording with a text was transcribed")
        return
    found = score([reference for reference, _ in scored], [text for _, text in scored])
    rates = ", ".join(
        f"{name} % {100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        for name, rate in (
            ("WER", bootstrap_interval(found.word_counts)),
            ("CER", bootstrap_interval(found.character_counts)),
        )
    )
    of = "" if len(scored) == num_files else f" of {num_files}"
    print_status(f"score of {len(scored)}{of} file{'' if num_files == 1 else 's'}: {rates}")
