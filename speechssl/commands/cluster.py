"""``speechssl cluster``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechssl.commands.options import AnyModel, Device, InferencePrecision, Language
from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error


def cluster(
    model: AnyModel,
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST", help="Tables of utterances.")],
    layer: Annotated[
        int, typer.Option(metavar="N", min=0, help="Whose output: from 1; 0 is the input of the first layer.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The safetensors file to write.")],
    num: Annotated[int, typer.Option(metavar="N", min=2, help="How many clusters.")] = 500,
    share: Annotated[
        float, typer.Option(metavar="SHARE", help="Of all frames, drawn at random: what k-means sees.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Of the draw and of k-means.")] = 0,
    device: Device = None,
    precision: InferencePrecision = None,
    language: Language = None,
) -> None:
    """Find clusters of frames by the output of a model's layer, for discrete units.

    The file states all that the clusters depend on: model, layer,
    normalization, frame rate, share and seed. `speechssl quantize` turns
    recordings into units with it, and `objective.targets.clusters` makes
    them targets of pretraining. The frames that are drawn lie in a
    temporary file, four bytes a number, so memory does not grow with them.
    """
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.errors import ConfigError
        from speechssl.transcribe.cluster import cluster_manifests

        if not 0 < share <= 1:
            raise ConfigError(f"--share: expected more than 0 and at most 1, found {share:g}")
        if not cluster_manifests(model, manifests, layer, num, output, share, seed, device, precision, language):
            sys.exit(1)
