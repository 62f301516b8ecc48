"""``speechssl tune-lm``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.commands.options import Device, FinetunedModel, InferencePrecision, Language
from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error


def tune_lm(
    model: FinetunedModel,
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The dev set, with texts.")],
    lm: Annotated[
        Path,
        typer.Option("--lm", metavar="FILE.arpa|FILE.toml", help="An ARPA file, or settings to look around in."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.toml", help="The settings found, for --lm of the others.")
    ],
    num_trials: Annotated[int, typer.Option("--trials", min=1, metavar="N", help="Settings to try.")] = 40,
    num_utterances: Annotated[
        int,
        typer.Option("--utterances", min=1, metavar="N", help="On how many, drawn at random if there are more."),
    ] = 300,
    by: Annotated[
        Literal["wer", "cer"],
        typer.Option(
            help="Which error rate is to be low; the other decides between equals. cer: where words have no "
            "spaces between."
        ),
    ] = "wer",
    device: Device = None,
    precision: InferencePrecision = None,
    language: Language = None,
) -> None:
    """Find how much a language model should count beside a model.

    Tries weights at random, half of them near the best so far, and keeps
    those with the lowest error rate.
    """
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.evaluate.tune import tune_weights

        tune_weights(model, manifest, lm, output, num_trials, num_utterances, device, precision, language, by)
