"""What the runs of objectives.sh left: scores, curves, probes, costs, by row and seed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from budget import REFERENCE

from speechssl.config import differences
from speechssl.data.audio import SAMPLE_RATE
from speechssl.errors import ConfigError
from speechssl.evaluate.compare import SavedEvaluation, read_evaluation
from speechssl.model.encoder import EncoderConfig
from speechssl.scoring.bootstrap import Interval
from speechssl.train.log import read_log

SCRATCH = "scratch"
LABELS = ("train_5min", "train_10min", "train_1h", "train")  # of a corpus, in the order of the columns
MEASURES = {  # of the probes, and whether less is better
    "letters": False,
    "abx": True,
    "language_one_voice": False,
    "voice_new_language": False,
    "language": False,
    "voice": False,
}

Layers = list[dict[str, float]]


@dataclass(frozen=True)
class Finetuning:
    """A fine-tuning that was finished and scored.

    Attributes:
        evaluation: On the test set.
        cer: The same with its interval.
        curve: Updates, and the dev CER after them.
        update_seconds: Of the clock, of this run.
    """

    evaluation: SavedEvaluation
    cer: Interval
    curve: tuple[tuple[int, float], ...]
    update_seconds: float


@dataclass(frozen=True)
class Run:
    """A row with one seed, as far as it is finished.

    Attributes:
        updates: Of pretraining; None from scratch.
        seconds: That pretraining took by the clock.
        difference: What is unlike the reference's encoder, in words.
        code_use: The perplexities in the last line of the log, by name.
        layers: What the probes found.
        finetunings: By labels.
    """

    updates: int | None = None
    seconds: float = 0.0
    difference: str = ""
    code_use: dict[str, float] = field(default_factory=dict)
    layers: Layers = field(default_factory=list)
    finetunings: dict[str, Finetuning] = field(default_factory=dict)


@dataclass(frozen=True)
class Runs:
    """Everything that is finished.

    Attributes:
        rows: By objective, or `SCRATCH`, its runs; the first has the seed that all rows have.
        baselines: The layers of what no objective trained.
        probes: What the probes were made of, as `speechssl probe` says; empty if there are none.
        rates: At which scratch learned, by labels.
        failed: What went wrong, by folder.
    """

    rows: dict[str, list[Run]]
    baselines: dict[str, Layers]
    probes: dict[str, Any]
    rates: dict[str, str]
    failed: dict[str, str]

    @property
    def labels(self) -> list[str]:
        """The labels that any row was fine-tuned on."""
        found = {labels for runs in self.rows.values() for run in runs for labels in run.finetunings}
        return [labels for labels in LABELS if labels in found]

    @property
    def finetuning_updates(self) -> int:
        """The updates of the longest fine-tuning; 0 if none is finished."""
        found = [run for runs in self.rows.values() for one in runs for run in one.finetunings.values()]
        return max((run.curve[-1][0] for run in found), default=0)

    def by_error(self) -> list[tuple[str, list[Run]]]:
        """Return the rows, the lowest CER first, by the last of the labels that a row has."""

        def rank(item: tuple[str, list[Run]]) -> tuple[float, ...]:
            return tuple(mean_error(item[1], labels) for labels in reversed(self.labels))

        return sorted(self.rows.items(), key=rank)

    def by_letters(self) -> list[tuple[str, Layers]]:
        """Return the probed rows of the first seed, the most letters first."""
        found = [(name, runs[0].layers) for name, runs in self.rows.items() if runs[0].layers]
        return sorted(found, key=lambda item: -best_value(item[1], "letters"))

    def finetuning_seconds(self, name: str, labels: str) -> float:
        """Return the median time of a fine-tuning update of the encoders that are alike."""
        alike = [
            run.finetunings[labels].update_seconds
            for runs in self.rows.values()
            for run in runs
            if labels in run.finetunings and run.difference == self.rows[name][0].difference
        ]
        return median(alike)

    def pretraining_seconds(self) -> float:
        """Return the median time of a pretraining, which is to be the same for all."""
        return median([run.seconds for runs in self.rows.values() for run in runs if run.updates] or [0.0])


def mean_error(runs: Sequence[Run], labels: str) -> float:
    """Return the mean CER over seeds; infinity if no seed is scored yet."""
    values = [run.finetunings[labels].cer.value for run in runs if labels in run.finetunings]
    return fmean(values) if values else float("inf")


def best_layer(layers: Layers, measure: str) -> int | None:
    """Return the layer with the best value; None if it was not measured."""
    values = {number: layer[measure] for number, layer in enumerate(layers) if measure in layer}
    if not values:
        return None
    sign = 1 if MEASURES[measure] else -1
    return min(values, key=lambda number: sign * values[number])


def best_value(layers: Layers, measure: str) -> float:
    """Return the best value of any layer; infinity with the sign of the worst if it was not measured."""
    found = best_layer(layers, measure)
    return layers[found][measure] if found is not None else float("inf") * (1 if MEASURES[measure] else -1)


def read_runs(out: Path, names: Sequence[str], first_seed: int) -> Runs:
    """Read what is finished of these objectives and of scratch.

    Raises:
        SpeechSSLError: a file is malformed.
    """
    reference = out / f"{REFERENCE}_{first_seed}" / "pretrain" / "run.json"
    reference_encoder = _read(reference)["config"]["encoder"] if reference.exists() else None
    rows: dict[str, list[Run]] = {}
    for name in names:
        runs = [_read_run(folder, reference_encoder) for folder in _seeds(out, name, first_seed)]
        if found := [run for run in runs if run.updates is not None]:
            rows[name] = found
    rates = {labels: rate for labels in LABELS if (rate := find_rate(out, labels, first_seed))}
    scratch = []
    for folder in _seeds(out, SCRATCH, first_seed):
        runs = {labels: _read_finetuning(folder / f"{labels}_{rate}") for labels, rate in rates.items()}
        scratch.append(Run(finetunings={labels: run for labels, run in runs.items() if run is not None}))
    if any(run.finetunings for run in scratch):
        rows[SCRATCH] = [run for run in scratch if run.finetunings]
    probes = _read(out / "baselines.json") if (out / "baselines.json").exists() else {}
    failed = {
        str(file.parent.relative_to(out)): file.read_text("utf-8").strip() for file in sorted(out.glob("**/failed"))
    }
    baselines = {row["features"]: row["layers"] for row in probes.get("rows", [])[:-1]}  # the last is the reference
    return Runs(rows, baselines, probes, rates, failed)


def find_rate(out: Path, labels: str, seed: int) -> str | None:
    """Return the learning rate at which fresh weights had the lowest dev CER; None if no run is finished."""
    found = {}
    for folder in (out / f"{SCRATCH}_{seed}").glob(f"{labels}_*"):
        name, _, rate = folder.name.rpartition("_")
        if name == labels and (folder / "finished").exists():
            found[rate] = min(line["cer"] for line in read_log(folder) if line["split"] == "dev")
    return min(sorted(found), key=lambda rate: found[rate]) if found else None


def _seeds(out: Path, name: str, first_seed: int) -> Iterator[Path]:
    """Yield the folders of a row, the first seed's first."""
    parts = [(folder.name.rpartition("_"), folder) for folder in out.glob(f"{name}_*") if folder.is_dir()]
    numbers = {int(seed): folder for (of, _, seed), folder in parts if of == name and seed.isdecimal()}
    for seed in sorted(numbers, key=lambda seed: (seed != first_seed, seed)):
        yield numbers[seed]


