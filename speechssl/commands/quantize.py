"""``speechssl quantize``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechssl.commands.options import AnyModel, Device, InferencePrecision, Language
from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error


def quantize(
    model: AnyModel,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Manifests; recordings in any common format; folders, searched with their subfolders; patterns; "
            "- for stdin.",
        ),
    ],
    clusters: Annotated[
        Path, typer.Option(metavar="FILE", help="What `speechssl cluster` wrote, or a k-means file of fairseq.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The table to write: units.tsv.")],
    merge: Annotated[bool, typer.Option("--merge", help="Write each run of the same unit as one.")] = False,
    durations: Annotated[
        bool, typer.Option("--durations", help="With --merge: a column with the frames of each run.")
    ] = False,
    layer: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Only for fairseq's files, which do not say of which layer they are."),
    ] = None,
    device: Device = None,
    precision: InferencePrecision = None,
    language: Language = None,
) -> None:
    """Write the discrete units of recordings: the cluster of every frame.

    The table has a row for each recording: its path, its start in seconds
    (of an utterance of a manifest) and its units. A file of the same name
    that ends in .json states all that the units depend on. Clusters of
    another model, layer or frame rate are refused. Recordings that cannot
    be read are named on stderr, the others are still written.
    """
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.transcribe.quantize import quantize_files

        options = (layer, merge, durations, device, precision, language)
        if not quantize_files(model, files, clusters, output, *options):
            sys.exit(1)
