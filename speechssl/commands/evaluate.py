"""``speechssl evaluate``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechssl.commands.options import (
    Device,
    FinetunedModel,
    HotwordsFile,
    InferencePrecision,
    Language,
    LanguageModelFile,
    WordsOnly,
)
from speechssl.terminal import exit_on_error


def evaluate(
    model: FinetunedModel,
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST", help="Manifests with texts.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write everything as JSON: rates, confusions, each utterance's texts.",
        ),
    ] = None,
    device: Device = None,
    precision: InferencePrecision = None,
    lm: LanguageModelFile = None,
    hotwords: HotwordsFile = None,
    normalize: WordsOnly = False,
    language: Language = None,
) -> None:
    """Measure word and character error rates, with 95 % bootstrap intervals.

    Prints a row for RESULTS.md for each manifest on stdout, the rest on stderr.
    """
    with exit_on_error():
        from speechssl.cpu import tune_cpu

        tune_cpu()  # before torch is imported
        from speechssl.evaluate.evaluate import evaluate_manifests

        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        scoring = {"words_only": normalize, "language": language}
        if not evaluate_manifests(model, manifests, output, device, lm, precision, hotwords, **scoring):
            sys.exit(1)
