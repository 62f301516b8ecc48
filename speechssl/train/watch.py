"""Processes of one run that watch each other: when one of them is gone, all end, whatever they are waiting for.

What waits for another process on the host learns of its death from the closed connection. What waits for a GPU or for
data does not: so a thread of each process meets those of the others every few seconds.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist

from speechssl.errors import StoppedError, TrainingError
from speechssl.terminal import print_status

_MEETING_SECONDS = 5.0  # between two meetings
_SILENCE = timedelta(minutes=10)  # for one, as of a machine without power; a checkpoint is written in less
_GRACE_SECONDS = 5.0  # in which a process can say and do what it still has to


@contextmanager
def watched_processes(rank: int, count: int) -> Iterator[None]:
    """End this process if another one ends before the block does, or falls silent.

    All processes enter it together, with the default process group made, and leave it together: by its end, or because
    they are asked to stop. One that leaves it by another exception ends the others too.

    Raises:
        TrainingError: this process waited for one that is gone.
    """
    watch = _Watch(rank, count)
    watch.start()
    try:
        yield
    except (StoppedError, SystemExit):
        watch.leave()
        raise
    except BaseException as error:
        watch.has_failed = True
        watch.leave(2 * _MEETING_SECONDS)
        if isinstance(error, RuntimeError) and "by peer" in str(error):
            raise TrainingError(watch.explain(None)) from None
        raise
    watch.leave()


class _Watch(Thread):
    """Meets the other processes' threads until all have left."""

    def __init__(self, rank: int, count: int) -> None:
        super().__init__(daemon=True)
        self.rank, self.count = rank, count
        self.group: Any = dist.new_group(backend="gloo", timeout=_SILENCE)
        self.has_left, self.has_failed = Event(), False

    def run(self) -> None:
        """Meet every few seconds; when another process is gone, say so, and end this one if it does not end itself."""
        is_missing, failed = 1, 0  # a process that has not left; the number of one that has failed, counted from 1
        try:
            while is_missing and not failed:
                has_left = self.has_left.wait(_MEETING_SECONDS)
                state = torch.tensor([not has_left, (self.rank + 1) * self.has_failed], dtype=torch.int64)
                dist.all_reduce(state, dist.ReduceOp.MAX, group=self.group)
                is_missing, failed = state.tolist()
        except RuntimeError:
            is_missing = True
        if is_missing and not self.has_left.wait(_GRACE_SECONDS):
            print_status(f"error: {self.explain(failed - 1 if failed else None)}")
            os._exit(1)  # whatever the main thread waits for

    def leave(self, longest_seconds: float | None = None) -> None:
        """Tell the others; a thread that is still in a meeting when Python ends would abort the process."""
        self.has_left.set()
        self.join(longest_seconds)

    def explain(self, failed: int | None) -> str:
        """Say why this process ends."""
        who = "another one" if failed is None else f"process {failed}"
        return f"process {self.rank} of {self.count} ends because {who} has ended; see what that one said last"
