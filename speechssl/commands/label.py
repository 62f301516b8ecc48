"""``speechssl label``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechssl.commands.options import Device, FinetunedModel, InferencePrecision, Language, LanguageModelFile
from speechssl.cpu import tune_cpu
from speechssl.terminal import exit_on_error

Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="The speech to label; texts are not used.")]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE.tsv",
        help="The manifest to write, for finetune. FILE.json beside it has every utterance, its label and scores, "
        "and why it was left out.",
    ),
]
Labeled = Annotated[
    Path | None,
    typer.Option(
        "--labeled",
        metavar="MANIFEST",
        help="True labels, written first. What shares samples with them is not labeled; how fast they are spoken "
        "is what --speed-tail goes by.",
    ),
]
KeepTexts = Annotated[
    bool, typer.Option("--keep-texts", help="Take the texts that MANIFEST has for true labels, as of --labeled.")
]
Keep = Annotated[
    float,
    typer.Option(min=0, max=1, metavar="SHARE", help="Of what the other filters leave, keep the best scores."),
]
MinScore = Annotated[
    float | None,
    typer.Option(metavar="NATS", help="The least log probability of a text, divided by its letters and spaces."),
]
Second = Annotated[
    Path | None,
    typer.Option(metavar="MODEL", help="Who listens a second time. Default: the same model."),
]
Speed = Annotated[
    float,
    typer.Option(
        min=0.5,
        max=2,
        metavar="FACTOR",
        help="How fast it is played the second time. 1 and no --second: not at all.",
    ),
]
MaxViewDifference = Annotated[
    float,
    typer.Option(min=0, metavar="RATE", help="The most character errors of the second time against the first."),
]
MaxLMDifference = Annotated[
    float,
    typer.Option(min=0, metavar="RATE", help="The most characters in which --lm and greedy decoding differ."),
]
MaxRepeats = Annotated[
    int, typer.Option(min=1, metavar="N", help="How often a text may have the same four words in a row.")
]
SpeedTail = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.5,
        metavar="SHARE",
        help="How much of --labeled has more letters a second than a label may have, and how much has fewer.",
    ),
]


def label(
    model: FinetunedModel,
    manifest: Manifest,
    output: Output,
    labeled: Labeled = None,
    keep_texts: KeepTexts = False,
    lm: LanguageModelFile = None,
    keep: Keep = 0.7,
    min_score: MinScore = None,
    second: Second = None,
    speed: Speed = 1.1,
    max_view_difference: MaxViewDifference = 0.5,
    max_lm_difference: MaxLMDifference = 1.0,
    max_repeats: MaxRepeats = 2,
    speed_tail: SpeedTail = 0.01,
    device: Device = None,
    precision: InferencePrecision = None,
    language: Language = None,
) -> None:
    """Label speech that has no texts with what a model hears in it.

    Keeps the labels that pass all filters. If MANIFEST has texts, error
    rates of the labels that each filter keeps and leaves out are printed.
    """
    with exit_on_error():
        tune_cpu()  # before torch is imported
        from speechssl.evaluate.filters import Filters
        from speechssl.evaluate.label import label_manifest
        from speechssl.evaluate.pseudo_labels import LabelConfig

        filters = Filters(keep, min_score, max_view_difference, max_lm_difference, max_repeats, None)
        config = LabelConfig(filters, lm, device, precision, language, second, speed, labeled, speed_tail, keep_texts)
        if not label_manifest(model, manifest, output, config):
            sys.exit(1)
