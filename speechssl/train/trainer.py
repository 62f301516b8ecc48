"""The one training loop: batches to losses to updates to checkpoints."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from speechssl.checkpoint.training_state import Progress, load_optimizer, load_progress, save_checkpoint
from speechssl.config import Config
from speechssl.data.batches import TaskBatch
from speechssl.data.manifest import Manifest
from speechssl.errors import TrainingError
from speechssl.objective.objective import Losses
from speechssl.train.curves import Watch
from speechssl.train.guard import FiniteGuard
from speechssl.train.log import MetricSums, RunLog
from speechssl.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from speechssl.train.parallel import Ranks

_SMALL = 1_000_000  # convolution weights: below, oneDNN's code for one length costs more than it saves


class TrainerConfig(Config):
    """How long and how to train.

    Attributes:
        num_steps: Updates.
        microbatches: Batches summed into one update, over all ranks.
        log_steps: Updates between two lines of the log; each checkpoint has one too.
        evaluate_steps: Updates between two evaluations on the dev set, each followed by a checkpoint.
        checkpoint_steps: Updates between two checkpoints.
        reference: Curves of earlier runs, by ``speechssl curves``: the console says when this run leaves their band.
        device: By name; None is the GPU if there is one, else the CPU.
        precision: Of matrix products; None is bfloat16 on a GPU and float32 on a CPU.
    """

    num_steps: int = Field(400_000, ge=1)
    microbatches: int = Field(64, ge=1)
    log_steps: int = Field(200, ge=1)
    evaluate_steps: int = Field(5_000, ge=1)
    checkpoint_steps: int = Field(1_000, ge=1)
    reference: Path | None = None
    device: str | None = None
    precision: Literal["float32", "bfloat16"] | None = None


class Task(Protocol):
    """What is trained: a model, its batches and their losses.

    Attributes:
        stage: Its name on the console.
        best_metric: The dev metric, lower being better, that chooses the ``best`` checkpoint.
        shown_metrics: What of the log is shown on the console, in this order.
        train_manifest: Where training utterances stand, for messages.
    """

    stage: str
    best_metric: str
    shown_metrics: tuple[str, ...]
    train_manifest: Manifest

    @property
    def model(self) -> nn.Module:
        """A module whose call with (batch, step) returns ``Losses``."""

    def train_batches(self, numbers: Iterable[int], *, pin_memory: bool) -> Iterator[TaskBatch]:
        """Read the training batches with these numbers."""

    def dev_batches(self, ranks: Ranks) -> Iterator[TaskBatch]:
        """Read this rank's share of the dev set."""

    def set_trainable(self, step: int) -> bool:
        """Choose the parameters that learn in this update; whether that changed them."""

    def evaluate(self, batch: Any, step: int) -> Mapping[str, float]:
        """Sums over a dev batch, with the model in evaluation mode."""

    def summarize(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Dev metrics from the sums over all dev batches."""

    def write_model(self, folder: Path, step: int) -> None:
        """Write the model's files."""


def train(
    task: Task,
    config: TrainerConfig,
    optimizer_config: OptimizerConfig,
    schedule: ScheduleConfig,
    run: Path,
    ranks: Ranks,
    seed: int,
) -> None:
    """Train until ``num_steps`` updates are done, from the latest checkpoint of the run if there is one.

    Args:
        task: What to train; its model is moved to the rank's device.
        config: Length and intervals.
        optimizer_config: AdamW.
        schedule: The learning rate over the run.
        run: The run's folder.
        ranks: The processes of the run.
        seed: Of noise and dropout, which depend on (seed, number of the batch) alone.

    Raises:
        TrainingError: a loss or gradient is not finite, or the microbatches do not divide among the ranks.
    """
    if config.microbatches % ranks.count:
        raise TrainingError(
            f"trainer.microbatches: expected a multiple of the {ranks.count} processes, found {config.microbatches}"
        )
    own = config.microbatches // ranks.count  # this rank's microbatches of each update
    model = task.model.to(ranks.device)
    optimizer = make_optimizer(optimizer_config, model.parameters())
    progress = load_progress(run)
    first_step = progress.step
    if first_step:
        load_optimizer(run, optimizer, model)
    reading = task.train_batches(_numbers(config, ranks, first_step), pin_memory=ranks.device.type == "cuda")
    batches = zip(_numbers(config, ranks, first_step), reading, strict=True)
    sums = MetricSums()
    guard = FiniteGuard(task.train_manifest)
    watch = Watch(config.reference, config.num_steps)
    replica: nn.Module = model
    with (
        _convolutions(model, config, ranks),
        RunLog(run, task.stage, task.shown_metrics, first_step, config.num_steps, watch.remarks)
        if ranks.is_first
        else nullcontext() as log,
    ):
        for step in range(first_step, config.num_steps):
            if task.set_trainable(step) or step == first_step:
                replica = DistributedDataParallel(model) if ranks.count > 1 else model
            model.train()
            count = 0.0
            for part in range(own):
                number, batch = next(batches)
                _seed_noise(seed, number)
                is_last = part == own - 1
                with nullcontext() if is_last or replica is model else replica.no_sync():  # type: ignore[operator]
                    with _autocast(config, ranks):
                        losses: Losses = replica(batch.to(ranks.device), step)
                    losses.sum.backward()  # type: ignore[no-untyped-call]
                count += losses.count
                sums.add(losses, batch.audio.seconds)
                guard.watch(step, batch, losses.sum)
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            _divide(gradients, count, ranks)
            norm = _clip(gradients, optimizer_config.max_gradient_norm)
            guard.watch_gradient(step, norm)
            rate = optimizer_config.learning_rate * schedule.scale(step, config.num_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            guard.check(before_step=step)

            done = step + 1
            evaluates = done % config.evaluate_steps == 0 or done == config.num_steps
            saves = evaluates or done % config.checkpoint_steps == 0
            if saves:  # nothing that is not finite
                guard.check(before_step=done)
            # Before each checkpoint too: a run that goes on from there has no sums of the steps before.
            if saves or done % config.log_steps == 0:
                metrics = sums.means(ranks) | {"gradient_norm": norm.item(), "learning_rate": rate}
                if log:
                    log.write(done, "train", metrics)
            if saves:
                score = None
                if evaluates:
                    dev = _evaluate(task, done, config, ranks)
                    score = dev[task.best_metric]
                    if log:
                        log.write(done, "dev", dev)
                progress = _advance(progress, done, score)
                if ranks.is_first:
                    save_checkpoint(run, progress, optimizer, model, partial(task.write_model, step=done))
                ranks.wait()


def _numbers(config: TrainerConfig, ranks: Ranks, first_step: int) -> Iterator[int]:
    """The numbers of this rank's microbatches, its own after those of lower ranks in each update."""
    own = config.microbatches // ranks.count
    for step in range(first_step, config.num_steps):
        first = step * config.microbatches + ranks.rank * own
        yield from range(first, first + own)


def _advance(progress: Progress, step: int, score: float | None) -> Progress:
    if score is not None and (progress.best_score is None or score < progress.best_score):
        return Progress(step, step, score)
    return Progress(step, progress.best_step, progress.best_score)


def _seed_noise(seed: int, number: int) -> None:
    """Make dropout and Gumbel noise a function of (seed, number of the batch): nothing of it needs saving."""
    torch.manual_seed(int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]))


