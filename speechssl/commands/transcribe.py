"""``transcribe-audio``: recordings in, text, subtitles or JSON out."""

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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


def parse_time(text: str | float) -> float:
    """Turn seconds, mm:ss or hh:mm:ss, with or without a fraction, into seconds."""
    parts = str(text).split(":")
    try:
        numbers = [*map(float, parts)]
    except ValueError:
        numbers = []
    is_time = 1 <= len(numbers) <= 3 and all(part.isdecimal() for part in parts[:-1])
    if not is_time or not 0 <= numbers[-1] <= 1e9 or (len(numbers) > 1 and max(numbers[1:]) >= 60):
        raise typer.BadParameter(f"expected seconds, mm:ss or hh:mm:ss, found {text!r}")
    return sum((number * 60.0**place for place, number in enumerate(reversed(numbers))), 0.0)


class _Command(TyperCommand):
    """A command that shows examples if it is given nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # which completion does
            typer.echo(EXAMPLES, err=True, nl=False)
            ctx.exit(2)
        return super().parse_args(ctx, args)


Model = Annotated[
    Path,
    typer.Option(
        "--model",
        metavar="MODEL",
        envvar="SPEECHSSL_MODEL",
        help="A fine-tuned model: a model folder (ours or Hugging Face's), a run folder, or a name on the Hugging Face "
        "Hub.",
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="|".join([*Format, "all"]),
        help="Several with commas, or the option several times. txt (default): a line of text a file, after its name "
        "and a tab if there are several files. json: a line with an object a file, with segments and words. srt, vtt: "
        "subtitles. tsv: start and end in milliseconds, and text. html: a page to hear and correct it on, and in a "
        "folder with several index.html, the least certain first.",
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write files named as the recordings, atomically, instead of printing. Files that were made from the same "
        "recordings with the same model and options are kept, so an interrupted run can be resumed.",
    ),
]
Beside = Annotated[
    bool, typer.Option("--beside", help="Like --output-dir, but beside each recording, in its own folder.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that already exist.")]
Words = Annotated[bool, typer.Option("--words", help="In srt, vtt and tsv, each word by itself.")]
Letters = Annotated[
    bool, typer.Option("--letters", help="In json, the letters of each word too, with times and confidences.")
]
NBest = Annotated[
    int | None,
    typer.Option(
        "--nbest",
        min=1,
        metavar="N",
        help="In json, the N likeliest texts of the search with --lm too, with their scores.",
    ),
]
Channel = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Use this channel, counted from 1. Default: their mean.")
]
Start = Annotated[
    float | None,
    typer.Option(parser=parse_time, metavar="TIME", help="Start here in each file: seconds, mm:ss or hh:mm:ss."),
]
End = Annotated[float | None, typer.Option(parser=parse_time, metavar="TIME", help="Stop here in each file.")]
RawRate = Annotated[
    int | None,
    typer.Option(
        min=100,
        max=1_000_000,
        metavar="HZ",
        help="Standard input holds no file but samples of this rate: 16 bits, little-endian, mono, as `arecord -t raw "
        "-f S16_LE` writes them.",
    ),
]
Live = Annotated[
    bool,
    typer.Option(
        "--live",
        help="Transcribe standard input while it is recorded: `arecord -t raw -f S16_LE -r 16000 -c 1 | "
        "transcribe-audio --live --raw-rate 16000 -`. Words are printed as soon as they are final, a line ended by "
        "each pause; a terminal also shows what may follow them. Ctrl-C ends it as the end of the input does.",
    ),
]
SplitAtPauses = Annotated[
    bool,
    typer.Option(
        "--split-at-pauses",
        help="Process each piece between two pauses by itself, which suits models trained on short utterances.",
    ),
]
SpeechDetection = Annotated[
    Literal["energy", "silero"],
    typer.Option(
        help="What tells speech from the pauses. energy: what is not quiet. silero: voices, also in noise and music "
        "(pip install 'speechssl[vad]').",
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|DIR",
        help="What is really said: a manifest with texts, any other labels that recipes/own_data takes, or a folder of "
        ".txt files named as the recordings. Word and character error rates with 95 % intervals go to stderr, over all "
        "recordings that have a text; an empty one says that nothing is said.",
    ),
]
BatchSeconds = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="Audio in a batch, padding included. Longer recordings are processed a minute at a time.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print neither progress nor the summary.")]

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
    stop = math.inf if end is None else end
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or "")) and source.name == "COMMANDLINE"
    ]
    not_live = " nor ".join(option for option in given if option not in LIVE_OPTIONS)
    for is_wrong, option, expected in (
        (live and not (raw_rate and files == ["-"]), "--live", "expected --raw-rate and -, standard input, beside it"),
        (live and not_live, "--live", f"expected no {not_live} beside it"),
        (output_dir is None and not beside and len(formats) > 1, "--format", "several formats need --output-dir"),
        (output_dir is not None and beside, "--beside", "expected no --output-dir beside it"),
        (letters and Format.JSON not in formats, "--letters", "expected --format json beside it"),
        (nbest and (lm is None or Format.JSON not in formats), "--nbest", "expected --lm and --format json beside it"),
        (raw_rate and "-" not in files, "--raw-rate", "expected - among the files, standard input"),
        (not 0 <= (start or 0) < stop, "--start, --end", "expected an end after the start"),
        (not batch_seconds > 0, "--batch-seconds", "expected more than 0 seconds"),
        (reference and not start is end is None, "--reference", "expected neither --start nor --end beside it"),
        (vad != "energy" and not split_at_pauses, "--vad", "expected --split-at-pauses beside it"),
        (normalize and not reference, "--normalize", "expected --reference beside it"),
    ):
        if is_wrong:
            raise typer.BadParameter(expected, param_hint=option)
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
        options: dict[str, Any] = {"split_at_pauses": split_at_pauses, "vad": vad}
        inputs, failures = find_inputs(files, channel, start, end)
        writer: Writer
        if output_dir is None and not beside:
            writer = Printer(formats[0], words, letters, is_named=[file.path for file in inputs[:1]] != files)
        else:
            part = {
                "channel": channel,
                "start": start,
                "end": end,
                "words": words,
                **({"letters": True} if letters else {}),
                **({"nbest": nbest} if nbest else {}),
            }
            settings = describe_settings(model, lm, hotwords, precision=precision, language=language, **options, **part)
            whole: dict[str, Any] = {
                "formats": formats,
                "words": words,
                "letters": letters,
                "overwrite": overwrite,
                "settings": settings,
            }
            writer = OutputFolder(output_dir, **whole) if output_dir is not None else BesideRecordings(**whole)
        options |= {"batch_seconds": batch_seconds, "nbest": nbest}
        scoring = {"words_only": normalize, "language": language}
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
    from speechssl.cpu import tune_cpu

    tune_cpu()  # before torch is imported
    from speechssl.checkpoint.reader import language_for
    from speechssl.transcribe.transcriber import Transcriber

    # With references it is the language of the texts as well, and need not be a choice of the model.
    language = language_for(model, language) if is_scored else language
    return Transcriber.load(model, device, lm, precision, language, hotwords)


def _parse_formats(values: Sequence[str]) -> list[Format]:
    try:
        names = [name.strip() for value in values for name in value.split(",")]
        return list(Format) if names == ["all"] else list(dict.fromkeys(map(Format, names)))
    except ValueError as error:
        raise typer.BadParameter(f"{error}; expected {', '.join([*Format, 'all'])}", param_hint="--format") from None


if __name__ == "__main__":
    main()
