"""The folder of a training run: one process at a time, and the configuration that it was started with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.training_state import Progress, find_progress, load_progress, repair_links
from speechssl.data.check import Problem
from speechssl.data.sampler import BatchSampler
from speechssl.errors import TrainingError
from speechssl.files import exclusive_lock
from speechssl.objective.teacher import split_weights
from speechssl.terminal import print_status
from speechssl.train.health import RollBackError, add_warning, note_end, read_warnings
from speechssl.train.memory import explained_shortage
from speechssl.train.parallel import Ranks
from speechssl.train.record import RunConfig, describe_machine, find_changes, read_record, write_record
from speechssl.train.schedule import Course, LearningRate
from speechssl.train.task import Task
from speechssl.train.trainer import train
from speechssl.train.writers import RUN_FILE

_MOST_LISTED = 20
_MOST_ROLL_BACKS = 3


def train_in_folder(
    folder: Path,
    stage: str,
    config: RunConfig,
    ranks: Ranks,
    inputs: Mapping[str, str],
    find_problems: Callable[[], Sequence[Problem]],
    make_task: Callable[[], Task[Any]],
    prepare: Callable[[Task[Any], Ranks], None] = lambda task, ranks: None,
) -> None:
    """Train into a run's folder, from its latest checkpoint if it has one.

    Args:
        folder, stage, config, ranks: The run's.
        inputs: Digests of the files that the run reads, by setting.
        find_problems: Looks at the data before a new run, in the first process.
        make_task: Makes the task with its first weights; called with PyTorch's generator seeded.
        prepare: What a new run needs before its first update; its model is on the rank's device.

    Raises:
        TrainingError: the folder is in use, holds another run or cannot be written, the data are unfit, or as `train`.
        StoppedError: as `train`.
    """
    with (
        _locked(folder, ranks),
        _explained_writing(folder),
        explained_shortage(lambda: f"{stage} on {ranks.device}"),
    ):

        def begin() -> tuple[Progress, Course]:
            progress, course = _begin_or_resume(folder, stage, config, inputs, ranks)
            if not progress.step:
                _refuse([problem for problem in find_problems() if not _is_skipped(problem, config)])
            return progress, course

        while True:
            progress, course = ranks.first_decides(begin)
            if progress.step >= config.trainer.num_steps:
                return
            torch.manual_seed(config.seed)  # for the initialization; the trainer seeds all noise
            task = make_task()
            if config.trainer.max_unreadable:
                task = replace(task, train=task.train.skipping_unreadable())
            if progress.step:
                saved = read_model(folder / "latest")
                saved.fill(task.saved_module, dict(saved.weights) | split_weights(task.saved_module)[1])
            task.model.to(ranks.device)
            if not progress.step:
                prepare(task, ranks)
            if ranks.is_first:
                print_status(_describe(task, config, ranks))
            rate = LearningRate(config.optimizer.learning_rate, config.schedule, course)
            watched_from = max(course.roll_backs, default=0)
            with _noted_end(folder, ranks):
                try:
                    train(task, config.trainer, config.optimizer, rate, folder, ranks, config.seed, watched_from)
                    return
                except RollBackError as error:
                    ranks.first_decides(partial(_roll_back, folder, type(config), stage, str(error)))
            del task  # one model at a time


@contextmanager
def _noted_end(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep why a run ends before its time, for its report."""
    try:
        yield
    except TrainingError as error:
        if ranks.is_first:
            note_end(folder, error)
        raise


@contextmanager
def _locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep other processes out of a run's folder."""
    with ExitStack() as stack:
        if ranks.is_first:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive_lock(folder / "lock"))
            except BlockingIOError:
                raise TrainingError(f"{folder}: another process is training in this folder") from None
            except OSError as error:
                raise TrainingError(f"{folder}: cannot be used as a run folder: {error.strerror}") from None
        yield


