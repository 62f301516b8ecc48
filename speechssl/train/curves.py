"""Reference curves: what earlier runs of a configuration gave, so that a run can be told from a healthy one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from speechssl.errors import TrainingError
from speechssl.files import write_text_file
from speechssl.train.log import read_log

_HEAD = ("split", "metric", "step")
_DEVIATIONS = 5  # of few runs, whose own deviation is not well known
_LEAST = 0.02  # of the mean: the band of runs that happen to agree


@dataclass(frozen=True)
class ReferenceCurves:
    """Metrics of several runs of one configuration, with different seeds.

    Attributes:
        path: The file they come from.
        values: What each run had, by (split, metric, step).
        num_steps: Updates of each run.
    """

    path: Path
    values: Mapping[tuple[str, str, int], tuple[float, ...]]
    num_steps: int

    @classmethod
    def read(cls, path: Path) -> "ReferenceCurves":
        """Read curves that ``write_curves`` wrote.

        Raises:
            TrainingError: the file is missing or something else.
        """
        values: dict[tuple[str, str, int], tuple[float, ...]] = {}
        try:
            head, *lines = path.read_text("utf-8").splitlines()
            if tuple(head.split("\t")[:3]) != _HEAD:
                raise ValueError
            for line in lines:
                split, metric, step, *runs = line.split("\t")
                values[split, metric, int(step)] = tuple(map(float, runs))
            num_steps = max(step for _, _, step in values)
        except OSError as error:
            raise TrainingError(f"{path}: {error.strerror or error}") from None
        except ValueError:
            raise TrainingError(f"{path}: expected curves of several runs, as speechssl curves writes them") from None
        return cls(path, values, num_steps)

    def band(self, split: str, metric: str, step: int) -> tuple[float, float] | None:
        """Where a metric of a healthy run lies: five deviations around the runs' mean, and at least 2 % of it."""
        runs = self.values.get((split, metric, step))
        if not runs or len(runs) < 2:
            return None
        mean = fmean(runs)
        margin = max(_DEVIATIONS * stdev(runs), _LEAST * abs(mean))
        return mean - margin, mean + margin


def find_deviations(path: Path, run: Path) -> list[str]:
    """Compare the log of a run with curves: a line where a metric leaves the band, none until it is back.

    Raises:
        TrainingError: the curves or the log cannot be read, or the run has another length, and so another schedule.
    """
    curves = ReferenceCurves.read(path)
    records = read_log(run)
    if not records:
        raise TrainingError(f"{run}: expected a training run with a log, found none")
    if records[-1]["step"] > curves.num_steps:
        raise TrainingError(f"{run}: expected a run of {curves.num_steps} updates as in {path}, found more")
    found: list[str] = []
    outside: set[tuple[str, str]] = set()
    for record in records:
        split, step = record["split"], record["step"]
        for name, value in record.items():
            band = curves.band(split, name, step)
            if band is None:
                continue
            is_inside = band[0] <= value <= band[1]
            if not is_inside and (split, name) not in outside:
                found.append(
                    f"{split} {name.replace('_', ' ')} {value:.4g} at step {step} lies outside "
                    f"{band[0]:.4g} to {band[1]:.4g}, where the runs of {path} were"
                )
            (outside.discard if is_inside else outside.add)((split, name))
    return found


def write_curves(path: Path, runs: Sequence[Path], metrics: Sequence[str]) -> int:
    """Collect curves from the logs of finished runs, a column a run.

    Args:
        path: The file to write: a table with tabs.
        runs: The folders of the runs, which logged at the same steps.
        metrics: What to keep; what a log lacks is left out.

    Returns:
        The number of rows.

    Raises:
        TrainingError: a run has no log or none of the metrics, or its steps are not those of the first.
    """
    tables = []
    for run in runs:
        records = read_log(run)
        if not records:
            raise TrainingError(f"{run}: expected a training run with a log, found none")
        tables.append(
            {
                (record["split"], metric, record["step"]): record[metric]
                for record in records
                for metric in metrics
                if metric in record
            }
        )
    for run, table in zip(runs, tables, strict=True):
        if table.keys() != tables[0].keys():
            raise TrainingError(f"{run}: expected a log of the same steps and metrics as {runs[0]}")
    if not tables[0]:
        raise TrainingError(f"{runs[0]}: expected a log with {', '.join(metrics)}, found none of them")
    rows = [
        "\t".join([*map(str, key), *(f"{table[key]:.5g}" for table in tables)])
        for key in sorted(tables[0], key=lambda key: (key[0], key[1], key[2]))
    ]
    head = "\t".join([*_HEAD, *(f"run_{number}" for number in range(1, len(runs) + 1))])
    write_text_file(path, "\n".join([head, *rows]) + "\n")
    return len(rows)
