"""What a report says of a run, gathered from its folder: settings, log, cost, warnings, scores."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from speechssl.config import default_values, differences
from speechssl.errors import ConfigError, SpeechSSLError, TrainingError
from speechssl.train.finetune import STAGE as FINETUNE
from speechssl.train.finetune import FinetuneConfig
from speechssl.train.health import WARNINGS_FILE
from speechssl.train.log import read_log, read_samples
from speechssl.train.pretrain import STAGE as PRETRAIN
from speechssl.train.pretrain import PretrainConfig
from speechssl.train.record import RunConfig, read_record
from speechssl.train.throughput import SPEED
from speechssl.train.unreadable import UNREADABLE_FILE
from speechssl.train.writers import RUN_FILE, read_lines

_CONFIGS: dict[str, type[RunConfig]] = {PRETRAIN: PretrainConfig, FINETUNE: FinetuneConfig}


@dataclass(frozen=True)
class Cost:
    """What a run took, measured by the times in its TensorBoard files: restarts count, pauses between them do not."""

    seconds: float
    audio_seconds: float  # that the updates saw, repetitions and padding included


@dataclass(frozen=True)
class Run:
    """A training run on disk."""

    name: str  # its folder, as short as tells it from the others
    folder: Path
    config: RunConfig
    record: dict[str, Any]  # run.json
    log: list[dict[str, Any]]

    @property
    def stage(self) -> str:
        """The command that trained it."""
        return str(self.record["stage"])

    @property
    def num_steps(self) -> int:
        """The updates that were planned."""
        return self.config.trainer.num_steps

    @property
    def best_metric(self) -> str | None:
        """The metric of the dev set that chooses the best checkpoint, lower being better; None: the latest is it."""
        if isinstance(self.config, FinetuneConfig):
            return self.config.best_metric
        return self.config.objective.best_metric if isinstance(self.config, PretrainConfig) else None

    @property
    def changed_settings(self) -> dict[str, tuple[Any, Any]]:
        """The settings that differ from the defaults, by dotted name, as (default, this run's)."""
        return differences(default_values(self.config), self.config.to_dict())

    @cached_property
    def warnings(self) -> list[dict[str, Any]]:
        """The lines of its warnings, oldest first."""
        file = self.folder / WARNINGS_FILE
        return [_parse(line, file) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    @cached_property
    def unreadable(self) -> list[dict[str, Any]]:
        """The utterances that could not be read, whose place others took, in the order in which they were found."""
        return read_lines(self.folder / UNREADABLE_FILE)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """What it said of a few utterances of the dev set at each evaluation, oldest first."""
        return read_samples(self.folder)

    @cached_property
    def evaluations(self) -> dict[Path, list[dict[str, Any]]]:
        """What ``speechssl evaluate --output`` wrote into its folder, by file."""
        found = {}
        for file in sorted(self.folder.glob("scores*.json")):
            try:
                found[file] = list(_parse(file.read_text("utf-8"), file)["evaluations"])
            except (KeyError, TypeError):
                raise ConfigError(f"{file}: expected scores by speechssl evaluate --output") from None
        return found

    @cached_property
    def cost(self) -> Cost | None:
        """What it took; None if its TensorBoard files are gone."""
        seconds = audio = 0.0
        files = sorted(self.folder.glob("tensorboard/events.*"))
        for file in files:  # one a start of the run
            events = list(EventFileLoader(str(file)).Load())  # type: ignore[no-untyped-call]
            if not events:  # for which the disk was too full
                continue
            seconds += events[-1].wall_time - events[0].wall_time
            speeds = [(events[0].wall_time, 0.0)]
            speeds += [
                (event.wall_time, value.tensor.float_val[0])
                for event in events
                for value in event.summary.value
                if value.tag == f"train/{SPEED}"
            ]
            audio += sum((now - before) * speed for (before, _), (now, speed) in pairwise(speeds))
        return Cost(seconds, audio) if files else None

    def points(self, split: str, metric: str) -> list[tuple[int, float]]:
        """The steps and the values of a metric of the log, those that are finite."""
        lines = [line for line in self.log if line["split"] == split and metric in line]
        return [(line["step"], line[metric]) for line in lines if math.isfinite(line[metric])]

    def best(self, metric: str) -> tuple[int, float] | None:
        """The step and the value of the lowest dev value of a metric."""
        return min(self.points("dev", metric), key=lambda point: point[::-1], default=None)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read what training runs left in their folders.

    Raises:
        TrainingError: a folder holds no run.
        ConfigError: its settings are not those of this version.
    """
    names = _short_names(folders)
    return [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    file = folder / RUN_FILE
    if not file.exists():
        raise TrainingError(f"{folder}: expected a training run with {RUN_FILE}, found none")
    stage = _parse(file.read_text("utf-8"), file).get("stage")
    if stage not in _CONFIGS:
        raise TrainingError(f"{file}: expected a run of {' or '.join(_CONFIGS)}, found {stage!r}")
    record, _ = read_record(file, _CONFIGS[stage], stage)
    log = read_log(folder)
    if not log:
        raise TrainingError(f"{folder}: expected a training run with a log, found none")
    return Run(name, folder, _CONFIGS[stage].from_dict(record["config"], str(file)), record, log)


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The folders without the beginning that all have in common, but never nothing."""
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise TrainingError("expected each run once, found one twice")
    common = Path(os.path.commonpath([folder.parent for folder in whole]))
    return [str(folder.relative_to(common)) for folder in whole]


def _parse(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise SpeechSSLError(f"{file}: expected JSON, found something else") from None
