"""Batches are copied to the device ahead of their use."""

from dataclasses import dataclass, replace
from typing import Self

import pytest
import torch

from speechssl.data.batches import AudioBatch, TaskBatch
from speechssl.train.copies import copied_ahead

BEGUN: list[int] = []


@dataclass(frozen=True)
class Noted(TaskBatch):
    """Says when its copy begins."""

    def to(self, device: torch.device) -> Self:
        BEGUN.append(self.audio.indices[0])
        return replace(super().to(device), counts={"copies": 1.0})


def make(number: int, rows: int = 1) -> Noted:
    return Noted(AudioBatch(torch.full((rows, 1000), float(number)), None, (number,)), {})


def test_the_next_batch_is_on_its_way_before_one_is_computed() -> None:
    BEGUN.clear()
    batches = [make(number) for number in range(3)]
    for number, (batch, copy) in enumerate(copied_ahead(batches, torch.device("cpu"))):
        assert batch is batches[number]
        assert (copy.audio.indices, copy.counts) == ((number,), {"copies": 1.0})
        assert list(range(min(number + 2, 3))) == BEGUN
    assert number == 2
    assert list(copied_ahead([], torch.device("cpu"))) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_has_arrived_when_it_is_computed_with_and_does_not_wait_for_what_is() -> None:
    device = torch.device("cuda")
    batches = (make(number, rows=10_000).pin_memory() for number in range(20))
    sums, idle = [], torch.cuda.Event()
    for _, copy in copied_ahead(batches, device):
        sums.append(copy.audio.waveforms.mean())
        del copy
        torch.cuda._sleep(10_000_000)  # the computing is slower than the host
        idle.record()
    assert not idle.query(), "nobody has waited"
    assert torch.stack(sums).tolist() == [float(number) for number in range(20)]
