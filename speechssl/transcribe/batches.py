"""Which recordings are transcribed together, and reading them while the model is at work."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from speechssl.data.audio import Waveform

Item = TypeVar("Item")

_END = object()


def plan_batches(lengths: Mapping[int, float], batch_samples: float, min_fill: float) -> Iterator[list[int]]:
    """Put recordings of similar lengths together, the longest first, so that what does not fit in memory shows at once.

    Args:
        lengths: Samples of each recording, by its number.
        batch_samples: Bound on a batch with its padding; a longer recording is a batch of its own.
        min_fill: The share of a batch's longest recording that its shortest has at least.

    Yields:
        Numbers of recordings, each once.
    """
    batch: list[int] = []
    for number in sorted(lengths, key=lambda number: -lengths[number]):
        longest = lengths[batch[0]] if batch else 0.0
        if batch and (longest * (len(batch) + 1) > batch_samples or lengths[number] < min_fill * longest):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Give items one after another, the next one being made in a thread meanwhile."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as thread:
        upcoming = thread.submit(next, iterator, _END)
        while (item := upcoming.result()) is not _END:
            upcoming = thread.submit(next, iterator, _END)
            yield item  # type: ignore[misc]


def pad_waveforms(waveforms: Sequence[Waveform]) -> tuple[Tensor, Tensor | None]:
    """(B, T) waveforms with zeros at the end, and their lengths; None if all are equally long."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = np.zeros((len(waveforms), int(lengths.max())), dtype=np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return torch.from_numpy(batch), None if bool((lengths == lengths[0]).all()) else lengths


def is_out_of_memory(error: Exception) -> bool:
    """Whether a batch did not fit into memory."""
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
