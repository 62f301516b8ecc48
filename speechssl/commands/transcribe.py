"""``transcribe-audio``: recordings in, text, subtitles or JSON out."""

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from speechssl.commands.options import (
    Device,
    HotwordsFile,
    InferencePrecision,
    Language,
    LanguageModelFile,
    Recordings,
    Version,
    WordsOnly,
    make_app,
)
from speechssl.commands.transcription_options import (
    BatchSeconds,
    Beside,
    Channel,
    End,
    Formats,
    Letters,
    Live,
    Model,
    NBest,
    OutputDir,
    Overwrite,
    Quiet,
    RawRate,
    Reference,
    SpeechDetection,
    SplitAtPauses,
    Start,
    Words,
)
from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error
from speechssl.transcribe.formats import Format
from speechssl.transcribe.outputs import BesideRecordings, OutputFolder, Printer, Writer

if TYPE_CHECKING:
    from speechssl.model.device import Precision
    from speechssl.transcribe.transcriber import Transcriber

EXAMPLES = """\
Usage: transcribe-audio [OPTIONS] FILE...

  transcribe-audio --model MODEL interview.mp3                          # print the text
  transcribe-audio --model MODEL --format srt talk.mp4 > talk.srt       # subtitles
  transcribe-audio --model MODEL --format txt,json --output-dir texts recordings/
  transcribe-audio --model MODEL --format html --beside recordings/     # pages to correct on

transcribe-audio --help lists all options.
"""


class _Command(TyperCommand):
    """A command that shows examples if it is given nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # which completion does
            typer.echo(EXAMPLES, err=True, nl=False)
            ctx.exit(2)
        return super().parse_args(ctx, args)


LIVE_OPTIONS = ("files", "--live", "--model", "--raw-rate", "--device", "--precision", "--language", "--quiet")

app = make_app()


@app.command(cls=_Command)
def transcribe(
    context: typer.Context,
    files: Recordings,
    model: Model,
    output_format: Formats = None,
    output_dir: OutputDir = None,
    beside: Beside = False,
    overwrite: Overwrite = False,
    words: Words = False,
    letters: Letters = False,
    nbest: NBest = None,
    channel: Channel = None,
    start: Start = None,
    end: End = None,
    raw_rate: RawRate = None,
    live: Live = False,
    split_at_pauses: SplitAtPauses = False,
    vad: SpeechDetection = "energy",
    lm: LanguageModelFile = None,
    hotwords: HotwordsFile = None,
    reference: Reference = None,
    normalize: WordsOnly = False,
    device: Device = None,
    precision: InferencePrecision = None,
    language: Language = None,
    batch_seconds: BatchSeconds = 60.0,
    quiet: Quiet = False,
    version: Version = False,
) -> None:
    """Write down what is said in recordings, in UTF-8.

    A file that fails costs a line on stderr and exit status 1; the others are still transcribed. The last line on
    stderr counts files and seconds; the real-time factor is the time taken over the length of the audio.
    """
    formats = _parse_formats(output_format or ["txt"])
    _check_options(context, formats)
    with exit_on_error():
        # Loaded here, so that --help and mistakes on the command line are answered immediately.
        from speechssl.transcribe.inputs import find_inputs
        from speechssl.transcribe.job import describe_settings, transcribe_files
        from speechssl.transcribe.live import transcribe_live

        load = partial(_load, model, device, lm, precision, language, hotwords, reference is not None)
        if live:
            assert raw_rate
            transcribe_live(load, raw_rate, quiet)
            return
        inputs, failures = find_inputs(files, channel, start, end)
        detection: dict[str, Any] = {"split_at_pauses": split_at_pauses, "vad": vad}
        if output_dir is None and not beside:
            writer: Writer = Printer(formats[0], words, letters, is_named=[file.path for file in inputs[:1]] != files)
        else:
            span = {"channel": channel, "start": start, "end": end}
            shown = {"words": words, **({"letters": True} if letters else {}), **({"nbest": nbest} if nbest else {})}
            settings = describe_settings(
                model, lm, hotwords, precision=precision, language=language, **detection, **span, **shown
            )
            place = BesideRecordings if output_dir is None else partial(OutputFolder, output_dir)
            writer = place(formats=formats, words=words, letters=letters, overwrite=overwrite, settings=settings)
        scoring = {"words_only": normalize, "language": language}
        options = {**detection, "batch_seconds": batch_seconds, "nbest": nbest}
        if not transcribe_files(inputs, failures, writer, load, reference, quiet, scoring, raw_rate, **options):
            sys.exit(1)


def main() -> None:
    """Run the command line."""
    app()


def _load(
    model: Path,
    device: str | None,
    lm: Path | None,
    precision: "Precision | None",
    language: str | None,
    hotwords: Path | None,
    is_scored: bool,
) -> "Transcriber":
    tune_cpu()  # before torch is imported
    from speechssl.checkpoint.reader import language_for
    from speechssl.transcribe.transcriber import Transcriber

    # With references it is the language of the texts as well, and need not be a choice of the model.
    language = language_for(model, language) if is_scored else language
    return Transcriber.load(model, device, lm, precision, language, hotwords)


def _check_options(context: typer.Context, formats: Sequence[Format]) -> None:
    """Refuse options that do not fit each other."""
    given = SimpleNamespace(**context.params)
    span = given.start or 0, math.inf if given.end is None else given.end
    is_printed, is_whole = given.output_dir is None and not given.beside, given.start is given.end is None
    names = [
        parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or "")) and source.name == "COMMANDLINE"
    ]
    not_live = " nor ".join(name for name in names if name not in LIVE_OPTIONS)
    is_stdin, json = [*given.files] == ["-"], Format.JSON in formats
    for is_wrong, option, expected in (
        (
            given.live and not (given.raw_rate and is_stdin),
            "--live",
            "expected --raw-rate and -, standard input, beside it",
        ),
        (given.live and not_live, "--live", f"expected no {not_live} beside it"),
        (is_printed and len(formats) > 1, "--format", "several formats need --output-dir or --beside"),
        (given.output_dir is not None and given.beside, "--beside", "expected no --output-dir beside it"),
        (given.letters and not json, "--letters", "expected --format json beside it"),
        (given.nbest and (given.lm is None or not json), "--nbest", "expected --lm and --format json beside it"),
        (given.raw_rate and "-" not in given.files, "--raw-rate", "expected - among the files, standard input"),
        (not 0 <= span[0] < span[1], "--start, --end", "expected an end after the start"),
        (not given.batch_seconds > 0, "--batch-seconds", "expected more than 0 seconds"),
        (given.reference and not is_whole, "--reference", "expected neither --start nor --end beside it"),
        (given.vad != "energy" and not given.split_at_pauses, "--vad", "expected --split-at-pauses beside it"),
        (given.normalize and not given.reference, "--normalize", "expected --reference beside it"),
    ):
        if is_wrong:
            raise typer.BadParameter(expected, param_hint=option)


def _parse_formats(values: Sequence[str]) -> list[Format]:
    try:
        names = [name.strip() for value in values for name in value.split(",")]
        formats = list(dict.fromkeys(Format(name) for name in names if name != "all"))
        return list(Format) if "all" in names else formats
    except ValueError as error:
        raise typer.BadParameter(f"{error}; expected {', '.join([*Format, 'all'])}", param_hint="--format") from None


if __name__ == "__main__":
    main()
