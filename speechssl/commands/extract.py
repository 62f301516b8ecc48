"""``speechssl extract``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechssl.commands.options import AnyModel, Device, InferencePrecision, Language, Recordings
from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error


def extract(
    model: AnyModel,
    files: Recordings,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="The file to write: .safetensors or .npz."),
    ],
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="N|all", help="From 1; 0 is the input of the first. Default: the final output of the encoder."
        ),
    ] = None,
    device: Device = None,
    precision: InferencePrecision = None,
    language: Language = None,
) -> None:
    """Write the features of recordings: the output of the encoder at each frame.

    The file holds, by the path of each recording, its features (frames,
    channels) and in "PATH:times" the center of each frame in seconds; with
    --layer all "PATH:0", "PATH:1" and so on. Recordings that cannot be
    read are named on stderr, the others are still written.
    """
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.transcribe.extract import extract_files

        if not extract_files(model, files, layer, output, device, precision, language):
            sys.exit(1)
