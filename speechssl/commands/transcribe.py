"""``transcribe-audio``: recordings in, text, subtitles or JSON out."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechssl.commands.options import LanguageModelFile
from speechssl.errors import AudioError, ConfigError, SpeechSSLError
from speechssl.terminal import exit_on_error, print_error, print_status
from speechssl.transcribe.outputs import FileWriter, Format, Printer

if TYPE_CHECKING:
    from speechssl.transcribe.sources import Source
    from speechssl.transcribe.transcriber import Transcriber
    from speechssl.transcribe.transcript import Transcript


class VAD(StrEnum):
    """What tells speech from pauses."""

    ENERGY = "energy"
    SILERO = "silero"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def transcribe(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Recordings in any common format; folders, searched with their subfolders; patterns; - for stdin.",
        ),
    ],
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            metavar="DIR",
            envvar="SPEECHSSL_MODEL",
            help="A fine-tuned model, or the run folder that holds it.",
        ),
    ],
    output_format: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="|".join(Format),
            help="Several with commas, or the option several times. txt (default): a line of text a file, after its "
            "name and a tab if there are several files. json: a line with an object a file, with segments and words. "
            "srt, vtt: subtitles. tsv: start and end in milliseconds, and text.",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write files named as the recordings, complete or not at all, instead of printing. Those that are "
            "there already, of the same recording in the same way, are kept, so a run that was broken off goes on.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write files that are there already anew.")] = False,
    words: Annotated[bool, typer.Option("--words", help="In srt, vtt and tsv, each word by itself.")] = False,
    channel: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Hear this channel, counted from 1. Default: their mean.")
    ] = None,
    start: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Hear each file from here on.")] = None,
    end: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Hear each file up to here.")] = None,
    split_at_pauses: Annotated[
        bool,
        typer.Option(
            "--split-at-pauses",
            help="Hear each piece between two pauses by itself, which suits models trained on short utterances.",
        ),
    ] = False,
    vad: Annotated[
        VAD,
        typer.Option(
            help="What tells speech from the pauses. energy: what is not quiet. silero: voices, over noise and music "
            "too (pip install 'speechssl[vad]').",
        ),
    ] = VAD.ENERGY,
    lm: LanguageModelFile = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tsv|DIR",
            help="What is really said: a manifest with texts, or a folder of .txt files named as the recordings. "
            "Word and character error rates with 95 % intervals go to stderr, over all recordings that have a text.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A torch device such as cpu or cuda:1. Default: the GPU if there is one."),
    ] = None,
    batch_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Audio transcribed at once, padding included; one recording is still heard a minute at a time.",
        ),
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no last line about the whole.")] = False,
) -> None:
    """Write down what is said in recordings, in UTF-8.

    A file that fails costs a line on stderr and exit status 1; the others are still transcribed. The last line on
    stderr counts files and seconds; the real-time factor is the time taken over the time heard.
    """
    formats = _parse_formats(output_format or ["txt"])
    if output_dir is None and len(formats) > 1:
        raise typer.BadParameter("several formats need --output-dir", param_hint="--format")
    if not 0 <= (start or 0) < (math.inf if end is None else end):
        raise typer.BadParameter("expected an end after the start", param_hint="--start, --end")
    if not batch_seconds > 0:
        raise typer.BadParameter("expected more than 0 seconds", param_hint="--batch-seconds")
    if reference is not None and not start is end is None:
        raise typer.BadParameter("expected neither --start nor --end beside it", param_hint="--reference")
    if vad != VAD.ENERGY and not split_at_pauses:
        raise typer.BadParameter("expected --split-at-pauses beside it", param_hint="--vad")
    with exit_on_error():
        # Loaded here, so that --help and mistakes on the command line are answered at once.
        from speechssl.transcribe.sources import find_sources, own_names, read_references, spooled_stdin

        if sys.stdout is not None:
            # Names that are no UTF-8 come out as the bytes they are; JSON needs them escaped.
            errors = "backslashreplace" if formats == [Format.JSON] else "surrogateescape"
            sys.stdout.reconfigure(encoding="utf-8", errors=errors)  # type: ignore[union-attr]
        sources, failures = find_sources(files, channel, start, end)
        heard: dict[Source, str] = {}  # what is said in it, of each recording that is finished
        writer: Printer | FileWriter
        if output_dir is None:
            writer = Printer(formats[0], words, is_named=[source.path for source in sources[:1]] != files)
            writer.check(sources)
            pending = sources
        else:
            how = {
                "model": _describe_model(model),
                "split_at_pauses": split_at_pauses,
                "vad": vad.value,
                "words": words,
                "lm": None if lm is None else _describe_lm(lm),
            }
            writer = FileWriter(formats, words, output_dir, overwrite, how)
            sources, clashes = own_names(sources)
            pending, finished, refused = _sort_out(sources, writer)
            sources = [*finished, *pending]
            failures += clashes + refused
            heard = {source: text for source in finished if (text := writer.read_text(source)) is not None}
        for failure in failures:
            print_error(failure)
        run = _Run(len(sources) + len(failures), len(failures), len(sources) - len(pending))
        references = read_references(reference, sources) if reference else {}
        if pending:
            # A terminal that shows the results themselves needs no bar between them.
            has_bar = not quiet and (output_dir is not None or not sys.stdout.isatty())
            transcriber = _load(model, device, lm)
            with spooled_stdin(pending) as readable:
                results = transcriber.transcribe_many(
                    (source.open for source in readable), batch_seconds, split_at_pauses, vad.value
                )
                heard |= _write_results(pending, results, writer, run, has_bar)
        if reference:
            _print_score(references, heard, len(sources))
        if not quiet:
            print_status(run.describe())
        if run.num_failed:
            sys.exit(1)


def main() -> None:
    """Run the command line."""
    app()


@dataclass
class _Run:
    """What the last line tells."""

    num_files: int
    num_failed: int
    num_finished: int
    audio_seconds: float = 0.0
    seconds: float = 0.0

    def describe(self) -> str:
        """The line."""
        parts = [f"{self.num_files} file{'' if self.num_files == 1 else 's'}", f"{self.num_failed} failed"]
        if self.num_finished:
            parts.append(f"{self.num_finished} finished before")
        parts.append(f"{self.audio_seconds:.1f} s of audio")
        if self.audio_seconds:
            parts.append(f"real-time factor {self.seconds / self.audio_seconds:.3f}")
        return ", ".join(parts)


def _parse_formats(values: Sequence[str]) -> list[Format]:
    try:
        return list(dict.fromkeys(Format(name.strip()) for value in values for name in value.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"{error}; expected {', '.join(Format)}", param_hint="--format") from None


def _describe_model(model: Path) -> str:
    """Which weights results were made with: where they are and when they were written."""
    for folder in (model / "best", model):  # of a run, or of a model
        weights = folder / "model.safetensors"
        if weights.is_file():
            return _describe_file(weights)
    return os.path.realpath(model)


def _describe_lm(path: Path) -> dict[str, object]:
    from speechssl.decode.settings import BeamSearchConfig

    config = BeamSearchConfig.read(path)
    return config.to_dict() | {"lm": _describe_file(config.lm)}


def _describe_file(path: Path) -> str:
    return f"{os.path.realpath(path)} of {path.stat().st_mtime_ns if path.exists() else 'never'}"


def _sort_out(
    sources: "Sequence[Source]", writer: FileWriter
) -> "tuple[list[Source], list[Source], list[SpeechSSLError]]":
    """What is to be done, what is finished, and what would be lost if it were done."""
    pending: list[Source] = []
    finished: list[Source] = []
    refused: list[SpeechSSLError] = []
    for source in sources:
        try:
            (finished if writer.is_finished(source) else pending).append(source)
        except ConfigError as error:
            refused.append(error)
    return pending, finished, refused


def _load(model: Path, device: str | None, lm: Path | None) -> "Transcriber":
    from speechssl.cpu import tune_cpu

    tune_cpu()  # before torch is imported
    from speechssl.transcribe.transcriber import Transcriber

    return Transcriber.load(model, device, lm)


def _write_results(
    sources: Sequence["Source"],
    results: "Iterable[Transcript | SpeechSSLError]",
    writer: Printer | FileWriter,
    run: _Run,
    has_bar: bool,
) -> "dict[Source, str]":
    """Write transcripts as they are made; what is said in those that did not fail."""
    texts: dict[Source, str] = {}
    started = time.perf_counter()
    with _progress(len(sources), has_bar) as advance:
        for source, result in zip(sources, results, strict=True):
            if isinstance(result, SpeechSSLError):
                # Too little memory is an error of a batch, which has no name.
                print_error(result if source.label in str(result) else AudioError(f"{source.label}: {result}"))
                run.num_failed += 1
            else:
                run.audio_seconds += result.seconds
                try:
                    writer.write(source, result.shifted(source.start or 0))
                    texts[source] = result.text
                except ConfigError as error:  # an output that cannot be written; others may
                    print_error(error)
                    run.num_failed += 1
            advance()
    run.seconds = time.perf_counter() - started
    return texts


def _print_score(said: "Mapping[Source, str]", heard: "Mapping[Source, str]", num_files: int) -> None:
    from speechssl.scoring.bootstrap import bootstrap_interval
    from speechssl.scoring.error_rates import score

    scored = [(text, heard[source]) for source, text in said.items() if source in heard]
    if not scored:
        print_status("score: nothing was heard that could be scored")
        return
    result = score([said for said, _ in scored], [heard for _, heard in scored])
    rates = ", ".join(
        f"{name} % {100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        for name, rate in (
            ("WER", bootstrap_interval(result.word_counts)),
            ("CER", bootstrap_interval(result.character_counts)),
        )
    )
    of = "" if len(scored) == num_files else f" of {num_files}"
    print_status(f"score of {len(scored)}{of} file{'' if num_files == 1 else 's'}: {rates}")


@contextmanager
def _progress(num_files: int, has_bar: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr if that is a terminal; call what it gives after each file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_shown = has_bar and sys.stderr.isatty()
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not is_shown, redirect_stdout=False
    ) as progress:
        task = progress.add_task("", total=num_files)
        yield lambda: progress.advance(task)


if __name__ == "__main__":
    main()
