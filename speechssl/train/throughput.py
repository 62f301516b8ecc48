"""How fast a run is, and what it waits for."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from speechssl.model.flops import FlopCounter, peak_flops
from speechssl.train.parallel import Ranks

SPEED = "audio_seconds_per_second"
DATA, RANKS = "waiting_for_data", "waiting_for_ranks"
COMPUTED, MFU = "gflop_per_second", "mfu"
METRICS = (SPEED, DATA, RANKS, COMPUTED, MFU)
"""What `Throughput` adds to a line of the log: all that two runs of the same updates may differ in."""


class Throughput:
    """Measures what is done between two lines of the log, on the host alone: nothing here waits for a GPU.

    FLOPs are counted in one batch, and again in one after every change of what learns; all others are taken to have as
    many for a second of audio. Those of compiled updates are not: a counter sees nothing of them, and as long as one
    looks on, a compiler compiles nothing.
    """

    def __init__(self, ranks: Ranks, dtype: torch.dtype, *, counts_flops: bool = True) -> None:
        self._ranks = ranks
        self._counts_flops = counts_flops
        gpu = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ""
        self._peak = peak_flops(gpu, dtype)
        self._flops_per_second: float | None = None  # of audio
        self._clear()

    def _clear(self) -> None:
        self._sums = dict.fromkeys((SPEED, DATA, RANKS), 0.0)
        self._start = time.monotonic()

    @contextmanager
    def waiting(self, what: str, is_idle: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Count the time that something takes as DATA or RANKS, unless the device is busy even at its end."""
        start = time.monotonic()
        yield
        if is_idle():
            self._sums[what] += time.monotonic() - start

    def count_flops_again(self) -> None:
        """Count those of the next batch: a backward pass depends on what learns."""
        self._flops_per_second = None

    @contextmanager
    def computing(self, audio_seconds: float) -> Iterator[None]:
        """Note the seconds of audio of a batch that is computed."""
        if self._counts_flops and self._flops_per_second is None:
            with FlopCounter() as counter:
                yield
            self._flops_per_second = counter.flops / audio_seconds
        else:
            yield
        self._sums[SPEED] += audio_seconds

    def means(self) -> dict[str, float]:
        """Return the metrics over all ranks since the last call: of waiting the mean share of the time."""
        count, seconds = self._ranks.count, time.monotonic() - self._start
        totals = {name: value / seconds for name, value in self._ranks.sum_named(self._sums).items()}
        self._clear()
        metrics = {SPEED: totals[SPEED], DATA: totals[DATA] / count}
        if count > 1:
            metrics[RANKS] = totals[RANKS] / count
        if self._counts_flops:
            flop_per_second = totals[SPEED] * (self._flops_per_second or 0.0)
            metrics[COMPUTED] = flop_per_second / 1e9
            if self._peak is not None:
                metrics[MFU] = flop_per_second / (count * self._peak)
        return metrics
