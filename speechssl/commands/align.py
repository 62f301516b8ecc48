"""``speechssl align``."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.commands.options import Device, InferencePrecision, Language
from speechssl.commands.transcription_options import Model, Overwrite, Quiet
from speechssl.cpu import tune_cpu
from speechssl.errors import ConfigError
from speechssl.terminal import exit_on_error, print_error


def align(
    audio: Annotated[
        Path, typer.Argument(metavar="AUDIO", help="A recording, a folder of recordings, or a manifest with texts.")
    ],
    model: Model,
    text: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TEXT]",
            help="What is said: a .txt file, a folder of .txt files, a manifest, or any other labels that "
            "recipes/own_data takes. Default: a manifest's own texts, or the .txt file beside each recording.",
        ),
    ] = None,
    output_format: Annotated[
        Literal["json", "ctm", "textgrid", "srt"],
        typer.Option(
            "--format",
            help="json: a line with an object a recording, words and letters with times and confidences. ctm: a line a "
            "word. textgrid: for Praat. srt: subtitles of the text.",
        ),
    ] = "json",
    output_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a file for each recording instead of printing.")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = None,
    precision: InferencePrecision = None,
    language: Language = None,
    quiet: Quiet = False,
) -> None:
    """Find when each word of a known text is said, in recordings of any length.

    The text may be written as usual: capitals and punctuation are kept,
    and words that the model cannot spell, such as numbers in digits, are
    skipped over with a note. Where text and speech differ, json says so:
    words are "said", "not said", "not in text" (heard alone) or "not
    spelled"; the others do not move. Any CTC model will do.
    """
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.transcribe.align_job import align_pairs, find_pairs, refuse_namesakes, refuse_taken
        from speechssl.transcribe.alignment_formats import AlignmentFormat
        from speechssl.transcribe.transcriber import Transcriber

        chosen = AlignmentFormat(output_format)
        pairs, failures = find_pairs(audio, text)
        refused: list[ConfigError] = []
        if output_dir is not None:
            pairs, refused = refuse_taken(pairs, chosen, output_dir, overwrite)
        elif chosen is AlignmentFormat.CTM:
            pairs, refused = refuse_namesakes(pairs)
        failures += refused
        for failure in failures:
            print_error(failure)
        if output_dir is None and len(pairs) > 1 and not chosen.holds_several:
            raise typer.BadParameter(f"{output_format} of several recordings needs --output-dir", param_hint="--format")
        if pairs:
            transcriber = Transcriber.load(model, device, None, precision, language)
            if not align_pairs(transcriber, pairs, chosen, output_dir, quiet):
                sys.exit(1)
        if failures:
            sys.exit(1)
