"""``speechssl calibrate``."""

from pathlib import Path
from typing import Annotated

import typer

from speechssl.commands.options import (
    Device,
    FinetunedModel,
    InferencePrecision,
    Language,
    LanguageModelFile,
    WordsOnly,
)
from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error


def calibrate(
    model: FinetunedModel,
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The dev set, with texts.")],
    lm: LanguageModelFile = None,
    device: Device = None,
    precision: InferencePrecision = None,
    normalize: WordsOnly = False,
    language: Language = None,
) -> None:
    """Make the confidence of a word the probability that it is right.

    Fits two numbers on speech that the model was not trained on, and writes
    them beside the model's weights, or with --lm beside that file. Everything
    that shows confidences uses them, as long as the weights (and the language
    model with its settings) are the same.
    """
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.evaluate.calibrate import calibrate_model

        calibrate_model(model, manifest, lm, device, precision, language, words_only=normalize)