def _autocast(config: TrainerConfig, ranks: Ranks) -> torch.autocast:
    return torch.autocast(ranks.device.type, torch.bfloat16, enabled=_precision(config, ranks) == torch.bfloat16)


def _precision(config: TrainerConfig, ranks: Ranks) -> torch.dtype:
    default = "bfloat16" if ranks.device.type == "cuda" else "float32"
    return torch.bfloat16 if (config.precision or default) == "bfloat16" else torch.float32


@contextmanager
def _convolutions(model: nn.Module, config: TrainerConfig, ranks: Ranks) -> Iterator[None]:
    """Keep oneDNN from the convolutions of a small model that trains in float32 on a CPU.

    It generates machine code for each new length, some milliseconds a layer, and hardly two batches have one length. A
    small model's convolutions take less time than that; a large one's gain more from faster code than it costs.
    """
    number = sum(conv.weight.numel() for conv in model.modules() if isinstance(conv, nn.Conv1d))
    backend = torch.backends.mkldnn
    before = bool(backend.enabled)
    if ranks.device.type == "cpu" and _precision(config, ranks) == torch.float32 and number < _SMALL:
        backend.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        backend.enabled = before  # type: ignore[assignment]


def _divide(gradients: list[Tensor], count: float, ranks: Ranks) -> None:
    """Turn sums of gradients (over ranks: means of sums) into the mean over everything counted in the update."""
    total = ranks.sum(torch.tensor(count, device=ranks.device))
    torch._foreach_mul_(gradients, ranks.count / total)


def _clip(gradients: list[Tensor], max_norm: float | None) -> Tensor:
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / norm).clamp(max=1.0))
    return norm


@torch.inference_mode()
def _evaluate(task: Task, step: int, config: TrainerConfig, ranks: Ranks) -> dict[str, float]:
    task.model.eval()
    totals: dict[str, float] = {}
    for batch in task.dev_batches(ranks):
        with _autocast(config, ranks):
            sums = task.evaluate(batch.to(ranks.device), step)
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    return task.summarize(ranks.sum_named(totals))
