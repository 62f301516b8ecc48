"""The one training loop: updates, and between them logs, evaluations and checkpoints."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.checkpoint.training_state import Progress, load_progress, load_training_tensors
from speechssl.errors import StoppedError, TrainingError
from speechssl.model.cpu import small_model_training
from speechssl.model.device import autocast, exact_float32, resolve_precision
from speechssl.objective.teacher import split_weights
from speechssl.terminal import STOPPED_STATUS
from speechssl.train import parallel
from speechssl.train.average import WeightAverage
from speechssl.train.compiled import compiled_calls
from speechssl.train.copies import copied_ahead
from speechssl.train.guard import stop_requests
from speechssl.train.log import MetricSums, RunLog
from speechssl.train.memory import recomputed_layers
from speechssl.train.optimizer import OptimizerConfig, make_optimizer
from speechssl.train.parallel import Ranks
from speechssl.train.reports import Reports
from speechssl.train.saver import Saver
from speechssl.train.sharding import inference, is_sharded, shard
from speechssl.train.task import Sample, Task
from speechssl.train.throughput import RANKS
from speechssl.train.trainer_config import TrainerConfig
from speechssl.train.update import Updates, explained_batch
from speechssl.train.writers import LogStart


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
    _refuse_settings(config, ranks)
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
    updates = Updates(task, config, optimizer, optimizer_config.max_gradient_norm, ranks, dtype, seed, first_step)
    start = LogStart(run, task.stage, task.shown_metrics, task.chance, first_step, config.num_steps)
    with (
        exact_float32(dtype),
        small_model_training(model, ranks.device, dtype),
        recomputed_layers(model) if config.checkpoint_activations else nullcontext(),
        compiled_calls(task.compiled, task.train) if config.compile else nullcontext(),
        closing(updates),
        stop_requests() as stop,
        RunLog(start, config.writers) if ranks.is_first else nullcontext() as log,
        Saver(run, config.keep_last, ranks, is_sharded=is_sharded(model)) as saver,
    ):
        reports = Reports(task, config, run, ranks, log, first_step, watched_from)
        for step in range(first_step, config.num_steps):
            updates.make(step, learning_rate(step))
            done = step + 1
            if average:
                average.follow(done)
            reports.advance(updates.batches)

            # Logs, evaluations and checkpoints are the only steps that wait for a GPU.
            with updates.throughput.waiting(RANKS):
                must_stop = ranks.any(stop.signal is not None)
            evaluates = done % config.evaluate_steps == 0 or done == config.num_steps
            saves = evaluates or must_stop or done % config.checkpoint_steps == 0
            if saves:
                updates.guard.check(wait=True)  # nothing that is not finite is saved
            if saves or done % config.log_steps == 0:  # a run that resumes there has no sums of the steps before
                reports.write(done, "train", updates.metrics(), must_stop=must_stop)
            score = None
            if evaluates:
                with average.in_place() if average else nullcontext():
                    metrics, samples = _evaluate(task, done, ranks, dtype)
                reports.write(done, "dev", metrics, samples, must_stop=must_stop)
                score = -float(done) if task.best_metric is None else metrics[task.best_metric]
            if saves:
                progress = progress.advanced(done, score)
                _save(task, optimizer, average, saver, progress)
            if must_stop and done < config.num_steps:
                saver.finish()
                if not ranks.is_first:
                    raise SystemExit(STOPPED_STATUS)
                by = "a signal" if stop.signal is None else stop.signal.name
                where = f"stopped by {by} after step {done} of {config.num_steps}, which is saved"
                raise StoppedError(f"{task.stage}: {where}; run the same command again to resume")


def _refuse_settings(config: TrainerConfig, ranks: Ranks) -> None:
    if config.microbatches % ranks.count:
        raise TrainingError(
            f"trainer.microbatches: expected a multiple of the {ranks.count} processes, found {config.microbatches}"
        )
    if config.compile and config.parallel == "fsdp":
        raise TrainingError('trainer.compile: expected parallel = "ddp", found "fsdp", which cannot be compiled yet')


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
    reading = task.dev.read_share(ranks.rank, ranks.count, pin_memory=ranks.device.type == "cuda")
    with inference(task.model), closing(reading):
        for batch, copy in copied_ahead(reading, ranks.device):
            with explained_batch(step - 1, ranks, batch, task.dev), autocast(ranks.device, dtype):
                measured = task.evaluate(copy, step)
            sums.add(measured.losses, measured.counts)
            samples += measured.samples
    return sums.means(ranks), sorted(sample for of_rank in ranks.gather(samples) for sample in of_rank)
