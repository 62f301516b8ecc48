"""``transcribe-audio``: recordings in, text, subtitles or JSON out."""

import math
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from speechssl.commands.options import (
    Device,
    InferencePrecision,
    LanguageModelFile,
    Recordings,
    Version,
    make_app,
)
from speechssl.terminal import exit_on_error
from speechssl.transcribe.outputs import Format, OutputFolder, Printer

if TYPE_CHECKING:
    from speechssl.transcribe.transcriber import Transcriber

EXAMPLES = """\
Usage: transcribe-audio [OPTIONS] FILE...

  transcribe-audio --model MODEL interview.mp3                          # print the text
  transcribe-audio --model MODEL --format srt talk.mp4 > talk.srt       # subtitles
  transcribe-audio --model MODEL --format txt,json --output-dir texts recordings/

transcribe-audio --help lists all options.
"""


class VAD(StrEnum):
    """What tells speech from pauses."""

    ENERGY = "energy"
    SILERO = "silero"


class _Command(TyperCommand):
    """A command that shows examples if it is given nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # which completion does
            typer.echo(EXAMPLES, err=True, nl=False)
            ctx.exit(2)
        return super().parse_args(ctx, args)


app = make_app()


@app.command(cls=_Command)
def transcribe(
    files: Recordings,
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
            help="Write files named as the recordings, atomically, instead of printing. Files that were made from the "
            "same recordings with the same model and options are kept, so an interrupted run can be resumed.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that already exist.")] = False,
    words: Annotated[bool, typer.Option("--words", help="In srt, vtt and tsv, each word by itself.")] = False,
    channel: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use this channel, counted from 1. Default: their mean.")
    ] = None,
    start: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Start here in each file.")] = None,
    end: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Stop here in each file.")] = None,
    split_at_pauses: Annotated[
        bool,
        typer.Option(
            "--split-at-pauses",
            help="Process each piece between two pauses by itself, which suits models trained on short utterances.",
        ),
    ] = False,
    vad: Annotated[
        VAD,
        typer.Option(
            help="What tells speech from the pauses. energy: what is not quiet. silero: voices, also in noise and "
            "music (pip install 'speechssl[vad]').",
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
    device: Device = None,
    precision: InferencePrecision = None,
    batch_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Audio in a batch, padding included. Longer recordings are processed a minute at a time.",
        ),
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print neither progress nor the summary.")] = False,
    version: Version = False,
) -> None:
    """Write down what is said in recordings, in UTF-8.

    A file that fails costs a line on stderr and exit status 1; the others are still transcribed. The last line on
    stderr counts files and seconds; the real-time factor is the time taken over the length of the audio.
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
        # Loaded here, so that --help and mistakes on the command line are answered immediately.
        from speechssl.transcribe.inputs import find_inputs
        from speechssl.transcribe.job import describe_settings, transcribe_files

        def load() -> "Transcriber":
            from speechssl.cpu import tune_cpu

            tune_cpu()  # before torch is imported
            from speechssl.transcribe.transcriber import Transcriber

            return Transcriber.load(model, device, lm, precision.value if precision else None)

        options: dict[str, Any] = {"split_at_pauses": split_at_pauses, "vad": vad.value}
        inputs, failures = find_inputs(files, channel, start, end)
        writer: Printer | OutputFolder
        if output_dir is None:
            writer = Printer(formats[0], words, is_named=[file.path for file in inputs[:1]] != files)
        else:
            part = {"channel": channel, "start": start, "end": end, "words": words}
            settings = describe_settings(model, lm, precision=precision, **options, **part)
            writer = OutputFolder(output_dir, formats, words, overwrite, settings)
        options["batch_seconds"] = batch_seconds
        if not transcribe_files(inputs, failures, writer, load, reference, quiet, **options):
            sys.exit(1)


def main() -> None:
    """Run the command line."""
    app()


def _parse_formats(values: Sequence[str]) -> list[Format]:
    try:
        return list(dict.fromkeys(Format(name.strip()) for value in values for name in value.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"{error}; expected {', '.join(Format)}", param_hint="--format") from None


if __name__ == "__main__":
    main()
