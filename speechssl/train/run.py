"""The folder of a training run: one process at a time, and the configuration it was begun with."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from speechssl.checkpoint.native import find_model
from speechssl.checkpoint.training_state import load_progress, repair_links
from speechssl.config import Config, differences
from speechssl.data.batches import DataConfig
from speechssl.data.check import check_before_training
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import BatchConfig, BatchSampler
from speechssl.data.units import Vocabulary
from speechssl.errors import CheckpointError, TrainingError
from speechssl.frames import FrameGeometry
from speechssl.terminal import print_status
from speechssl.train.optimizer import OptimizerConfig, ScheduleConfig
from speechssl.train.parallel import Ranks, joined_ranks
from speechssl.train.trainer import Task, TrainerConfig, train

RUN_FILE = "run.json"
# What may differ between the parts of one run. The paths of inputs may: their content is compared instead.
_FREE = {
    "trainer.num_steps",
    "trainer.device",
    "trainer.reference",
    "data.num_workers",
    "data.train",
    "data.dev",
    "init",
}
_MOST_LISTED = 20


class RunConfig(Config):
    """What every training run is told; the defaults are those of wav2vec 2.0 base's pretraining.

    Attributes:
        seed: Of initialization, order, crops, masks and noise.
        data: What to train on.
        batches: How utterances are put together.
        optimizer: AdamW.
        schedule: The learning rate over the run.
        trainer: Length, intervals, device.
    """

    seed: int = Field(0, ge=0)
    data: DataConfig
    batches: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    trainer: TrainerConfig = TrainerConfig()


@contextmanager
def opened_run(run: Path, stage: str, config: RunConfig, inputs: Mapping[str, str]) -> Iterator[Ranks | None]:
    """Join the run's processes, lock its folder, check that it may go on, and seed the initialization.

    Args:
        run: The run's folder.
        stage: What is being trained.
        config: The whole configuration.
        inputs: Digests of the files it reads, by setting.

    Yields:
        The processes; None if the run is finished.

    Raises:
        TrainingError: the folder is in use, or holds another run.
    """
    with joined_ranks(config.trainer.device) as ranks, locked_run(run, ranks):
        is_unfinished = begin_or_resume(run, stage, config, inputs, config.trainer.num_steps, ranks)
        torch.manual_seed(config.seed)  # for the initialization; the trainer seeds all noise
        yield ranks if is_unfinished else None


def train_in_run(task: Task, sampler: BatchSampler, config: RunConfig, run: Path, ranks: Ranks) -> None:
    """Say what the run will do, and do it.

    Raises:
        TrainingError: as ``train``.
    """
    if ranks.is_first:
        describe_run(sampler, config.trainer, config.batches, ranks)
    train(task, config.trainer, config.optimizer, config.schedule, run, ranks, config.seed)


@contextmanager
def locked_run(run: Path, ranks: Ranks) -> Iterator[None]:
    """Keep other processes out of a run's folder.

    The lock belongs to the process, so that a killed run cannot leave it behind, nor its workers keep it.

    Raises:
        TrainingError: another process trains in the folder, or it cannot be made.
    """
    if not ranks.is_first:
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / "lock").open("a")
    except OSError as error:
        raise TrainingError(f"{run}: cannot be used as a run folder: {error.strerror}") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"{run}: another process is training in this folder") from None
        yield


def begin_or_resume(
    run: Path, stage: str, config: Config, inputs: Mapping[str, str], num_steps: int, ranks: Ranks
) -> bool:
    """Check that a run may go on with a configuration, and note the configuration.

    Args:
        run: The run's folder, locked.
        stage: What is being trained.
        config: The whole configuration.
        inputs: Digests of the files it reads, by setting.
        num_steps: Updates in all.
        ranks: The first one looks and writes, the others wait for it.

    Returns:
        Whether anything is left to do.

    Raises:
        TrainingError: the folder holds a run of another stage, configuration or input.
    """
    if not ranks.is_first:
        ranks.wait()
        return load_progress(run).step < num_steps
    record = {"stage": stage, "config": config.to_dict(), "inputs": dict(inputs)}
    progress = load_progress(run)
    file = run / RUN_FILE
    is_finished = progress.step >= num_steps
    if progress.step:
        earlier = _read_record(file)
        if earlier.get("stage") == stage:  # settings that came after the run began had their defaults in it
            earlier["config"] = type(config).from_dict(earlier["config"], str(file)).to_dict()
        changes = differences(earlier, record)
        changes = {name.removeprefix("config."): change for name, change in changes.items()}
        changes = {name: change for name, change in changes.items() if name not in _FREE}
        if changes:
            listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changes.items())
            raise TrainingError(f"{run}: this run was begun otherwise ({listed}); use another folder or remove it")
        repair_links(run, progress)
        state = "is finished" if is_finished else "goes on"
        print_status(f"{stage}: {run} {state} after step {progress.step}")
    if not is_finished:
        temporary = file.with_name(f".{file.name}.partial")
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
        temporary.replace(file)
    ranks.wait()
    return not is_finished


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file}: expected what the run was begun with: {error}") from None
    return record


def digest_model(path: Path) -> str:
    """The SHA-256 of a model's weights.

    Raises:
        CheckpointError: there are none.
    """
    weights = find_model(path) / "model.safetensors"
    try:
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{weights}: {error.strerror or error}") from None


def refuse_bad_data(
    manifests: Sequence[Manifest], geometry: FrameGeometry, vocabulary: Vocabulary | None, min_samples: int = 0
) -> None:
    """Run the cheap part of the pre-flight check.

    Raises:
        TrainingError: there are problems; each stands on its own line of stderr.
    """
    problems: list[Any] = []
    for manifest in manifests:
        problems += check_before_training(manifest, geometry, vocabulary, min_samples)
    for problem in problems[:_MOST_LISTED]:
        print_status(f"{problem.where}: {problem.detail}")
    if problems:
        rest = f", {_MOST_LISTED} of them listed" if len(problems) > _MOST_LISTED else ""
        raise TrainingError(f"{len(problems)} utterances are unfit for training{rest}; see `speechssl check`")


def describe_run(sampler: BatchSampler, trainer: TrainerConfig, batches: BatchConfig, ranks: Ranks) -> None:
    """Say what a run will do, before it does it."""
    left_out = f", {len(sampler.left_out)} utterances of other lengths left out" if sampler.left_out else ""
    cropped = f", {sampler.cropped_share:.1%} of the audio cropped away" if sampler.crop else ""
    update = batches.seconds * trainer.microbatches
    print_status(
        f"{sampler.seconds_per_epoch / 3600:.2f} hours in {sampler.num_batches} batches an epoch{cropped}{left_out}; "
        f"an update sees up to {update:.0f} s of audio in {trainer.microbatches} batches "
        f"on {ranks.count} x {ranks.device.type}; {trainer.num_steps} updates"
    )
