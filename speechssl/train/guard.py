"""What stops a run: a loss that is not finite, a value below its limit, and signals that ask for it."""

import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

from speechssl.data.batches import TaskBatch
from speechssl.data.manifest import Manifest
from speechssl.errors import TrainingError
from speechssl.objective.objective import Limit

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_Indices = tuple[tuple[int, ...], ...]  # of a batch's utterances in each of its manifests


class FiniteGuard:
    """Stops the run at a loss or gradient that is not finite, without waiting for a GPU.

    Of each update the numbers are copied to the host while the GPU computes, and looked at once they are there.
    """

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self.manifests = manifests  # of each part of a batch's audio
        self._losses: list[Tensor] = []
        self._indices: list[_Indices] = []
        self._pending: deque[_Numbers] = deque()

    def watch_loss(self, loss: Tensor, batch: TaskBatch) -> None:
        """Remember the loss of a microbatch."""
        self._losses.append(loss.detach())
        self._indices.append(tuple(audio.indices for audio in batch.audios))

    def watch_update(self, step: int, norm: Tensor) -> None:
        """Remember the norm of an update's gradients: it can be infinite though no loss of this rank is."""
        values = torch.stack([*self._losses, norm.to(self._losses[0].dtype)])
        self._pending.append(_Numbers(step, tuple(self._indices), *_copy_to_host(values)))
        self._losses, self._indices = [], []

    def device_is_idle(self) -> bool:
        """Whether all updates are computed, without waiting for them."""
        return not self._pending or self._pending[-1].have_arrived()

    def check(self, *, wait: bool = False) -> None:
        """Look at the numbers that have arrived, or wait for all.

        Raises:
            TrainingError: one is not finite.
        """
        while self._pending and (wait or self._pending[0].have_arrived()):
            numbers = self._pending.popleft()
            if wait and numbers.arrival is not None:
                numbers.arrival.synchronize()
            *losses, norm = numbers.values.tolist()
            for loss, indices in zip(losses, numbers.indices, strict=True):
                if not _is_finite(loss):
                    parts = zip(self.manifests, indices, strict=True)
                    where = ", ".join(manifest.where(index) for manifest, part in parts for index in part)
                    raise TrainingError(f"step {numbers.step + 1}: expected a finite loss, found {loss} on {where}")
            if not _is_finite(norm):
                raise TrainingError(f"step {numbers.step + 1}: expected a finite gradient, found one of norm {norm}")


def check_limits(limits: Sequence[Limit], metrics: Mapping[str, float], step: int) -> None:
    """Look at the values of a line of the log.

    Raises:
        TrainingError: one is beyond its limit.
    """
    for limit in limits:
        if problem := limit.find_problem(metrics, step):
            raise TrainingError(f"step {step}: {problem}")


@dataclass(frozen=True)
class _Numbers:
    """The losses of an update and the norm of its gradients, on their way to the host."""

    step: int
    indices: Sequence[_Indices]
    values: Tensor
    arrival: torch.cuda.Event | None

    def have_arrived(self) -> bool:
        return self.arrival is None or bool(self.arrival.query())  # type: ignore[no-untyped-call]


def _copy_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if values.device.type != "cuda":
        return values.cpu(), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrival.record(torch.cuda.current_stream(values.device))  # of one that may not be the current device
    return host, arrival


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")  # false for NaN too


class StopRequest:
    """Whether somebody asked the run to stop, with SIGTERM or Ctrl-C; another Ctrl-C stops it at once.

    Another SIGTERM does not: a launcher passes on what its processes have already got.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def notice(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal."""
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notice SIGTERM and SIGINT instead of ending; what is ignored, as in the background of a script, stays so."""
    request = StopRequest()
    is_main = threading.current_thread() is threading.main_thread()  # others may not handle signals
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if is_main and handler != signal.SIG_IGN:
                signal.signal(number, request.notice)
        yield request
    finally:
        for number, handler in before.items() if is_main else ():
            signal.signal(number, handler)
