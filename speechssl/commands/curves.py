"""``speechssl curves``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechssl.terminal import exit_on_error, print_status


def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders of one configuration.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.tsv", help="Write the runs' curves, a column a run.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="What to write, as log.jsonl calls it. Repeatable."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE.tsv", help="Compare the runs with curves that were written before."),
    ] = None,
) -> None:
    """Keep the curves of healthy runs with --output, or compare runs with such curves with --reference.

    A comparison prints a line for each metric that leaves the band of the
    reference runs (five standard deviations around their mean, at least
    2 % of it), and exits with status 1 if there is one. A run can be
    compared while it trains.
    """
    if (output is None) == (reference is None) or (output is None) is not (metrics is None):
        raise typer.BadParameter("expected either --output with --metric, or --reference", param_hint="curves")
    with exit_on_error():
        from speechssl.train.curves import find_deviations, write_curves

        if output is not None:
            number = write_curves(output, runs, metrics or [])
            print_status(f"{output}: {number} values of {len(runs)} runs")
        elif reference is not None:
            deviations = [f"{run}: {line}" for run in runs for line in find_deviations(reference, run)]
            for line in deviations:
                typer.echo(line)
            if deviations:
                sys.exit(1)
