"""Where the lines of a run's log go: each place behind the same interface."""

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from speechssl.errors import ConfigError
from speechssl.files import named_errors, write_text_file
from speechssl.terminal import print_status, status_bar
from speechssl.train.task import Sample
from speechssl.train.throughput import DATA, SPEED

LOG_FILE = "log.jsonl"
SAMPLES_FILE = "samples.jsonl"
RUN_FILE = "run.json"
_NOTABLE_WAITING = 0.1  # for data, of the time
WriterName = Literal["tensorboard", "wandb"]


@dataclass(frozen=True)
class LogStart:
    """What a log is begun with.

    Attributes:
        folder: Of the run.
        stage: Of the run.
        shown_metrics: Those that the console shows, in this order.
        chance: Metrics of a model that guesses.
        first_step: Updates that are done; what was logged of later ones has been undone.
        num_steps: Planned updates.
    """

    folder: Path
    stage: str
    shown_metrics: Sequence[str]
    chance: Mapping[str, float]
    first_step: int
    num_steps: int


class Writer:
    """A place for the log; what it has no use for it leaves out."""

    def advance(self) -> None:
        """Take note of an update."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a split after so many updates."""

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write what the model says of a few utterances."""

    def close(self) -> None:
        """Write whatever is left."""


class _FileWriter(Writer):
    """``log.jsonl`` and ``samples.jsonl``, in which lines of steps that were undone are deleted."""

    def __init__(self, start: LogStart) -> None:
        self._files: dict[Path, TextIO] = {}
        self._folder = start.folder
        for name in (LOG_FILE, SAMPLES_FILE):
            path = start.folder / name
            if path.exists():
                write_lines(path, [line for line in read_lines(path) if line["step"] <= start.first_step])

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._append(LOG_FILE, [{"step": step, "split": split, **metrics}])

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        self._append(SAMPLES_FILE, [{"step": step, **asdict(sample)} for sample in samples])

    def close(self) -> None:
        for path, file in self._files.items():
            with named_errors(path):  # after an error of writing, closing has the same
                file.close()

    def _append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        path = self._folder / name
        with named_errors(path):
            if path not in self._files:
                self._files[path] = path.open("a", encoding="utf-8")
            self._files[path].write("".join(map(_format_line, lines)))
            self._files[path].flush()  # a killed run must find here everything up to its checkpoint


class _ConsoleWriter(Writer):
    """A bar with the newest lines on a terminal, which each update moves; elsewhere a line for each of the log."""

    def __init__(self, start: LogStart) -> None:
        self._start, self._begin = start, time.monotonic()
        self._lines: dict[str, str] = {}  # the newest of each split
        self._stack = ExitStack()
        self._bar = self._stack.enter_context(status_bar(start.stage, start.num_steps, start.first_step))

    def advance(self) -> None:
        if self._bar:
            self._bar.advance()

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        start = self._start
        self._lines[split] = f"{start.stage} {split:5}  step {step}/{start.num_steps}  {self._describe(metrics)}"
        if self._bar:
            self._bar.show(self._lines.values())
        else:
            print_status(f"{self._lines[split]}  left {self._time_left(step)}")

    def close(self) -> None:
        self._stack.close()

    def _describe(self, metrics: Mapping[str, float]) -> str:
        shown = []
        for name in self._start.shown_metrics:
            if name in metrics:
                chance = f" (chance {_short(self._start.chance[name])})" if name in self._start.chance else ""
                shown.append(f"{name.replace('_', ' ')} {_short(metrics[name])}{chance}")
        if SPEED in metrics:
            shown.append(f"{metrics[SPEED]:.0f} s of audio/s")
        if metrics.get(DATA, 0) >= _NOTABLE_WAITING:
            shown.append(f"{metrics[DATA]:.0%} of the time waiting for data")
        return "  ".join(shown)

    def _time_left(self, step: int) -> str:
        done = step - self._start.first_step
        left = round((time.monotonic() - self._begin) / done * (self._start.num_steps - step))
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


class _TensorBoardWriter(Writer):
    """Scalars and texts in the folder ``tensorboard``; those of steps that were undone are hidden."""

    def __init__(self, start: LogStart) -> None:
        from speechssl.train.curve_file import CurveFile

        self._curves = CurveFile(start.folder / "tensorboard", start.first_step)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._curves.write(step, {f"{split}/{name}": value for name, value in metrics.items()})

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        for sample in samples:
            content = f"    {sample.reference}\n    {sample.hypothesis}"  # indented, Markdown leaves it as it is
            self._curves.write_text(step, f"transcripts/{sample.utterance}", content)

    def close(self) -> None:
        self._curves.close()


class _WandbWriter(Writer):
    """A run of Weights & Biases, which a resumed run goes on with; its environment variables say where (WANDB_PROJECT).

    Steps that were undone and done again are there twice: nothing that was sent can be taken back.

    Raises:
        ConfigError: the package is missing.
    """

    def __init__(self, start: LogStart) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                "trainer.writers: wandb needs the package wandb: pip install 'speechssl[wandb]'"
            ) from None
        self._wandb = wandb
        id_file = start.folder / "wandb" / "speechssl_run_id"
        if not start.first_step or not id_file.exists():
            write_text_file(id_file, secrets.token_hex(8))
        settings = start.folder / RUN_FILE
        self._run = wandb.init(
            dir=start.folder,
            id=id_file.read_text("utf-8"),
            resume="allow",
            name=os.environ.get("WANDB_NAME", start.folder.resolve().name),
            job_type=start.stage,
            config=json.loads(settings.read_text("utf-8"))["config"] if settings.exists() else None,
            settings={"console": "off"},  # what is printed is no business of others
        )
        self._run.define_metric("*", step_metric="step")  # its own only grow, and are one for each call

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **{f"{split}/{name}": value for name, value in metrics.items()}})

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        rows = [[sample.utterance, sample.reference, sample.hypothesis] for sample in samples]
        table = self._wandb.Table(columns=["utterance", "reference", "hypothesis"], data=rows)
        self._run.log({"step": step, "dev/transcripts": table})

    def close(self) -> None:
        self._run.finish()


def open_writers(names: Sequence[WriterName], start: LogStart) -> list[Writer]:
    """Open files, console and the writers of these names."""
    kinds = {"tensorboard": _TensorBoardWriter, "wandb": _WandbWriter}
    return [_FileWriter(start), *(kinds[name](start) for name in dict.fromkeys(names)), _ConsoleWriter(start)]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, oldest first; a last line cut short by a kill is left out."""
    if not file.exists():
        return []
    records: list[dict[str, Any]] = []
    for line in file.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"])})
        except (ValueError, TypeError, KeyError):
            break
    return records


def write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Replace the lines of a log."""
    write_text_file(file, "".join(map(_format_line, records)))


def _format_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _short(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:.4g}"
