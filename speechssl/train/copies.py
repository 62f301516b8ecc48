"""Batches on their way to a GPU: copied on a stream of their own, while the batch before is computed."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import TypeVar

import torch

from speechssl.data.batches import TaskBatch

B = TypeVar("B", bound=TaskBatch)


def copied_ahead(batches: Iterable[B], device: torch.device) -> Iterator[tuple[B, B]]:
    """Yield each batch as it is and on the device; the copy of the next one has begun before."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def begin(batch: B) -> tuple[B, B, torch.cuda.Event | None]:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            return batch, batch.to(device), None if stream is None else stream.record_event()

    begun = map(begin, batches)
    ahead = next(begun, None)
    while ahead is not None:
        batch, copy, arrival = ahead
        ahead = next(begun, None)
        if arrival is not None:
            computing = torch.cuda.current_stream(device)
            computing.wait_event(arrival)
            copy.keep_for(computing)
        yield batch, copy
