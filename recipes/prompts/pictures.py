"""The pictures of the comparison of objectives. They need matplotlib (the extra dev)."""

from pathlib import Path

import matplotlib
from budget import REFERENCE
from runs import SCRATCH, Layers, Runs, mean_error

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANELS = {
    "letters": "letters read, %",
    "abx": "ABX error of letters, %",
    "language_one_voice": "language of one voice, %",
    "voice_new_language": "voice in a new language, %",
}
NUM_COLORED = 6  # best rows of the curves, which have a color as the reference has; the others are gray


def draw_layers(runs: Runs, file: Path) -> bool:
    """Draw what each layer knows: a dot a layer, the darker the higher. Return whether there was anything to draw."""
    rows: list[tuple[str, Layers]] = [*runs.by_letters(), *runs.baselines.items()]
    measures = [measure for measure in PANELS if any(measure in layer for _, layers in rows for layer in layers)]
    if not rows or not measures:
        return False
    figure, panels = new_figure(len(measures), height=0.9 + 0.24 * len(rows), width=2.6, left=1.6)
    for axes, measure in zip(panels, measures, strict=True):
        for position, (_, layers) in enumerate(rows):
            values = [100 * layer[measure] for layer in layers if measure in layer]
            shades = [0.25 + 0.75 * number / max(len(values) - 1, 1) for number in range(len(values))]
            axes.plot([min(values), max(values)], [position] * 2, color="0.85", linewidth=1, zorder=1)
            axes.scatter(values, [position] * len(values), c=shades, cmap="Blues", vmin=0, vmax=1, s=18, zorder=2)
        axes.set_title(PANELS[measure])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", color="0.9", linewidth=0.5)
        axes.tick_params(left=False)
    panels[0].set_yticks(range(len(rows)), [name.partition(",")[0] for name, _ in rows])
    save(figure, file)
    return True


def draw_errors(runs: Runs, file: Path) -> bool:
    """Draw dev CER against seconds of training, pretraining included. Return whether there was anything to draw."""
    if not runs.labels:
        return False
    figure, panels = new_figure(len(runs.labels), height=3.6, width=4.2, left=0.4)
    best = [name for name, _ in runs.by_error() if name not in (SCRATCH, REFERENCE)][:NUM_COLORED]
    colors = {name: f"C{number}" for number, name in enumerate([REFERENCE, *best])} | {SCRATCH: "black"}
    for axes, labels in zip(panels, runs.labels, strict=True):
        ranked = sorted(runs.rows, key=lambda name: mean_error(runs.rows[name], labels))
        for name in reversed(ranked):
            finetuning = runs.rows[name][0].finetunings.get(labels)
            if finetuning is None:
                continue
            begin = 0 if name == SCRATCH else runs.pretraining_seconds()
            update_seconds = runs.finetuning_seconds(name, labels)
            times = [begin + step * update_seconds for step, _ in finetuning.curve]
            errors = [100 * error for _, error in finetuning.curve]
            style = "--" if name == SCRATCH else "-"
            is_colored = name in colors
            label = name if is_colored else "_"  # a label that the legend leaves out
            axes.plot(
                times, errors, style, color=colors.get(name, "0.8"), linewidth=1.3, label=label, zorder=1 + is_colored
            )
        axes.set_title(f"fine-tuned on {labels}")
        axes.set_xlabel("seconds of training")
        axes.set_xlim(left=0)
    panels[0].set_ylabel("dev CER, %")
    handles, names = panels[-1].get_legend_handles_labels()
    panels[-1].legend(
        handles[::-1], names[::-1], frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2
    )
    save(figure, file)
    return True


def new_figure(num_panels: int, height: float, width: float, left: float) -> tuple[Figure, list[Axes]]:
    plt.rcParams |= {"svg.hashsalt": "speechssl", "font.size": 9, "axes.titlesize": 9}  # the same picture each time
    figure, panels = plt.subplots(
        1, num_panels, figsize=(left + width * num_panels, height), sharey=True, squeeze=False, layout="constrained"
    )
    for axes in panels[0]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(panels[0])


def save(figure: Figure, file: Path) -> None:
    """Write it under another name first: two rows may finish at once."""
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, format="svg", metadata={"Date": None}, bbox_inches="tight")
    partial.replace(file)
    plt.close(figure)
