"""``speechssl compare``."""

from pathlib import Path
from typing import Annotated

import typer

from speechssl.terminal import exit_on_error


def compare(
    candidates: Annotated[
        list[Path], typer.Argument(metavar="CANDIDATE.json", help="Evaluations of a method, one for each seed.")
    ],
    baselines: Annotated[
        list[Path],
        typer.Option(
            "--baseline", metavar="FILE.json", help="An evaluation of the method to compare with; once for each seed."
        ),
    ],
) -> None:
    """Compare two methods by the files of `evaluate --output`.

    Prints the error rates of all runs, and their ratio and difference
    with 95 % intervals over utterances and seeds.
    """
    with exit_on_error():
        from speechssl.evaluate.compare import format_comparison

        typer.echo(format_comparison(baselines, candidates))