@contextmanager
def _explained_writing(folder: Path) -> Iterator[None]:
    """Say which file of a run cannot be written, such as on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None or folder not in Path(error.filename).parents:
            raise
        raise TrainingError(
            f"{error.filename}: cannot be written: {error.strerror}; all checkpoints are intact, run the same command "
            "again to resume"
        ) from None


def _begin_or_resume(
    folder: Path, stage: str, config: RunConfig, inputs: Mapping[str, str], ranks: Ranks
) -> tuple[Progress, Course]:
    """Check that a run may go on with a configuration; note it, the course of the rate, and where it is trained."""
    record: dict[str, Any] = {"stage": stage, "config": config.to_dict(), "inputs": dict(inputs)}
    parts: list[dict[str, Any]] = []  # one a start, for a report
    progress, damaged = find_progress(folder)
    file = folder / RUN_FILE
    num_steps = config.trainer.num_steps
    course = Course(length=num_steps, num_steps=num_steps)
    if progress.step:
        old, course = read_record(file, type(config), stage)
        parts = [part for part in old.pop("parts", []) if part["step"] < progress.step]  # those that led here
        changes = find_changes(old, record, progress.step)
        if changes:
            listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changes.items())
            raise TrainingError(
                f"{folder}: this run was started with different settings ({listed}); use another folder or remove it"
            )
        repair_links(folder, progress, config.trainer.keep_last)
        if damaged:
            print_status(f"warning: {'; '.join(damaged)}: falls back to the checkpoint after step {progress.step}")
        if progress.step < course.first_step:  # it was extended after this checkpoint
            course = course.model_copy(update={"first_step": progress.step})
        is_finished = progress.step >= num_steps
        state = "is finished after" if is_finished else "resumes after"
        print_status(f"{stage}: {folder} {state} step {progress.step}")
        if is_finished:
            return progress, course
        if num_steps > course.num_steps:
            course = _extend(folder, config, course, progress.step)
    record["parts"] = [*parts, {"step": progress.step, **describe_machine(ranks)}]
    write_record(file, record, course)
    return progress, course


def _roll_back(folder: Path, kind: type[RunConfig], stage: str, problem: str) -> None:
    """Note that a run goes on from its latest checkpoint with half the learning rate.

    Raises:
        TrainingError: it has no checkpoint, or has gone back too often.
    """
    file = folder / RUN_FILE
    record, course = read_record(file, kind, stage)
    step = load_progress(folder).step
    if not step or len(course.roll_backs) == _MOST_ROLL_BACKS:
        why = f"it has gone back {_MOST_ROLL_BACKS} times" if step else "it has no checkpoint to go back to"
        raise TrainingError(f"{problem} ({why})")
    write_record(file, record, course.model_copy(update={"roll_backs": (*course.roll_backs, step)}))
    message = f"went back to this step with half the learning rate, because of {problem}"
    add_warning(folder, read_warnings(folder, step), step, "roll_back", message)


def _extend(folder: Path, config: RunConfig, course: Course, step: int) -> Course:
    """Give a run more updates, and say what its learning rate does."""
    peak, schedule, num_steps = config.optimizer.learning_rate, config.schedule, config.trainer.num_steps
    extended = course.extended(step, num_steps, schedule.on_extend)
    before, after = LearningRate(peak, schedule, course)(step - 1), LearningRate(peak, schedule, extended)(step)
    if schedule.on_extend == "restart":
        what = f"begins its schedule again, from {after:.3g} up to {peak:.3g} (it was {before:.3g})"
    elif step < course.num_steps:
        what = f"goes on from {before:.3g}, on the rest of its schedule, which now lasts until then"
    elif after:
        what = f"stays at {after:.3g}, the end of its schedule; schedule.on_extend=restart begins the schedule again"
    else:
        raise TrainingError(
            f"{folder}: finished with a learning rate of 0, so that more updates would change nothing: "
            f"expected schedule.on_extend=restart, which begins the schedule again, up to {peak:.3g}"
        )
    print_status(f"{folder}: extended from {course.num_steps} to {num_steps} updates: the learning rate {what}")
    return extended


def _refuse(problems: Sequence[Problem]) -> None:
    """Name the problems of the data on stderr and raise an error, if there are any."""
    for problem in problems[:_MOST_LISTED]:
        print_status(f"{problem.where}: {problem.detail}")
    if problems:
        rest = f", {_MOST_LISTED} of them listed" if len(problems) > _MOST_LISTED else ""
        raise TrainingError(f"{len(problems)} utterances are unfit for training{rest}; see `speechssl check`")


def _is_skipped(problem: Problem, config: RunConfig) -> bool:
    """Whether training can do without: it counts what cannot be read, once it comes to that."""
    paths = config.data.train, getattr(config.data, "unlabeled", None)
    is_trained_on = problem.where.rpartition(":")[0] in map(str, paths)
    return config.trainer.max_unreadable > 0 and problem.kind == "unreadable" and is_trained_on


def _describe(task: Task[Any], config: RunConfig, ranks: Ranks) -> str:
    """What a run will do, before it does it."""
    samplers, microbatches = [stream.sampler for stream in task.train.streams], config.trainer.microbatches
    seconds = sum(sampler.config.seconds for sampler in samplers) * microbatches
    return (
        f"{'; beside them '.join(map(_describe_epoch, samplers))}; an update sees up to {seconds:.0f} s of audio in "
        f"{microbatches * len(samplers)} batches on {ranks.count} x {ranks.device.type}; "
        f"{config.trainer.num_steps} updates"
    )


def _describe_epoch(sampler: BatchSampler) -> str:
    left_out = f", {len(sampler.left_out)} utterances of other lengths left out" if sampler.left_out.size else ""
    cropped = f", {sampler.cropped_share:.1%} of the audio cropped away" if sampler.crop else ""
    hours = sampler.seconds_per_epoch / 3600
    return f"{hours:.2f} hours in {sampler.num_batches} batches an epoch{cropped}{left_out}"
