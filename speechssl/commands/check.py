"""``speechssl check``."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from speechssl.commands.options import Language
from speechssl.errors import ManifestError
from speechssl.terminal import exit_on_error, print_error


def check(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="Splits of one corpus; what two of them share is reported.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Take frame lengths and letters from this model. Default: the frames of wav2vec 2.0, any letters.",
        ),
    ] = None,
    language: Language = None,
    report_format: Annotated[
        Literal["txt", "json"], typer.Option("--format", help="How the report is printed.")
    ] = "txt",
) -> None:
    """Read all audio and text of manifests before training, and report what is wrong or suspicious.

    Errors (exit status 1): recordings that cannot be read or are shorter
    than stated, labels that do not fit their frames, characters outside
    the model's vocabulary, missing texts, splits that share audio.

    Warnings: recordings that are silent, quiet, loud, clipped, shifted
    by an offset, longer than stated, or whose channels have opposite
    phase; recordings that sound like others, whatever their level and
    format; splits that share texts or speakers.
    """
    with exit_on_error():
        from speechssl.data.check import BASE_GEOMETRY, check_manifests
        from speechssl.data.check_report import format_report, make_report
        from speechssl.data.manifest import read_manifest

        geometry, vocabulary = BASE_GEOMETRY, None
        if model is not None:
            from speechssl.checkpoint.reader import read_model

            saved = read_model(model, language)
            geometry, vocabulary = saved.description.encoder.feature_encoder.geometry, saved.vocabulary
        read = []
        for path in manifests:
            try:
                read.append(read_manifest(path))
            except ManifestError as error:
                print_error(error)
        problems = check_manifests(read, geometry, vocabulary)
        report = make_report(read, problems)
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        if report_format == "json":
            typer.echo(json.dumps(report, ensure_ascii=False, indent=2))
        elif read:
            typer.echo(format_report(report))
        if len(read) < len(manifests) or any(problem.is_error for problem in problems):
            sys.exit(1)
