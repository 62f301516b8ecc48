"""``speechssl probe``."""

from pathlib import Path
from typing import Annotated

import typer

from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error


def probe(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Pretrained or fine-tuned models.")],
    letters: Annotated[
        Path | None,
        typer.Option(metavar="MANIFEST", help="Utterances with texts, for the probe of letters and the ABX test."),
    ] = None,
    aligned_by: Annotated[
        Path | None, typer.Option(metavar="FINETUNED", help="A model that says which letter sounds when.")
    ] = None,
    voices: Annotated[
        Path | None,
        typer.Option(metavar="MANIFEST", help="Utterances with speaker and language, for the probes of both."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also probe spectra, and the encoder of the first model with fresh weights.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of splits, frames, triples and fresh weights.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write everything as JSON.")
    ] = None,
) -> None:
    """Measure what each layer of an encoder knows.

    Layer 0 is the input of the context network. Letters, languages and
    voices are read by logistic regressions: a letter from a frame, the
    others from the mean and deviation of a second. No utterance is in both
    training and test. ABX is the error of telling letters by their
    distance, 50 % being chance.

    "language one voice" is of utterances of the speakers of several
    languages; "voice new language" is of a voice in a language that the
    classifier has not heard it speak. The others confound language and
    voice where each voice has a language of its own.
    """
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.evaluate.probe import probe_models

        typer.echo(probe_models(models, aligned_by, letters, voices, output, baselines, seed))
