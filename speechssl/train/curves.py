"""Reference curves: what earlier runs of a configuration gave, so that a run can be told from a healthy one."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from speechssl.errors import TrainingError
from speechssl.files import write_text_file
from speechssl.train.log import read_log

_HEAD = ["split", "metric", "step"]
_DEVIATIONS = 5  # of few runs, whose own deviation is not well known
_LEAST = 0.02  # of the mean: the band of runs that happen to agree

Curves = dict[tuple[str, str, int], tuple[float, ...]]
"""What each run had, by (split, metric, step)."""


def read_curves(path: Path) -> Curves:
    """Read curves that ``write_curves`` wrote.

    Raises:
        TrainingError: the file is missing or something else.
    """
    curves: Curves = {}
    try:
        head, *lines = path.read_text("utf-8").splitlines()
        for line in lines:
            split, metric, step, *runs = line.split("\t")
            curves[split, metric, int(step)] = tuple(map(float, runs))
        if head.split("\t")[:3] != _HEAD or not curves or min(map(len, curves.values())) < 2:
            raise ValueError
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise TrainingError(f"{path}: expected curves of several runs, as speechssl curves writes them") from None
    return curves


def healthy_band(runs: Sequence[float]) -> tuple[float, float]:
    """Where a healthy run lies: five deviations around the mean of earlier runs, and at least 2 % of it."""
    mean = fmean(runs)
    margin = max(_DEVIATIONS * stdev(runs), _LEAST * abs(mean))
    return mean - margin, mean + margin


def find_deviations(path: Path, run: Path) -> list[str]:
    """Compare the log of a run with curves: a line where a metric leaves the band, none until it is back.

    Raises:
        TrainingError: the curves or the log cannot be read, or the run has another length, and so another schedule.
    """
    curves = read_curves(path)
    num_steps = max(step for _, _, step in curves)
    records = _read_records(run)
    if records[-1]["step"] > num_steps:
        raise TrainingError(f"{run}: expected a run of {num_steps} updates as in {path}, found more")
    found: list[str] = []
    was_inside: dict[tuple[str, str], bool] = {}
    for record in records:
        split, step = record["split"], record["step"]
        for name, value in record.items():
            if (split, name, step) not in curves:
                continue
            low, high = healthy_band(curves[split, name, step])
            is_inside = low <= value <= high
            if not is_inside and was_inside.get((split, name), True):
                found.append(
                    f"{split} {name.replace('_', ' ')} {value:.4g} at step {step} lies outside "
                    f"{low:.4g} to {high:.4g}, where the runs of {path} were"
                )
            was_inside[split, name] = is_inside
    return found


def write_curves(path: Path, runs: Sequence[Path], metrics: Sequence[str]) -> int:
    """Collect metrics from the logs of finished runs into a table with tabs, a column a run.

    Returns:
        The number of rows.

    Raises:
        TrainingError: a run has no log or none of the metrics, or its steps are not those of the first.
    """
    tables = [
        {
            (record["split"], metric, record["step"]): record[metric]
            for record in _read_records(run)
            for metric in metrics
            if metric in record
        }
        for run in runs
    ]
    for run, table in zip(runs, tables, strict=True):
        if table.keys() != tables[0].keys():
            raise TrainingError(f"{run}: expected a log of the same steps and metrics as {runs[0]}")
    if not tables[0]:
        raise TrainingError(f"{runs[0]}: expected a log with {', '.join(metrics)}, found none of them")
    lines = [[*_HEAD, *(f"run_{number}" for number in range(1, len(runs) + 1))]]
    lines += [[*map(str, key), *(f"{table[key]:.5g}" for table in tables)] for key in sorted(tables[0])]
    write_text_file(path, "".join("\t".join(line) + "\n" for line in lines))
    return len(tables[0])


def _read_records(run: Path) -> list[dict[str, Any]]:
    records = read_log(run)
    if not records:
        raise TrainingError(f"{run}: expected a training run with a log, found none")
    return records
