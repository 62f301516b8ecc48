"""Draw the curves of a recipe's reference runs, as `speechssl curves --output` wrote them, as one SVG picture.

    python tools/draw_curves.py recipes/prompts/curves/pretrain.tsv:hidden_loss \
        recipes/prompts/curves/finetune.tsv:cer -o recipes/prompts/curves/curves.svg

One panel a FILE:METRIC, a line a run and split. Needs matplotlib (the extra dev).
"""

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLORS = {"train": "tab:gray", "dev": "tab:blue"}


def read_runs(file: Path, metric: str) -> dict[str, tuple[list[int], list[list[float]]]]:
    """Return by split the steps, and for each step the values of the runs."""
    found: dict[str, tuple[list[int], list[list[float]]]] = defaultdict(lambda: ([], []))
    for line in file.read_text("utf-8").splitlines()[1:]:
        split, name, step, *values = line.split("\t")
        if name == metric:
            found[split][0].append(int(step))
            found[split][1].append([float(value) for value in values])
    return dict(found)


def draw(axes: Axes, file: Path, metric: str) -> None:
    for split, (steps, values) in read_runs(file, metric).items():
        for number, run in enumerate(zip(*values, strict=True)):
            label = f"{split}, {len(values[0])} seeds" if number == 0 else None
            axes.plot(steps, run, color=COLORS.get(split), linewidth=1, label=label)
    axes.set_title(f"{file.stem}: {metric.replace('_', ' ')}")
    axes.set_xlabel("updates")
    axes.set_ylim(bottom=0 if metric in ("cer", "wer") else None)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panels", nargs="+", metavar="FILE.tsv:METRIC")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.svg")
    arguments = parser.parse_args()
    plt.rcParams |= {"svg.hashsalt": "speechssl", "font.size": 9}  # the same picture each time
    figure, panels = plt.subplots(1, len(arguments.panels), figsize=(4 * len(arguments.panels), 2.8), squeeze=False)
    for axes, panel in zip(panels[0], arguments.panels, strict=True):
        file, _, metric = panel.rpartition(":")
        draw(axes, Path(file), metric)
    figure.tight_layout()
    figure.savefig(arguments.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
