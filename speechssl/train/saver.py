"""Checkpoints are copied to the host by the training, and written by a thread beside it."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from torch import Tensor

from speechssl.checkpoint.training_state import Progress, new_checkpoint, write_tensors
from speechssl.terminal import print_status
from speechssl.train.parallel import Ranks
from speechssl.train.sharding import copy_parts, copy_whole

WriteModel = Callable[[Path, Mapping[str, Tensor]], None]  # into a folder, with the model's weights


class Saver:
    """Writes the checkpoints of a run, one at a time; its block ends when the last one is written, or has failed.

    An error of a write is raised by the next call, or at the end of the block.

    Args:
        run: The run's folder.
        keep_last: As for `repair_links`.
        ranks: All of them make a saver and call its methods together; the first one writes.
        is_sharded: Whether each one writes its part of the training's tensors.
    """

    def __init__(self, run: Path, keep_last: int, ranks: Ranks, *, is_sharded: bool) -> None:
        self.run, self.keep_last, self.ranks, self.is_sharded = run, keep_last, ranks, is_sharded
        # The threads agree among themselves, if there are several, while the training's exchanges go on.
        own: Any = {"host": dist.new_group(backend="gloo")} if is_sharded else {"count": 1}
        self._threads = replace(ranks, **own)
        self._thread: Thread | None = None
        self._failure: BaseException | None = None

    def save(
        self, progress: Progress, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], write_model: WriteModel
    ) -> None:
        """Copy weights and tensors and begin to write them, once the checkpoint before is written.

        Args:
            progress: Where the run stands.
            weights: Of the model, for ``write_model``.
            tensors: What the training needs beside them.
            write_model: Writes the model's own files.

        Raises:
            CheckpointError: the checkpoint before could not be written.
        """
        self.finish()
        is_first = self.ranks.is_first
        weights = copy_whole(weights, keep=is_first)
        if self.is_sharded:
            tensors = copy_parts(tensors)
        elif is_first:
            tensors = copy_whole(tensors, keep=True)
        if self.is_sharded or is_first:
            self._thread = Thread(target=self._write, args=(progress, weights, tensors, write_model), daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            CheckpointError: it could not be written.
        """
        self.ranks.first_decides(self._join)
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _write(
        self, progress: Progress, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], write_model: WriteModel
    ) -> None:
        try:
            with ExitStack() as stack:
                folder = self._threads.first_decides(
                    lambda: stack.enter_context(new_checkpoint(self.run, progress, self.keep_last))
                )
                write_tensors(folder, tensors, self._threads.host if self.is_sharded else None)
                if self.ranks.is_first:
                    write_model(folder, weights)
        except BaseException as error:  # raised by `_join`, in the thread that trains
            self._failure = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        try:
            self._join()  # alone: other processes may not get here
        except Exception as failure:
            if self.ranks.is_first:  # which knows of those of the others
                print_status(f"error: {failure}")
