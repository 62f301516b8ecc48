"""``speechssl export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.commands.options import AnyModel
from speechssl.terminal import exit_on_error


def export(
    model: AnyModel,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to make; it may exist if it is empty.")
    ],
    export_format: Annotated[
        Literal["huggingface", "torchaudio", "onnx"],
        typer.Option("--format", help="What loads it: transformers, torchaudio, or an ONNX runtime."),
    ],
    runtime: Annotated[
        Literal["sherpa-onnx", "onnx-asr"] | None,
        typer.Option("--for", help="With --format onnx: write the graph and the files that this program expects."),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="With --format onnx: matrices as 8-bit integers, for a smaller file; less exact."),
    ] = False,
    scores: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.json", help="What evaluate --output wrote, for the model card. Repeatable."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload the folder to this repository of the Hugging Face hub."),
    ] = None,
) -> None:
    """Write a model for other toolkits: the same weights, the same numbers, and a card that describes it.

    A model that the other toolkit cannot compute exactly is refused, with the reason.
    """
    if export_format != "onnx" and (runtime or int8):
        raise typer.BadParameter("expected --format onnx beside it", param_hint="--for" if runtime else "--int8")
    with exit_on_error():
        from speechssl.export.export import export_model

        export_model(model, output, export_format, runtime, int8=int8, scores=scores or (), push=push)
