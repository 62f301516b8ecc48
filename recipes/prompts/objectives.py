"""The page that compares objectives, from what objectives.sh left in OUT.

    python recipes/prompts/objectives.py page OUT PAGE SEED
    python recipes/prompts/objectives.py rate OUT LABELS SEED

The first writes PAGE, with whatever is finished, and two pictures beside it in curves/. A section "What to take from
it" is written by hand, and kept. The second prints the learning rate at which fresh weights had the lowest dev CER.
SEED is the one that every row has.
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from budget import RECIPE, REFERENCE, Cost, objective_names, read_costs
from pictures import draw_errors, draw_layers
from runs import MEASURES, SCRATCH, Run, Runs, best_layer, find_rate, read_runs

from speechssl.errors import ConfigError
from speechssl.evaluate.compare import compare_evaluations
from speechssl.files import write_text_file
from speechssl.terminal import exit_on_error

BY_HAND = "## What to take from it"
HEADS = {
    "letters": "letters, %",
    "abx": "ABX error, %",
    "language_one_voice": "language of one voice, %",
    "voice_new_language": "voice in a new language, %",
    "language": "language, %",
    "voice": "voice, %",
}
INTRODUCTION = """\
# What each objective learns in the same time

Written by `bash recipes/prompts/objectives.sh`; the section "{by_hand}" is by hand.

Every row trains the encoder of [encoder.toml]({recipe}encoder.toml) on `pretrain_train.tsv`, for the time that
{updates} updates of masked prediction take ([pretrain.toml]({recipe}pretrain.toml)) on one core. What an update of
another objective takes beside them was measured in turns. Then every row is fine-tuned as in
[finetune.toml]({recipe}finetune.toml){finetuning}, and scored on `test.tsv` by greedy decoding. Settings are those of
[objectives/]({recipe}objectives).
"""
OF_ERRORS = """\
Sorted by the error with the most labels. One seed has a 95 % bootstrap interval over utterances; of several there are
the mean and each. A ratio's interval is over utterances and seeds. `scratch` is the encoder of the reference fine-tuned
from fresh weights, at the best of several learning rates: {rates}.
"""
OF_LAYERS = """\
The best layer of each, and in brackets which one it is; 0 is the input of the context network. Letters are those of
{test_frames:,} frames of `{manifest}`, read by a linear classifier that learned from {train_frames:,} of other
utterances; the most frequent answer is right in {chance:.1f} %. ABX: {abx_triples:,} triples of {abx_pairs} ordered
pairs of letters; chance is 50 %. Language and voice are those of one second of each of {utterances} utterances.
Answers drawn at random are right in %: {chances}.
"""
OF_SEVERAL_LANGUAGES = """
In this corpus each voice has a language of its own, but for one that reads English and Spanish, so the columns language
and voice confound both. The other two do not. "Language of one voice" tells her two languages apart, for which the
sessions in which they were recorded may serve as well. "Voice in a new language" finds her voice in the language that
the classifier did not hear her speak.
"""
OF_SEARCH = """\
Each objective had the same number of trials (`bash recipes/prompts/objectives.sh search`), pretrained for a fifth of
the time; the letters that the probe reads from the best layer chose.
"""
OF_COSTS = """\
Times are in updates of the reference, measured in turns with it. Preparation comes before the first update and counts
as training. FLOPs are those of forward and backward, teachers included. Memory is that of the whole process. Codebook
use is the perplexity of codes in the last line of the log.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def show_error(runs: Sequence[Run], labels: str) -> str:
    """The CER of a method: with its interval for one seed, with all seeds for several."""
    found = [run.finetunings[labels].cer for run in runs if labels in run.finetunings]
    if not found:
        return ""
    if len(found) == 1:
        return found[0].show()
    return f"{100 * fmean(cer.value for cer in found):.1f} ({', '.join(f'{100 * cer.value:.1f}' for cer in found)})"


def show_ratio(runs: Sequence[Run], scratch: Sequence[Run], labels: str) -> str:
    """Errors over those from scratch, with an interval over utterances and seeds."""
    sides = [
        [run.finetunings[labels].evaluation for run in side if labels in run.finetunings] for side in (scratch, runs)
    ]
    if not all(sides) or runs is scratch:
        return ""
    return compare_evaluations(*sides)["characters"].ratio.show(1, 2)


def error_table(runs: Runs) -> str:
    head = ["objective", "encoder", "updates"]
    for labels in runs.labels:
        head += [f"CER %, `{labels}`", "errors over scratch"]
    rows = []
    for name, own in runs.by_error():
        row = [name, own[0].difference or "the same", str(own[0].updates or "")]
        for labels in runs.labels:
            row += [show_error(own, labels), show_ratio(own, runs.rows.get(SCRATCH, ()), labels)]
        rows.append(row)
    return table(head, rows)


