"""``speechssl extract``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechssl.terminal import exit_on_error


def extract(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any model, or the run folder that holds it.")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Recordings, folders with recordings, patterns, or - for stdin."),
    ],
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
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A torch device such as cpu or cuda:1. Default: the GPU if there is one."),
    ] = None,
) -> None:
    """Write what the encoder says of each frame of recordings.

    The file holds, by the path of each recording, its features (frames,
    channels) and in "PATH:times" the center of each frame in seconds; with
    --layer all "PATH:0", "PATH:1" and so on. Recordings that cannot be
    read are named on stderr, the others are still written.
    """
    with exit_on_error():
        from speechssl.cpu import tune_cpu

        tune_cpu()  # before torch is imported
        from speechssl.transcribe.extract import extract_files

        if not extract_files(model, files, layer, output, device):
            sys.exit(1)
