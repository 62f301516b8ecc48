"""What a run says: means over updates, and a log of them in several places."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from speechssl.objective.objective import Losses
from speechssl.train.parallel import Ranks
from speechssl.train.task import Sample
from speechssl.train.writers import LOG_FILE, SAMPLES_FILE, LogStart, WriterName, open_writers, read_lines


class MetricSums:
    """Sums of losses and of what they are divided by since the last report, kept on the device."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._of: dict[str, tuple[str, float]] = {}  # the count and the weight of each
        self._counts: dict[str, float] = {}

    def add(self, losses: Losses, counts: Mapping[str, float]) -> None:
        """Add one batch."""
        for name, term in losses.items():
            value = term.sum.detach()
            value = value.float() if value.device.type == "mps" else value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._of[name] = term.count, term.weight
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0.0) + count

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Return the loss and the means of its terms over all ranks; the sums start anew."""
        values = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        sums = ranks.sum_named(dict(zip(self._sums, values, strict=True)))
        counts = ranks.sum_named(self._counts)
        of_ranks = ranks.first_decides(lambda: self._of)  # a rank may have had no batch of a small dev set
        means = {name: sums[name] / counts[count] if counts[count] else 0.0 for name, (count, _) in of_ranks.items()}
        loss = sum(weight * means[name] for name, (_, weight) in of_ranks.items() if weight)  # 0 x NaN is NaN
        self._clear()
        return {"loss": loss, **means}


class RunLog:
    """The log of a run's folder, continued where a checkpoint left it: files and console, and other writers by name."""

    def __init__(self, start: LogStart, writers: Sequence[WriterName] = ()) -> None:
        self._stack = ExitStack()
        self._writers = open_writers(writers, start)
        for writer in self._writers:
            self._stack.callback(writer.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def advance(self) -> None:
        """Take note of an update."""
        for writer in self._writers:
            writer.advance()

    def write(self, step: int, split: str, metrics: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
        """Write the metrics of a split after so many updates, and what the model says of a few utterances."""
        for writer in self._writers:
            writer.write(step, split, metrics)
            if samples:
                writer.write_samples(step, samples)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log, oldest first."""
    return read_lines(folder / LOG_FILE)


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Return what the model said of a few utterances of the dev set at each evaluation, oldest first."""
    return read_lines(folder / SAMPLES_FILE)
