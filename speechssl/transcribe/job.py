"""What `transcribe-audio` does: recordings in, transcripts on stdout or in a folder, scores and a summary on stderr."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from speechssl.checkpoint.hub import WEIGHTS, find_model
from speechssl.errors import SpeechSSLError
from speechssl.terminal import count, print_error, print_status, progress
from speechssl.transcribe.inputs import InputFile, Reference, read_references, spooled_stdin
from speechssl.transcribe.outputs import Printer, Writer

if TYPE_CHECKING:
    from speechssl.transcribe.transcriber import Transcriber


def transcribe_files(
    inputs: Sequence[InputFile],
    failures: Sequence[SpeechSSLError],
    writer: Writer,
    load: Callable[[], "Transcriber"],
    reference: Path | None = None,
    is_quiet: bool = False,
    scoring: Mapping[str, Any] = MappingProxyType({}),
    raw_rate: int | None = None,
    **options: Any,
) -> bool:
    """Transcribe recordings, each failure costing a line on stderr; return whether all went well.

    Args:
        inputs, failures: As `find_inputs` gives them.
        writer: Where transcripts go.
        load: Called if there is anything to transcribe.
        reference: As for `read_references`, to score the transcripts.
        is_quiet: Whether neither progress nor summary is shown.
        scoring: As for `score`: ``words_only``, and the ``language`` of texts that state none.
        raw_rate: Of the samples that standard input holds instead of a file, as for `spooled_stdin`.
        options: As for `Transcriber.transcribe_many`.
    """
    num_files = len(inputs) + len(failures)
    finished, refused = writer.find_finished(inputs)
    for failure in dict.fromkeys((*failures, *refused.values())):  # one of a whole folder is said once
        print_error(failure)
    num_failed = len(failures) + len(refused)
    inputs = [file for file in inputs if file not in refused]
    references = read_references(reference, inputs) if reference else {}
    texts = {file: text for file, text in finished.items() if text is not None}
    audio_seconds, speed = 0.0, ""
    if pending := [file for file in inputs if file not in finished]:
        transcriber = load()
        # A terminal that shows the results themselves needs no bar between them.
        has_bar = not is_quiet and not (isinstance(writer, Printer) and sys.stdout.isatty())
        started = time.perf_counter()
        with progress("", len(pending)) if has_bar else nullcontext() as advance:
            for file, text, seconds in _transcribe(transcriber, pending, writer, raw_rate, options):
                audio_seconds += seconds
                if text is None:
                    num_failed += 1
                else:
                    texts[file] = text
                if advance:
                    advance()
        if audio_seconds:
            factor = (time.perf_counter() - started) / audio_seconds
            speed = f", real-time factor {factor:.3f} on {transcriber.inference.describe()}"
    unfinished = writer.finish()
    for error in unfinished:
        print_error(error)
    if reference:
        _print_score(references, texts, len(inputs), **scoring)
    if not is_quiet:
        before = f", {len(finished)} finished before" if finished else ""
        audio = f"{audio_seconds:.1f} s of audio{speed}"
        print_status(f"{count(num_files, 'file')}, {num_failed} failed{before}, {audio}")
    return not (num_failed or unfinished)


def describe_settings(model: Path, lm: Path | None, hotwords: Path | None, **options: Any) -> dict[str, Any]:
    """Return what transcripts depend on besides the recording, as plain JSON types."""
    from speechssl.checkpoint.calibration_file import beside

    language_model: dict[str, Any] | None = None
    if lm is not None:
        from speechssl.decode.settings import BeamSearchConfig

        config = BeamSearchConfig.read(lm)
        language_model = config.to_dict() | {"lm": _describe_file(config.lm)}
    model = find_model(model, options.get("language"))
    weights = [folder / name for folder in (model / "best", model) for name in WEIGHTS]  # of a run, or of a model
    file = next(filter(Path.is_file, weights), model)
    calibration = beside(file if lm is None else lm)
    return {
        "model": _describe_file(file),
        "language_model": language_model,
        **({"calibration": _describe_file(calibration)} if calibration.exists() else {}),
        **({"hotwords": _describe_file(hotwords)} if hotwords else {}),
        **options,
    }


def _describe_file(path: Path) -> str:
    return f"{os.path.realpath(path)} of {path.stat().st_mtime_ns if path.exists() else 'never'}"


def _transcribe(
    transcriber: "Transcriber",
    inputs: Sequence[InputFile],
    writer: Writer,
    raw_rate: int | None,
    options: Mapping[str, Any],
) -> Iterable[tuple[InputFile, str | None, float]]:
    """Write transcripts as they are made; yield what is said in each recording, None if it failed, and its seconds."""
    with spooled_stdin(inputs, raw_rate) as readable:
        results = transcriber.transcribe_many(
            (file.open for file in readable), names=(file.label for file in readable), **options
        )
        for file, result in zip(inputs, results, strict=True):
            try:
                if isinstance(result, SpeechSSLError):
                    raise result
                writer.write(file, result.shifted(file.start or 0))
                yield file, result.text, result.seconds
            except SpeechSSLError as error:
                print_error(error)
                yield file, None, 0.0


def _print_score(
    references: Mapping[InputFile, Reference],
    texts: Mapping[InputFile, str],
    num_files: int,
    words_only: bool = False,
    language: str | None = None,
) -> None:
    from speechssl.scoring.bootstrap import bootstrap_interval
    from speechssl.scoring.error_rates import describe_normalization, score

    scored = [(reference, texts[file]) for file, reference in references.items() if file in texts]
    if not scored:
        print_status("score: no recording with a text was transcribed")
        return
    languages = [reference.language or language for reference, _ in scored]
    hypotheses = [text for _, text in scored]
    found = score([reference.text for reference, _ in scored], hypotheses, languages, words_only=words_only)
    wer, cer = bootstrap_interval(found.word_counts), bootstrap_interval(found.character_counts)
    of = "" if len(scored) == num_files else f" of {num_files}"
    num_empty = sum(not utterance.reference for utterance in found.utterances)
    empty = f" ({num_empty} empty)" if num_empty else ""
    print_status(
        f"score of {len(scored)}{of} file{'' if num_files == 1 else 's'}{empty}, "
        f"{describe_normalization(words_only, languages)}: WER % {wer.show()}, CER % {cer.show()}"
    )
