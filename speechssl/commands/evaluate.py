"""``speechssl evaluate``."""

import sys
from dataclasses import asdict
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
from speechssl.cpu import tune_cpu
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
    reliability: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw how often words of each confidence are right, a line a manifest."),
    ] = None,
    device: Device = None,
    precision: InferencePrecision = None,
    lm: LanguageModelFile = None,
    hotwords: HotwordsFile = None,
    normalize: WordsOnly = False,
    language: Language = None,
    timit: Annotated[
        bool,
        typer.Option("--timit", help="Fold TIMIT's 61 phones into 39 (Lee and Hon, 1989) before they are compared."),
    ] = False,
) -> None:
    """Measure word and character error rates, with 95 % bootstrap intervals.

    Of a model of phonemes the phoneme error rate (PER) too. ECE, the expected
    calibration error, says how far the confidences of words are from how
    often they are right; `speechssl calibrate` lowers it.

    Prints a row for RESULTS.md for each manifest on stdout, the rest on stderr.
    """
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.evaluate.evaluate import evaluate_manifests
        from speechssl.report.reliability import reliability_picture
        from speechssl.transcribe.outputs import prepare_file, write_text

        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        scoring = {"words_only": normalize, "language": language, "folds_timit": timit}
        if reliability is not None:
            prepare_file(reliability)
        found = evaluate_manifests(model, manifests, output, device, lm, precision, hotwords, **scoring)
        if reliability is not None and found:
            write_text(reliability, reliability_picture({result.manifest: asdict(result) for result in found}))
        if len(found) < len(manifests):
            sys.exit(1)
