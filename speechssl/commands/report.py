"""``speechssl report``."""

from pathlib import Path
from typing import Annotated

import typer

from speechssl.terminal import exit_on_error, print_status


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, finished or not.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.html", help="Write the report here.")],
    references: Annotated[
        list[Path] | None,
        typer.Option(
            "--reference",
            metavar="FILE.tsv",
            help="Draw what `speechssl curves` kept of healthy runs behind the curves. Repeatable.",
        ),
    ] = None,
) -> None:
    """Write what training runs tell into one HTML file, which opens without a network.

    It has the curves of the log, the warnings, scores with intervals,
    transcripts with their mistakes marked, data, settings that differ
    from the defaults, machines and cost. Several runs are drawn together
    and compared with the first.
    """
    with exit_on_error():
        from speechssl.report.page import write_report

        write_report(runs, output, references or [])
        print_status(f"{output}: written")
