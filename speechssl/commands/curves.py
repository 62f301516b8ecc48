"""``speechssl curves``."""

from pathlib import Path
from typing import Annotated

import typer

from speechssl.terminal import exit_on_error, print_status


def curves(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders of one configuration with different seeds.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.tsv", help="The table to write.")],
    metrics: Annotated[
        list[str], typer.Option("--metric", metavar="NAME", help="What to keep, as log.jsonl calls it. Repeatable.")
    ],
) -> None:
    """Write the curves of healthy runs, for `trainer.reference` of later ones."""
    with exit_on_error():
        from speechssl.train.curves import write_curves

        number = write_curves(output, runs, metrics)
        print_status(f"{output}: {number} values of {len(runs)} runs")
