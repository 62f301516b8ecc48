"""Files of TensorBoard's that runs write."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text

from speechssl.files import named_errors


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

    def write_text(self, step: int, name: str, content: str) -> None:
        """Write a text at a step."""
        self._add(Event(step=step, summary=text(name, content)))  # type: ignore[no-untyped-call]

    def _add(self, event: Event) -> None:
        event.wall_time = self._start + time.monotonic()
        with named_errors(self._path):
            self._records.write(event.SerializeToString())  # type: ignore[no-untyped-call]
            self._file.flush()  # a run that is killed and goes on has no other chance to draw them

    def close(self) -> None:
        """End the file."""
        with named_errors(self._path):
            self._file.close()
