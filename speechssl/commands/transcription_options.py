"""The options of ``transcribe-audio``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.transcribe.formats import Format


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
