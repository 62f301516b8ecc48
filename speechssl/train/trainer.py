"""The one training loop: batches to losses to updates to checkpoints."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from speechssl.checkpoint.training_state import Progress, load_progress, load_training_tensors
from speechssl.config import Config
from speechssl.data.batches import TaskBatch
from speechssl.errors import StoppedError, TrainingError
from speechssl.model.cpu import small_model_training
from speechssl.model.device import autocast, exact_float32, resolve_precision
from speechssl.objective.objective import Term, weighted_sum
from speechssl.objective.teacher import Teacher, split_weights
from speechssl.terminal import STOPPED_STATUS
from speechssl.train import parallel
from speechssl.train.average import WeightAverage
from speechssl.train.compiled import compiled_calls
from speechssl.train.guard import FiniteGuard, stop_requests
from speechssl.train.health import CLIPPED, RISING, SOUND, Health, Response, RollBackError
from speechssl.train.log import MetricSums, RunLog, read_log
from speechssl.train.memory import describe_batch, explained_shortage, recomputed_layers
from speechssl.train.optimizer import OptimizerConfig, make_optimizer
from speechssl.train.parallel import Ranks
from speechssl.train.saver import Saver
from speechssl.train.sharding import inference, is_sharded, shard
from speechssl.train.sound import describe_sound, measure_sound
from speechssl.train.task import Batches, Sample, Task
from speechssl.train.throughput import DATA, RANKS, Throughput
from speechssl.train.unreadable import UnreadableCount
from speechssl.train.writers import LogStart, WriterName


class TrainerConfig(Config):
    """How long and how to train.

    ``precision`` is that of matrix products and convolutions: None is bfloat16 on a GPU that has it in hardware, else
    float32, which means it: TF32 is off. ``compile`` is off until somebody has measured on a GPU what it gains.
    """

    num_steps: int = Field(400_000, ge=1)  # updates
    microbatches: int = Field(64, ge=1)  # batches summed into one update, over all ranks
    log_steps: int = Field(200, ge=1)  # updates between two lines of the log; each checkpoint has one too
    evaluate_steps: int = Field(5_000, ge=1)  # between two evaluations on the dev set, each followed by a checkpoint
    checkpoint_steps: int = Field(1_000, ge=1)
    # Evaluate and save a moving average of the weights, in which each update weighs so many times as much as the next
    # one (0.999, 0.9999); None takes the weights as they are.
    average_decay: float | None = Field(None, gt=0, lt=1)
    keep_last: int = Field(2, ge=1)  # checkpoints to fall back to if one is damaged; the best is kept besides
    device: str | None = None  # by name; None is the GPU if there is one, else the CPU
    precision: Literal["float32", "bfloat16"] | None = None
    # What the processes of a run hold: "ddp" each one everything, "fsdp" each one its part of weights, gradients and
    # the optimizer's state, for what does not fit into one GPU. One process alone holds everything.
    parallel: Literal["ddp", "fsdp"] = "ddp"
    # The share of the utterances that may turn out to be unreadable: others take their place. With 0 the first ends the
    # run: what a run has learned from does not depend on a disk or a network unless that is asked for.
    max_unreadable: float = Field(0.0, ge=0, lt=1)
    # At what is suspicious, such as a rising loss. "roll_back": where a lower learning rate might help, the run goes
    # back to its latest checkpoint and on with half of it, at most three times.
    on_warning: Response = "warn"
    writers: tuple[WriterName, ...] = ("tensorboard",)  # of the log, beside the console and log.jsonl
    compile: bool = False  # what an update computes, by torch.compile; needs batches.fixed_shapes
    checkpoint_activations: bool = False  # compute transformer layers again in the backward pass, to save memory


def train(
    task: Task[Any],
    config: TrainerConfig,
    optimizer_config: OptimizerConfig,
    learning_rate: Callable[[int], float],
    run: Path,
    ranks: Ranks,
    seed: int,
    watched_from: int = 0,
) -> None:
    """Train until ``num_steps`` updates are done, from the latest checkpoint of the run if there is one.

    The learning rate is that of each update, from 0. Noise and dropout depend on (seed, number of the batch) alone.

    Lines of the log count for warnings after ``watched_from``.

    Raises:
        RollBackError: the run has to go back to its latest checkpoint.
        TrainingError: a loss or gradient is not finite, a value of the log is beyond a limit, a batch does not fit into
            memory, the microbatches do not divide among the ranks, or the model cannot be compiled or computed again.
        StoppedError: a signal asked for it; a checkpoint was saved.
    """
    if config.microbatches % ranks.count:
        raise TrainingError(
            f"trainer.microbatches: expected a multiple of the {ranks.count} processes, found {config.microbatches}"
        )
    if config.compile and config.parallel == "fsdp":
        raise TrainingError('trainer.compile: expected parallel = "ddp", found "fsdp", which cannot be compiled yet')
    own = config.microbatches // ranks.count  # this rank's microbatches of each update
    model = task.model.to(ranks.device)
    if config.parallel == "fsdp" and ranks.count > 1:
        shard(model, ranks.device, ranks.gradients)
    optimizer = make_optimizer(optimizer_config, model.parameters())
    progress = load_progress(run)
    first_step = progress.step
    average = WeightAverage(model, task.saved_module, config.average_decay) if config.average_decay else None
    if first_step:
        tensors = load_training_tensors(run, model.state_dict())
        if average:  # of which the model's files held the averages
            average.restore(tensors)
        parallel.restore(optimizer, model, tensors)
    dtype = resolve_precision(config.precision, ranks.device, trains=True)
    reading = task.train.read(_numbers(config, ranks, first_step), pin_memory=ranks.device.type == "cuda")
    batches = zip(_numbers(config, ranks, first_step), reading, strict=True)
    sums, throughput = MetricSums(), Throughput(ranks, dtype, counts_flops=not config.compile)
    start = LogStart(run, task.stage, task.shown_metrics, task.chance, first_step, config.num_steps)
    limits = [*task.limits, *SOUND, CLIPPED, *([] if task.best_metric is None else [RISING])]
    manifests = [stream.manifest for stream in task.train.streams]
    guard = FiniteGuard(manifests)
    unreadable = UnreadableCount(run, manifests, config.max_unreadable, first_step)
    replica = model
    frozen: tuple[nn.Module, ...] | None = None
    with (
        exact_float32(dtype),
        small_model_training(model, ranks.device, dtype),
        recomputed_layers(model) if config.checkpoint_activations else nullcontext(),
        compiled_calls(task.compiled, task.train) if config.compile else nullcontext(),
        closing(reading),
        stop_requests() as stop,
        RunLog(start, config.writers) if ranks.is_first else nullcontext() as log,
        Saver(run, config.keep_last, ranks, is_sharded=is_sharded(model)) as saver,
    ):
        health = Health(run, read_log(run), limits, task.facts, config.num_steps, config.on_warning, watched_from)
        for step in range(first_step, config.num_steps):
            # What learns can change at any update; a replica over several ranks has to know.
            if task.frozen(step) != frozen:
                frozen = task.frozen(step)
                _freeze(model, frozen)
                replica = parallel.spread(model, ranks)
                throughput.count_flops_again()
            model.train()

            # The batches come first: what they count is known, and divides the losses, before anything is computed.
            with throughput.waiting(DATA, guard.device_is_idle):
                microbatches = list(islice(batches, own))
            counts: dict[str, float] = {}
            for _, batch in microbatches:
                for name, count in batch.counts.items():
                    counts[name] = counts.get(name, 0.0) + count
            with throughput.waiting(RANKS):
                totals = ranks.sum_named(counts)

            # Gradients of the mean over everything in the update, on all ranks.
            for part, (number, batch) in enumerate(microbatches):
                _seed_noise(seed, number)
                with (
                    _explained(step, ranks, batch, task.train),
                    parallel.without_exchange(replica, is_last=part == own - 1),
                    throughput.computing(sum(audio.seconds for audio in batch.audios)),
                ):
                    with autocast(ranks.device, dtype):
                        losses = replica(batch.to(ranks.device), step)
                    loss = weighted_sum(losses, totals)
                    share = loss * ranks.count  # the exchange divides by the ranks
                    share.backward()  # type: ignore[no-untyped-call]
                sums.add(losses, batch.counts)
                unreadable.add(batch)
                guard.watch_loss(loss, batch)
            norm = parallel.clip_gradients(model, optimizer_config.max_gradient_norm, ranks)
            if optimizer_config.max_gradient_norm is not None:
                scale = (optimizer_config.max_gradient_norm / norm).clamp(max=1.0)
                sums.add({"clip_scale": Term(scale, "updates")}, {"updates": 1.0})

            rate = learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step + 1
            task.after_update(done, ranks.all_reduce)
            if average:
                average.follow(done)
            guard.watch_update(step, norm)
            guard.check()
            if log:
                log.advance()

            # Logs, evaluations and checkpoints are the only steps that wait for a GPU.
            with throughput.waiting(RANKS):
                must_stop = ranks.any(stop.signal is not None)
            evaluates = done % config.evaluate_steps == 0 or done == config.num_steps
            saves = evaluates or must_stop or done % config.checkpoint_steps == 0
            if saves:
                guard.check(wait=True)  # nothing that is not finite is saved
            if saves or done % config.log_steps == 0:  # a run that resumes there has no sums of the steps before
                metrics = sums.means(ranks) | {"gradient_norm": norm.item(), "learning_rate": rate}
                metrics |= throughput.means()
                sound = measure_sound(audio for _, batch in microbatches for audio in batch.audios)
                metrics |= describe_sound(ranks.sum_named(sound))
                if log:
                    log.write(done, "train", metrics)
                _go_on_or_back(ranks.first_decides(partial(health.check, done, "train", metrics)), must_stop=must_stop)
                found = [item for of_rank in ranks.gather(unreadable.take()) for item in of_rank]
                ranks.first_decides(partial(unreadable.count, done, found))
            if saves:
                score = None
                if evaluates:
                    with average.in_place() if average else nullcontext():
                        dev, samples = _evaluate(task, done, ranks, dtype)
                    score = -float(done) if task.best_metric is None else dev[task.best_metric]
                    if log:
                        log.write(done, "dev", dev, samples)
                    _go_on_or_back(ranks.first_decides(partial(health.check, done, "dev", dev)), must_stop=must_stop)
                progress = progress.advanced(done, score)
                _save(task, optimizer, average, saver, progress)
            if must_stop and done < config.num_steps:
                saver.finish()
                if not ranks.is_first:
                    raise SystemExit(STOPPED_STATUS)
                by = "a signal" if stop.signal is None else stop.signal.name
                where = f"stopped by {by} after step {done} of {config.num_steps}, which is saved"
                raise StoppedError(f"{task.stage}: {where}; run the same command again to resume")


def _go_on_or_back(problem: str | None, *, must_stop: bool) -> None:
    if problem is not None and not must_stop:  # once it is resumed, it finds the problem again
        raise RollBackError(problem)


def _numbers(config: TrainerConfig, ranks: Ranks, first_step: int) -> Iterator[int]:
    """The numbers of this rank's microbatches, its own after those of lower ranks in each update."""
    own = config.microbatches // ranks.count
    for step in range(first_step, config.num_steps):
        first = step * config.microbatches + ranks.rank * own
        yield from range(first, first + own)


