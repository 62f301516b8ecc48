"""What a run says: lines on the console, a JSONL log, TensorBoard."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from speechssl.files import named_errors, write_text_file
from speechssl.objective.objective import Losses
from speechssl.terminal import print_status
from speechssl.train.parallel import Ranks

LOG_FILE = "log.jsonl"
SPEED = "audio_seconds_per_second"
"""The name of the speed in the log."""


class MetricSums:
    """Sums of losses and of what they are divided by since the last report, kept on the device."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._of: dict[str, tuple[str, float]] = {}  # the count and the weight of each
        self._counts: dict[str, float] = {}
        self._seconds = 0.0
        self._start = time.monotonic()

    def add(self, losses: Losses, counts: Mapping[str, float], seconds: float = 0.0) -> None:
        """Add one batch and the seconds of audio in it."""
        for name, term in losses.items():
            value = term.sum.detach()
            value = value.float() if value.device.type == "mps" else value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._of[name] = term.count, term.weight
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0.0) + count
        self._seconds += seconds

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Return the loss and the means of its terms over all ranks; the sums start anew."""
        values = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        sums = ranks.sum_named(dict(zip(self._sums, values, strict=True)))
        counts = ranks.sum_named(self._counts)
        of_ranks = ranks.first_decides(lambda: self._of)  # a rank may have had no batch of a small dev set
        means = {name: sums[name] / counts[count] if counts[count] else 0.0 for name, (count, _) in of_ranks.items()}
        loss = sum(weight * means[name] for name, (_, weight) in of_ranks.items())
        seconds = ranks.sum_named({SPEED: self._seconds})[SPEED] / (time.monotonic() - self._start)
        self._clear()
        return {"loss": loss, **means} | ({SPEED: seconds} if seconds else {})


class RunLog:
    """The log of a run's folder, continued where a checkpoint left it.

    The console shows the metrics named in ``shown``, in this order; the files have all. Lines of steps after
    ``first_step``, written by a run that was killed, are deleted.
    """

    def __init__(self, folder: Path, stage: str, shown: Sequence[str], first_step: int, num_steps: int) -> None:
        self.stage = stage
        self.shown = shown
        self.num_steps = num_steps
        self._file_path = folder / LOG_FILE
        _trim(self._file_path, first_step)
        self._file = self._file_path.open("a", encoding="utf-8")
        self._curves = CurveFile(folder / "tensorboard", first_step)
        self._first_step = first_step
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with named_errors(self._file_path):  # after an error of writing, closing has the same
            self._file.close()
        self._curves.close()

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Write one line to the log and the console, and the values to TensorBoard."""
        record: dict[str, Any] = {"step": step, "split": split, **metrics}
        with named_errors(self._file_path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        self._curves.write(step, {f"{split}/{name}": value for name, value in metrics.items()})
        shown = [f"{name.replace('_', ' ')} {_short(metrics[name])}" for name in self.shown if name in metrics]
        if SPEED in metrics:
            shown.append(f"{metrics[SPEED]:.0f} s of audio/s")
        shown.append(f"left {self._time_left(step)}")
        print_status(f"{self.stage} {split:5}  step {step}/{self.num_steps}  {'  '.join(shown)}")

    def _time_left(self, step: int) -> str:
        done = step - self._first_step
        left = round((time.monotonic() - self._start) / done * (self.num_steps - step))
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


class CurveFile:
    """A file of TensorBoard's, in which what is written after ``first_step`` takes the place of what earlier ones have.

    TensorBoard's own writer has a thread, whose errors come late and with a traceback.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names, which a clock that was set back must not change.
        others = [file.name.split(".")[3] for file in folder.glob("events.out.tfevents.*")]
        number = max([int(time.time()), *(int(other) + 1 for other in others if other.isdecimal())])
        self._path = folder / f"events.out.tfevents.{number:010}.{os.getpid()}"
        self._start = time.time() - time.monotonic()  # times within a file differ by what has passed, whatever is set
        with named_errors(self._path):
            self._file = self._path.open("wb")
        self._records = RecordWriter(self._file)  # type: ignore[no-untyped-call]
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of some curves at a step."""
        named = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=named)))

    def _add(self, event: Event) -> None:
        event.wall_time = self._start + time.monotonic()
        with named_errors(self._path):
            self._records.write(event.SerializeToString())  # type: ignore[no-untyped-call]
            self._file.flush()  # a run that is killed and goes on has no other chance to draw them

    def close(self) -> None:
        """End the file."""
        with named_errors(self._path):
            self._file.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, oldest first; a last line cut short by a kill is left out."""
    return read_lines(folder / LOG_FILE)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects that have a step; what follows one that is not whole is left out."""
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


def _trim(file: Path, last_step: int) -> None:
    kept = [record for record in read_log(file.parent) if record["step"] <= last_step]
    write_text_file(file, "".join(json.dumps(record) + "\n" for record in kept))


def _short(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:.4g}"