def _read_run(folder: Path, reference_encoder: dict[str, Any] | None) -> Run:
    pretraining = folder / "pretrain"
    if not (pretraining / "finished").exists():
        return Run()
    config = _read(pretraining / "run.json")["config"]
    log = read_log(pretraining)
    last = {name: value for line in log[-2:] for name, value in line.items()}
    probes = folder / "probes.json"
    finetunings = {labels: _read_finetuning(folder / f"finetune_{labels}") for labels in LABELS}
    return Run(
        updates=config["trainer"]["num_steps"],
        seconds=float((pretraining / "seconds").read_text("utf-8")),
        difference=describe_difference(reference_encoder, config["encoder"]) if reference_encoder else "",
        code_use={name: value for name, value in last.items() if "perplexity" in name},
        layers=_read(probes)["rows"][0]["layers"] if probes.exists() else [],
        finetunings={labels: run for labels, run in finetunings.items() if run is not None},
    )


def _read_finetuning(folder: Path) -> Finetuning | None:
    if not (folder / "scores.json").exists():
        return None
    log = read_log(folder)
    [evaluation] = _read(folder / "scores.json")["evaluations"]
    return Finetuning(
        read_evaluation(folder / "scores.json"),
        Interval(**evaluation["cer"]),
        tuple((line["step"], line["cer"]) for line in log if line["split"] == "dev"),
        float((folder / "seconds").read_text("utf-8")) / log[-1]["step"],
    )


def describe_difference(reference: dict[str, Any], encoder: dict[str, Any]) -> str:
    """Say in which ways an encoder is unlike the reference's."""
    found = differences(reference, encoder)
    hops = [
        EncoderConfig.from_dict(config, "encoder").feature_encoder.geometry.hop_samples
        for config in (reference, encoder)
    ]
    parts = [f"a frame every {1000 * hops[1] / SAMPLE_RATE:g} ms"] if hops[0] != hops[1] else []
    kinds = [config["context"]["kind"] for config in (reference, encoder)]
    if kinds[0] != kinds[1]:
        parts.append(f"context `{kinds[1]}`")
    else:
        parts += [f"`{name}={new}`" for name, (_, new) in found.items() if name.startswith("context.")]
    if not parts and found:
        parts = [f"`{name}={new}`" for name, (_, new) in found.items()]
    return ", ".join(parts)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: expected JSON of objectives.sh: {error}") from None
