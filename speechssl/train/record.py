"""The record of a training run, ``run.json``: what it was started with, and what a later start may change."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from speechssl import __version__
from speechssl.config import Config, differences
from speechssl.data.batches import DataConfig
from speechssl.data.sampler import BatchConfig
from speechssl.errors import TrainingError
from speechssl.files import write_text_file
from speechssl.terminal import count
from speechssl.train.optimizer import OptimizerConfig
from speechssl.train.parallel import Ranks
from speechssl.train.schedule import Course, ScheduleConfig
from speechssl.train.trainer_config import TrainerConfig

FREE_SETTINGS = {
    "trainer.num_steps",  # upwards, or to what is done
    "schedule.on_extend",  # the course of the learning rate is noted when it is decided
    "trainer.log_steps",
    "trainer.evaluate_steps",
    "trainer.checkpoint_steps",
    "trainer.keep_last",
    "trainer.device",
    "trainer.checkpoint_activations",
    "trainer.parallel",
    "trainer.on_warning",
    "trainer.max_unreadable",
    "trainer.writers",
    "data.num_workers",
    "data.train",  # the path: the content is compared instead
    "data.dev",
    "mixing.noise",
    "data.unlabeled",
    "init",
    "units",
    "objective.check_from_step",  # a run that has come further was healthy enough
    "objective.targets.model",
    "objective.targets.clusters",
}
"""What may differ between the parts of one run: what does not change its result, and the length."""


class RunConfig(Config):
    """What every training run is told; the defaults are those of wav2vec 2.0 base's pretraining."""

    seed: int = Field(0, ge=0, lt=2**63)  # of initialization, order, crops, masks and noise
    data: DataConfig
    batches: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    trainer: TrainerConfig = TrainerConfig()


def read_record(file: Path, kind: type[RunConfig], stage: str) -> tuple[dict[str, Any], Course]:
    """Read what a run was started with; settings that an earlier version wrote have today's names and defaults.

    Raises:
        TrainingError: the file cannot be read, is no such record, or that of a run of another stage.
    """
    try:
        record: dict[str, Any] = json.loads(file.read_text("utf-8"))
        settings, found = record["config"], record["stage"]
        settings["trainer"].pop("reference", None)
        num_steps = settings["trainer"]["num_steps"]
        course = record.pop("course", {"length": num_steps, "num_steps": num_steps})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{file}: expected what the run was started with: {error}") from None
    if found != stage:
        raise TrainingError(f"{file}: expected a run of {stage}, found one of {found}; use another folder or remove it")
    record["config"] = kind.from_dict(settings, str(file)).to_dict()
    return record, Course.from_dict(course, str(file))


def write_record(file: Path, record: dict[str, Any], course: Course) -> None:
    """Write what `read_record` reads."""
    record = record | {"course": course.to_dict()}
    write_text_file(file, json.dumps(record, indent=2, ensure_ascii=False) + "\n", durable=True)


def find_changes(old: dict[str, Any], new: dict[str, Any], step: int) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ after ``step`` updates although they may not, as (old, new)."""
    found = differences(old, new)
    found = {name.removeprefix("config."): change for name, change in found.items()}
    before, now = found.get("trainer.num_steps", (0, 0))
    free = FREE_SETTINGS - {"trainer.num_steps"} if step < now < before else FREE_SETTINGS
    return {name: change for name, change in found.items() if name not in free}


def describe_machine(ranks: Ranks) -> dict[str, Any]:
    """Return when, with which versions and on what a part of a run is trained."""
    is_gpu = ranks.device.type == "cuda"
    device = torch.cuda.get_device_name(ranks.device) if is_gpu else ranks.device.type
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "speechssl": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device if is_gpu else f"{device}, {count(os.cpu_count() or 1, 'core')}",
        "processes": ranks.count,
    }
