"""One process or many: what ``torchrun`` says, and the sums over ranks."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from speechssl.model.device import resolve_device


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
        device: Where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of each rank's values, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def sum_named(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums over ranks, by name; a rank with nothing to add may lack the names."""
        of_ranks: list[Mapping[str, float]] = [values]
        if self.count > 1:
            of_ranks = [{}] * self.count
            dist.all_gather_object(of_ranks, values)
        totals: dict[str, float] = {}
        for of_rank in of_ranks:
            for name, value in of_rank.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined_ranks(device: str | None) -> Iterator[Ranks]:
    """Join the process group that ``torchrun`` announces, if it does.

    Args:
        device: By name; None is this rank's GPU if there is one, else the CPU.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    resolved = resolve_device(device)
    if resolved.type == "cuda" and resolved.index is None:
        resolved = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(resolved)
    if count == 1:
        yield Ranks(0, 1, resolved)
        return
    dist.init_process_group("nccl" if resolved.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), count, resolved)
    finally:
        dist.destroy_process_group()
