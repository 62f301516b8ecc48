"""The charts of a report: each metric of the log over all runs, before the bands of reference runs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from speechssl.report.run import Run
from speechssl.report.svg import Chart, Line
from speechssl.train.curves import Curves, healthy_band
from speechssl.train.pretrain import PretrainConfig
from speechssl.train.throughput import COMPUTED, DATA, METRICS, MFU, RANKS, SPEED

_LAST = ("silence", "level", "level_deviation", "clip_scale", "gradient_norm", "learning_rate", *METRICS)
_TITLES = {
    "wer": "word error rate",
    "cer": "character error rate",
    SPEED: "seconds of audio a second",
    COMPUTED: "GFLOP/s",
    MFU: "MFU",
}
_PERCENT = (
    *("accuracy", "agreement", "wer", "cer", "left_out", "unused", "codebook_use", "silence", "nothing_said"),
    *(DATA, RANKS, MFU),
)
_MEANINGS = {
    "loss": "what training minimizes: the weighted sum of its terms",
    "prediction": "how hard it is to tell the right target from the others",
    "contrastive": "how hard it is to tell the right target from the distractors",
    "accuracy": "how often the right target is chosen",
    "code_perplexity": "how many codes are in use, all codebooks together",
    "prob_perplexity": "how many codes would be in use if each were drawn by its probability",
    "left_out": "distractors that equal the target; a high share means few codes",
    "unused": "the share of the codebooks that is not in use",
    "penalty": "the energy of the feature encoder's output, which is kept small",
    "hidden_loss": "the prediction of frames that the context network does not see",
    "hidden_accuracy": "the right target at frames that the context network does not see",
    "visible_accuracy": "the right target at frames that it sees",
    "target_perplexity": "how many codes the targets use",
    "prediction_perplexity": "how many codes the predictions use",
    "target_deviation": "how much the targets vary; near 0 they have collapsed",
    "prediction_deviation": "how much the predictions vary; near 0 they have collapsed",
    "ctc": "the loss of an utterance, which grows with its length",
    "loss_per_label": "the CTC loss over the letters of the reference",
    "consistency": "how far two views of the same recording are apart",
    "wer": "words that are wrong, missing or too many, over the words of the reference",
    "cer": "letters that are wrong, missing or too many, over those of the reference",
    "gradient_norm": "of the last update before each line of the log",
    "clip_scale": "by what gradients were multiplied to be no longer than the limit, on average",
    "silence": "the share of the audio that is silence, in one update before each line of the log",
    "level": "the power of recordings in dB, 0 being full scale, in one update before each line of the log",
    "level_deviation": "how much the level varies within a recording, in dB: speech 10 and more, steady noise below 1",
    "nothing_said": "the share of the dev set in which the model says nothing",
    "learning_rate": "of the last update before each line of the log",
    SPEED: "audio that training takes in, evaluations and saves included",
    DATA: "the share of the time in which there was no batch to compute, the mean over the processes",
    RANKS: "the share of the time in which a process waited for the batches of others, the mean over the processes",
    COMPUTED: "matrix products and convolutions, forward and backward, by all processes",
    MFU: "these, as a share of what the GPUs can do at most (model FLOPs utilization)",
}


def meaning_of(metric: str) -> str:
    """Return in a few words what a metric of the log is, or nothing."""
    return _MEANINGS.get(metric.rpartition(".")[2], "")


def make_charts(runs: Sequence[Run], references: Mapping[Path, Curves]) -> dict[str, Chart]:
    """Make a chart for each metric of runs of one stage, in the order of the log."""
    metrics = dict.fromkeys(name for run in runs for line in run.log for name in line if name not in ("step", "split"))
    ordered = [name for name in metrics if name not in _LAST] + [name for name in _LAST if name in metrics]
    charts = {}
    for metric in ordered:
        lines = [line for style, run in enumerate(runs) for line in _lines(run, metric, style, is_alone=len(runs) == 1)]
        if lines:
            charts[metric] = Chart(
                title=title_of(metric),
                lines=lines,
                bands=[band for curves in references.values() for band in _bands(curves, metric)],
                levels=_levels(runs, metric),
                is_percent=metric.rpartition(".")[2].endswith(_PERCENT),
                from_zero=metric.rpartition(".")[2].endswith((*_PERCENT, *METRICS, "learning_rate", "perplexity")),
            )
    return charts


def title_of(metric: str) -> str:
    """Return a metric's name in words."""
    stream, dot, name = metric.rpartition(".")
    return f"{stream}{': ' if dot else ''}{_TITLES.get(name, name.replace('_', ' '))}"


def fitting(references: Mapping[Path, Curves], runs: Iterable[Run]) -> dict[Path, Curves]:
    """Return the references as long as one of the runs: another length has another learning rate at each step."""
    lengths = {run.num_steps for run in runs}
    return {path: curves for path, curves in references.items() if max(step for *_, step in curves) in lengths}


def _lines(run: Run, metric: str, style: int, *, is_alone: bool) -> Iterable[Line]:
    for split in ("train", "dev"):
        if points := run.points(split, metric):
            yield Line(split if is_alone else f"{run.name} {split}", points, style, is_strong=split == "dev")


def _bands(curves: Curves, metric: str) -> Iterable[Sequence[tuple[float, float, float]]]:
    for split in ("train", "dev"):
        steps = sorted(step for found, name, step in curves if (found, name) == (split, metric))
        if len(steps) > 1:
            yield [(step, *healthy_band(curves[split, metric, step])) for step in steps]


def _levels(runs: Sequence[Run], metric: str) -> list[tuple[float, str]]:
    """What a value is to be compared with, if it is the same for all runs that have it."""
    levels = {_level(run, metric) for run in runs if any(metric in line for line in run.log)}
    found = levels.pop()
    return [] if levels or found is None else [found]


def _level(run: Run, metric: str) -> tuple[float, str] | None:
    limit = run.config.optimizer.max_gradient_norm
    if metric == "gradient_norm" and limit is not None:
        return limit, f"clipped above {limit:g}"
    if isinstance(run.config, PretrainConfig) and metric in run.config.objective.chance:
        return run.config.objective.chance[metric], "chance"
    return None
