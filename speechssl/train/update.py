"""Updates: microbatches to losses to gradients to a step of the optimizer, and what is measured of them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from speechssl.data.batches import TaskBatch
from speechssl.model.device import autocast
from speechssl.objective.objective import Term, weighted_sum
from speechssl.objective.teacher import Teacher
from speechssl.train import parallel
from speechssl.train.copies import copied_ahead
from speechssl.train.guard import FiniteGuard
from speechssl.train.log import MetricSums
from speechssl.train.memory import describe_batch, explained_shortage
from speechssl.train.parallel import Ranks
from speechssl.train.sound import describe_sound, measure_sound
from speechssl.train.task import Batches, Task
from speechssl.train.throughput import DATA, RANKS, Throughput
from speechssl.train.trainer_config import TrainerConfig


class Updates:
    """Makes the updates of a run, one after another; only `metrics` and a check that is to wait do so for a GPU.

    Args:
        task: What is trained, its model being on the rank's device.
        config: How.
        optimizer: Of the model's parameters.
        max_gradient_norm: As for `parallel.clip_gradients`.
        ranks: All of them make the same updates.
        dtype: Of matrix products and convolutions.
        seed: Noise and dropout depend on (seed, number of the batch) alone.
        first_step: The number of the first update.
    """

    def __init__(
        self,
        task: Task[Any],
        config: TrainerConfig,
        optimizer: torch.optim.Optimizer,
        max_gradient_norm: float | None,
        ranks: Ranks,
        dtype: torch.dtype,
        seed: int,
        first_step: int,
    ) -> None:
        self.task, self.optimizer, self.max_gradient_norm = task, optimizer, max_gradient_norm
        self.ranks, self.dtype, self.seed = ranks, dtype, seed
        self.guard = FiniteGuard([stream.manifest for stream in task.train.streams])
        self.throughput = Throughput(ranks, dtype, counts_flops=not config.compile)
        self.batches: list[TaskBatch] = []  # of the latest update, on the host
        self._sums = MetricSums()
        self._own = config.microbatches // ranks.count  # this rank's microbatches of each update
        self._numbers = _numbers(config, ranks, first_step)
        pin_memory = ranks.device.type == "cuda"
        self._reading = task.train.read(_numbers(config, ranks, first_step), pin_memory=pin_memory)
        self._replica = task.model
        self._frozen: tuple[nn.Module, ...] | None = None
        task.model.train()

    def close(self) -> None:
        """Stop reading."""
        self._reading.close()

    def make(self, step: int, learning_rate: float) -> None:
        """Make the update with this number.

        Raises:
            TrainingError: a loss or gradient of an update before it is not finite, or a batch does not fit into memory.
        """
        self._choose_what_learns(step)
        if not self.task.model.training:  # after an evaluation; to walk through all modules takes a while
            self.task.model.train()
        # The batches come first: what they count is known, and divides the losses, before anything is computed.
        with self.throughput.waiting(DATA, self.guard.device_is_idle):
            self.batches = list(islice(self._reading, self._own))
        self._compute_gradients(step)
        norm = parallel.clip_gradients(self.optimizer, self.max_gradient_norm, self.ranks)
        if self.max_gradient_norm is not None:
            scale = (self.max_gradient_norm / norm).clamp(max=1.0)
            self._sums.add({"clip_scale": Term(scale, "updates")}, {"updates": 1.0})
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_update(step + 1, self.ranks.all_reduce)
        self._norm, self._rate = norm, learning_rate
        self.guard.watch_update(step, norm)
        self.guard.check()

    def metrics(self) -> dict[str, float]:
        """Return the means over the updates since the last call, of all ranks, and what the latest one had."""
        means = self._sums.means(self.ranks) | {"gradient_norm": self._norm.item(), "learning_rate": self._rate}
        means |= self.throughput.means()
        sound = measure_sound(audio for batch in self.batches for audio in batch.audios)
        return means | describe_sound(self.ranks.sum_named(sound))

    def _choose_what_learns(self, step: int) -> None:
        frozen = self.task.frozen(step)
        if frozen != self._frozen:
            self._frozen = frozen
            freeze(self.task.model, frozen)
            self._replica = parallel.spread(self.task.model, self.ranks)  # which has to know
            self.throughput.count_flops_again()

    def _compute_gradients(self, step: int) -> None:
        """Compute those of the mean over everything in the update, on all ranks."""
        counts: dict[str, float] = {}
        for batch in self.batches:
            for name, count in batch.counts.items():
                counts[name] = counts.get(name, 0.0) + count
        with self.throughput.waiting(RANKS):
            totals = self.ranks.sum_named(counts)
        for part, (batch, copy) in enumerate(copied_ahead(self.batches, self.ranks.device), 1):
            _seed_noise(self.seed, next(self._numbers))
            with (
                explained_batch(step, self.ranks, batch, self.task.train),
                parallel.without_exchange(self._replica, is_last=part == self._own),
                self.throughput.computing(sum(audio.seconds for audio in batch.audios)),
            ):
                with autocast(self.ranks.device, self.dtype):
                    losses = self._replica(copy, step)
                loss = weighted_sum(losses, totals)
                share = loss * self.ranks.count  # the exchange divides by the ranks
                share.backward()  # type: ignore[no-untyped-call]
            self._sums.add(losses, batch.counts)
            self.guard.watch_loss(loss, batch)


def freeze(model: nn.Module, frozen: tuple[nn.Module, ...]) -> None:
    """Let everything learn but these modules and teachers."""
    model.requires_grad_(True)
    for module in (*frozen, *(module for module in model.modules() if isinstance(module, Teacher))):
        module.requires_grad_(False)


def explained_batch(step: int, ranks: Ranks, batch: TaskBatch, batches: Batches[Any]) -> AbstractContextManager[None]:
    """Name a batch that does not fit into memory."""

    def where() -> str:
        pairs = zip(batch.audios, batches.streams, strict=True)
        audio = " and ".join(describe_batch(audio, stream.manifest) for audio, stream in pairs)
        return f"step {step + 1} on {ranks.device}, {audio}"

    return explained_shortage(where)


def _numbers(config: TrainerConfig, ranks: Ranks, first_step: int) -> Iterator[int]:
    """The numbers of this rank's microbatches, its own after those of lower ranks in each update."""
    own = config.microbatches // ranks.count
    for step in range(first_step, config.num_steps):
        first = step * config.microbatches + ranks.rank * own
        yield from range(first, first + own)


def _seed_noise(seed: int, number: int) -> None:
    """Make dropout and Gumbel noise a function of (seed, number of the batch): nothing of it needs saving."""
    torch.manual_seed(int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]))
