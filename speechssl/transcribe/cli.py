"""``transcribe-audio``: recordings in, text out."""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechssl.command import exit_on_error, print_error
from speechssl.errors import SpeechSSLError

if TYPE_CHECKING:
    from speechssl.transcribe.transcriber import Transcript


class Format(StrEnum):
    """What is printed for a recording."""

    TXT = "txt"
    JSON = "json"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def transcribe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Recordings in any common format.")],
    model: Annotated[
        Path, typer.Option("--model", metavar="DIR", help="A fine-tuned model, or the run folder that holds it.")
    ],
    output_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="txt: a line of text a file, after its name and a tab if there are several files. "
            'json: a line with an object a file, {"path", "text", "seconds"}.',
        ),
    ] = Format.TXT,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A torch device such as cpu or cuda:1. Default: the GPU if there is one."),
    ] = None,
) -> None:
    """Print what is said in recordings, a line a file, in UTF-8.

    A file that fails costs a line on stderr and exit status 1; the others are still transcribed.
    """
    with exit_on_error():
        # Names that are no UTF-8 come out as the bytes they are; JSON needs them escaped.
        errors = "surrogateescape" if output_format is Format.TXT else "backslashreplace"
        sys.stdout.reconfigure(encoding="utf-8", errors=errors)  # type: ignore[union-attr]
        if not _transcribe_files(files, model, output_format, device):
            sys.exit(1)


def main() -> None:
    """Run the command line."""
    app()


def _transcribe_files(files: list[Path], model: Path, output_format: Format, device: str | None) -> bool:
    """Print a line a file as soon as it is known; whether all of them went well."""
    # Loaded here, so that --help and mistakes on the command line are answered without torch.
    from speechssl.cpu import tune_cpu

    tune_cpu()  # before torch is imported
    from speechssl.transcribe.transcriber import Transcriber

    transcriber = Transcriber.load(model, device)
    all_well = True
    for file in files:
        try:
            transcript = transcriber.transcribe(file)
        except SpeechSSLError as error:
            print_error(error)
            all_well = False
        else:
            _print_line(_format(file, transcript, output_format, named=len(files) > 1))
    return all_well


def _format(file: Path, transcript: "Transcript", output_format: Format, named: bool) -> str:
    if output_format is Format.JSON:
        return json.dumps({"path": str(file), **asdict(transcript)}, ensure_ascii=False)
    return f"{file}\t{transcript.text}" if named else transcript.text


def _print_line(line: str) -> None:
    """Print a result on stdout at once, for whoever waits at the other end of a pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