def _explained(step: int, ranks: Ranks, batch: TaskBatch, batches: Batches[Any]) -> AbstractContextManager[None]:
    """Name a batch that does not fit into memory."""

    def where() -> str:
        pairs = zip(batch.audios, batches.streams, strict=True)
        audio = " and ".join(describe_batch(audio, stream.manifest) for audio, stream in pairs)
        return f"step {step + 1} on {ranks.device}, {audio}"

    return explained_shortage(where)


def _freeze(model: nn.Module, frozen: tuple[nn.Module, ...]) -> None:
    """Let everything learn but these modules and teachers."""
    model.requires_grad_(True)
    for module in (*frozen, *(module for module in model.modules() if isinstance(module, Teacher))):
        module.requires_grad_(False)


def _seed_noise(seed: int, number: int) -> None:
    """Make dropout and Gumbel noise a function of (seed, number of the batch): nothing of it needs saving."""
    torch.manual_seed(int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]))


def _save(
    task: Task[Any],
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    saver: Saver,
    progress: Progress,
) -> None:
    tensors = parallel.training_tensors(optimizer, task.model, task.saved_module)
    averages: AbstractContextManager[dict[str, Tensor]] = average.in_place() if average else nullcontext({})
    with averages as learning:
        weights = split_weights(task.saved_module)[0]
        saver.save(progress, weights, tensors | learning, partial(task.write_model, progress.step))


def _evaluate(task: Task[Any], step: int, ranks: Ranks, dtype: torch.dtype) -> tuple[dict[str, float], list[Sample]]:
    task.model.eval()
    sums = MetricSums()
    samples: list[Sample] = []
    with inference(task.model):
        for batch in task.dev.read_share(ranks.rank, ranks.count):
            with _explained(step - 1, ranks, batch, task.dev), autocast(ranks.device, dtype):
                measured = task.evaluate(batch.to(ranks.device), step)
            sums.add(measured.losses, measured.counts)
            samples += measured.samples
    return sums.means(ranks), sorted(sample for of_rank in ranks.gather(samples) for sample in of_rank)
