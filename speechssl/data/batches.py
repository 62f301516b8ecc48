"""From batch plans to batches of audio, read by worker processes.

Shapes: B batch, T samples.
"""

import multiprocessing
import multiprocessing.queues
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from threading import Thread
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AliasChoices, Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speechssl.config import Config
from speechssl.cpu import tune_cpu
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.stuck import ended_if_stuck
from speechssl.errors import SpeechSSLError, TrainingError


class DataConfig(Config):
    """What to train on, and to measure progress on: manifests."""

    train: Path
    dev: Path
    # It is written into every model. The second spelling is that of earlier versions.
    license: str = Field(validation_alias=AliasChoices("license", "licence"))
    num_workers: int = Field(2, ge=0)  # processes that read audio; 0 reads in the training process


@dataclass(frozen=True)
class Unreadable:
    """An utterance that cannot be read."""

    index: int  # in the manifest
    problem: str


@dataclass(frozen=True)
class Example:
    """One utterance as read for one epoch."""

    index: int  # in the manifest
    epoch: int
    waveform: npt.NDArray[np.float32]  # (T,)
    text: str | None
    fixed_samples: int | None = None  # as in its plan
    clean: npt.NDArray[np.float32] | None = None  # (T,) without what was mixed into the waveform; None if nothing was
    unreadable: tuple[Unreadable, ...] = ()  # in whose place it was read


@dataclass(frozen=True)
class Batch:
    """A dataclass of tensors (and nested batches) that moves between devices as one."""

    def to(self, device: torch.device) -> Self:
        """The batch with every tensor on the device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory; called by PyTorch's loader."""
        return self._map(Tensor.pin_memory)

    def keep_for(self, stream: torch.cuda.Stream) -> None:
        """Let no tensor's memory be used again before a stream, which is not that of the copy, has done with it."""

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(keep)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Batch):
                changed[field.name] = value._map(function)
            elif isinstance(value, Tensor):
                changed[field.name] = function(value)
        return replace(self, **changed)


@dataclass(frozen=True)
class AudioBatch(Batch):
    """Waveforms of one batch."""

    waveforms: Tensor  # (B, T) float32, zeros behind each row's length
    lengths: Tensor | None  # (B,) int64 valid samples, or None if every row is valid throughout
    indices: tuple[int, ...]  # in the manifest
    clean: Tensor | None = None  # (B, T) without what was added to the waveforms; None if nothing was
    unreadable: tuple[Unreadable, ...] = ()  # utterances in whose place others were read

    @property
    def clean_waveforms(self) -> Tensor:
        """What targets are made of."""
        return self.waveforms if self.clean is None else self.clean

    @property
    def seconds(self) -> float:
        """Audio in the batch, padding included."""
        return self.waveforms.numel() / SAMPLE_RATE


@dataclass(frozen=True)
class TaskBatch(Batch):
    """What every task's batches have."""

    audio: AudioBatch
    # What sums of losses are divided by, by name: frames to predict, utterances. They are known before the batch is
    # computed, so that those of all batches of an update are.
    counts: Mapping[str, float]

    @property
    def audios(self) -> tuple[AudioBatch, ...]:
        """All audio of the batch, that of each data set in a part of its own."""
        return (self.audio,)


BatchType = TypeVar("BatchType", bound=Batch)
Plan = TypeVar("Plan")


def collate_audio(examples: Sequence[Example]) -> AudioBatch:
    """Stack waveforms, padded with zeros to the longest or to the batch's fixed length."""
    lengths = [len(example.waveform) for example in examples]
    num_samples = examples[0].fixed_samples or max(lengths)
    waveforms = stack_rows([example.waveform for example in examples], num_samples)
    clean = None
    if any(example.clean is not None for example in examples):
        whole = [example.waveform if example.clean is None else example.clean for example in examples]
        clean = stack_rows(whole, num_samples)
    is_full = min(lengths) == num_samples
    valid = None if is_full else torch.tensor(lengths)
    unreadable = tuple(found for example in examples for found in example.unreadable)
    return AudioBatch(waveforms, valid, tuple(example.index for example in examples), clean, unreadable)


def stack_rows(rows: Sequence[npt.NDArray[Any]], length: int) -> Tensor:
    """Stack arrays of one dimension and type, zeros or False behind each: (B, length)."""
    stacked = torch.zeros(len(rows), length, dtype=torch.from_numpy(rows[0]).dtype)
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = torch.from_numpy(values)
    return stacked


def load_batches(
    read: Callable[[Plan], BatchType],
    where: Callable[[Plan], str],
    plans: Iterable[Plan],
    *,
    num_workers: int,
    pin_memory: bool = False,
) -> Generator[BatchType, None, None]:
    """Read batches in the given order, ahead of their use if there are workers, in which ``read`` runs.

    Closing the iterator ends them. With ``pin_memory`` batches land in page-locked memory, for copies to a GPU. A batch
    that does not arrive ends the process, which says ``where`` its recordings are: neither a worker nor a thread that
    waits for a file server can be ended otherwise.
    """
    waiting: deque[Plan] = deque()  # of those that workers were given

    def noted() -> Iterator[Plan]:
        for plan in plans:
            waiting.append(plan)
            yield plan

    loader: DataLoader[BatchType | SpeechSSLError] = DataLoader(
        _PlannedBatches(read),
        sampler=noted(),
        batch_size=None,  # a plan is a whole batch
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        multiprocessing_context=_worker_context() if num_workers else None,
        worker_init_fn=_start_worker if num_workers else None,
    )
    batches = iter(loader)
    try:
        while True:
            try:
                with ended_if_stuck(lambda: where(waiting[0])):
                    batch = next(batches)
                waiting.popleft()
            except StopIteration:
                return
            except (ConnectionError, EOFError, FileNotFoundError) as error:  # killed after it announced a batch
                raise RuntimeError(f"DataLoader worker exited unexpectedly: {error}") from None
            if isinstance(batch, SpeechSSLError):
                raise batch
            yield batch
    finally:
        del batches  # its workers end now, not when Python tears itself down


def _worker_context() -> BaseContext:
    # Not forked from here: the training process has threads, and its locks must not be inherited. The server, which
    # computes nothing, imports torch once for all workers.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")  # on Windows
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(worker: int) -> None:
    # Ctrl-C and schedulers signal all processes at once; when a worker ends is the training process's decision.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]
    tune_cpu()
    Thread(target=_exit_with_parent, daemon=True).start()


def _send_error(queue: Any, error: Exception, numbered: tuple[int, object]) -> None:
    """Send what failed instead of a batch, which would be dropped: the training process would wait for ever."""
    reason = str(error).partition("\n")[0]
    advice = (
        "give /dev/shm more room (docker run --shm-size), or lower data.num_workers (0 needs none) or batches.seconds"
    )
    queue.put((numbered[0], TrainingError(f"a batch that was read cannot be handed over: {reason}; {advice}")))


def _exit_with_parent() -> None:
    """End a worker whose training process was killed.

    PyTorch's worker looks for a new parent process, but a forkserver's worker keeps its parent: the server, which
    in turn lives as long as its workers.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class _PlannedBatches(Dataset[BatchType | SpeechSSLError], Generic[Plan, BatchType]):
    def __init__(self, read: Callable[[Plan], BatchType]) -> None:
        self.read = read

    def __getitem__(self, plan: Plan) -> BatchType | SpeechSSLError:
        try:
            return self.read(plan)
        except SpeechSSLError as error:
            return error  # raised by a worker, it would arrive with the worker's traceback in its message
