"""The lines of a run's log: written on the first rank, and looked at there for all."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from speechssl.data.batches import TaskBatch
from speechssl.train.health import CLIPPED, RISING, SOUND, Health, RollBackError
from speechssl.train.log import RunLog, read_log
from speechssl.train.parallel import Ranks
from speechssl.train.task import Sample, Task
from speechssl.train.trainer_config import TrainerConfig
from speechssl.train.unreadable import UnreadableCount


class Reports:
    """Writes lines of the log, judges the health of the run by them, and counts what could not be read.

    Args:
        task, config, run, ranks: The run's.
        log: Of its folder, on the first rank; it holds the lines up to ``first_step``.
        first_step: Updates that are done.
        watched_from: Lines count for warnings after this step.
    """

    def __init__(
        self,
        task: Task[Any],
        config: TrainerConfig,
        run: Path,
        ranks: Ranks,
        log: RunLog | None,
        first_step: int,
        watched_from: int,
    ) -> None:
        self._ranks, self._log = ranks, log
        limits = [*task.limits, *SOUND, CLIPPED, *([] if task.best_metric is None else [RISING])]
        self._health = Health(run, read_log(run), limits, task.facts, config.num_steps, config.on_warning, watched_from)
        manifests = [stream.manifest for stream in task.train.streams]
        self._unreadable = UnreadableCount(run, manifests, config.max_unreadable, first_step)

    def advance(self, batches: Sequence[TaskBatch]) -> None:
        """Take note of an update."""
        for batch in batches:
            self._unreadable.add(batch)
        if self._log:
            self._log.advance()

    def write(
        self,
        step: int,
        split: str,
        metrics: Mapping[str, float],
        samples: Sequence[Sample] = (),
        *,
        must_stop: bool = False,
    ) -> None:
        """Write a line after so many updates, and look at it.

        Raises:
            RollBackError: the run has to go back; if it ``must_stop``, it finds that out once it is resumed.
            TrainingError: the run cannot go on.
        """
        if self._log:
            self._log.write(step, split, metrics, samples)
        problem = self._ranks.first_decides(partial(self._health.check, step, split, metrics))
        if problem is not None and not must_stop:
            raise RollBackError(problem)
        found = [item for of_rank in self._ranks.gather(self._unreadable.take()) for item in of_rank]
        self._ranks.first_decides(partial(self._unreadable.count, step, found))