def layer_table(runs: Runs) -> str:
    """The best layer of each measure that the corpus can answer, and which it is."""
    rows = []
    everything = [layer for _, layers in (*runs.by_letters(), *runs.baselines.items()) for layer in layers]
    measures = [measure for measure in MEASURES if any(measure in layer for layer in everything)]
    for name, layers in (*runs.by_letters(), *runs.baselines.items()):
        found = {measure: best_layer(layers, measure) for measure in measures}
        values = ("" if n is None else f"{100 * layers[n][measure]:.1f} ({n})" for measure, n in found.items())
        rows.append([name, *values])
    return table(["features", *(HEADS[measure] for measure in measures)], rows)


def describe_probes(probes: dict[str, Any]) -> str:
    """Say what the numbers of the layers are."""
    letters, voices = probes["letters"], probes["voices"]
    chances = [f"{HEADS[name].removesuffix(', %')} {100 * value:.0f}" for name, value in voices["chance"].items()]
    text = OF_LAYERS.format(
        **letters | {"manifest": Path(letters["manifest"]).name, "chance": 100 * letters["chance"]},
        utterances=voices["utterances"],
        chances=", ".join(chances),
    )
    return text + (OF_SEVERAL_LANGUAGES if "voice_new_language" in voices["chance"] else "")


def cost_table(runs: Runs, costs: dict[str, Cost]) -> str:
    rows = []
    for name, cost in costs.items():
        values = (cost.update_ratio, cost.prepare_updates, cost.gflop_per_second, cost.peak_mib)
        use = runs.rows[name][0].code_use if name in runs.rows else {}
        rows.append(
            [
                name,
                *(f"{value:.{digits}f}" for value, digits in zip(values, (2, 0, 2, 0), strict=True)),
                ", ".join(f"{metric.replace('_', ' ')} {value:.0f}" for metric, value in use.items()),
            ]
        )
    head = ["objective", "time of an update", "preparation", "GFLOP a second of audio", "peak memory, MiB"]
    return table([*head, "codebook use at the end"], rows)


def format_page(
    runs: Runs, costs: dict[str, Cost], by_hand: str, pictures: Sequence[str], recipe: str, trials: str
) -> str:
    updates = runs.rows[REFERENCE][0].updates if REFERENCE in runs.rows else "as many"
    finetuning = f" for {runs.finetuning_updates} updates" if runs.finetuning_updates else ""
    parts = [
        INTRODUCTION.format(by_hand=BY_HAND.removeprefix("## "), recipe=recipe, updates=updates, finetuning=finetuning)
    ]
    if by_hand:
        parts.append(f"{BY_HAND}\n\n{by_hand}\n")
    rates = ", ".join(f"{rate} on `{labels}`" for labels, rate in runs.rates.items())
    parts += [
        f"## Errors\n\n{error_table(runs)}",
        OF_ERRORS.format(rates=rates or "not known yet"),
        *pictures[1:],
        f"## What the layers know\n\n{layer_table(runs)}",
        *([describe_probes(runs.probes)] if runs.probes else []),
        *pictures[:1],
        f"## Costs\n\n{cost_table(runs, costs)}",
        OF_COSTS,
    ]
    if trials:
        parts.append(f"## Search\n\n{OF_SEARCH}\n{trials}")
    if runs.failed:
        failed = "\n".join(f"* {name}: {what}" for name, what in runs.failed.items())
        parts.append(f"## Failed\n\n{failed}\n")
    return "\n".join(parts)


def kept_section(page: Path) -> str:
    """What was written by hand into the page that is there."""
    if not page.exists():
        return ""
    found = re.search(rf"^{re.escape(BY_HAND)}\n(.*?)(?=^## |\Z)", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def write_page(out: Path, page: Path, first_seed: int) -> None:
    runs = read_runs(out, objective_names(), first_seed)
    pictures = []
    folder = page.parent / "curves"
    folder.mkdir(parents=True, exist_ok=True)
    for draw, name, text in (
        (draw_layers, "objectives_layers", "What each layer knows: a dot a layer, the darker the higher"),
        (
            draw_errors,
            "objectives_errors",
            "Character error rate on dev against seconds of training; the best in color",
        ),
    ):
        pictures.append(f"![{text}](curves/{name}.svg)\n" if draw(runs, folder / f"{name}.svg") else "")
    recipe = os.path.relpath(RECIPE, page.parent) + os.sep
    trials = out / "search" / "trials.md"
    text = format_page(
        runs,
        read_costs(out / "costs.tsv"),
        kept_section(page),
        pictures,
        recipe,
        trials.read_text("utf-8") if trials.exists() else "",
    )
    write_text_file(page, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("page")
    page.add_argument("out", type=Path)
    page.add_argument("page", type=Path)
    page.add_argument("seed", type=int)
    rate = commands.add_parser("rate")
    rate.add_argument("out", type=Path)
    rate.add_argument("labels")
    rate.add_argument("seed", type=int)
    given = parser.parse_args()
    with exit_on_error():
        if given.command == "page":
            write_page(given.out, given.page, given.seed)
        else:
            rate = find_rate(given.out, given.labels, given.seed)
            if rate is None:
                raise ConfigError(f"{given.out}: expected a finished fine-tuning from scratch on {given.labels}")
            print(rate)


if __name__ == "__main__":
    main()
