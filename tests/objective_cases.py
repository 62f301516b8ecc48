"""Every objective: each file of recipes/prompts/objectives, with tones instead of speech."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.data.batches import TaskBatch
from speechssl.data.manifest import read_manifest
from speechssl.objective.objective import Losses
from speechssl.train.pretrain import PretrainConfig, PretrainModel, make_task, read_target_source
from speechssl.train.task import Task

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "recipes" / "prompts"
NAMES = ["masked_prediction", *sorted(file.stem for file in (PROMPTS / "objectives").glob("*.toml"))]
SETTINGS = (
    "batches.seconds=6",
    "batches.min_seconds=1",
    "trainer.num_steps=4",
    "trainer.microbatches=2",
    "trainer.log_steps=1",
    "trainer.evaluate_steps=2",
    "trainer.checkpoint_steps=2",
    "trainer.device=cpu",
    "optimizer.epsilon=1e-3",  # or rounding errors of gradients that are 0 would become whole steps
)
every_objective = pytest.mark.parametrize("name", NAMES)


@dataclass(frozen=True)
class Tones:
    """Makes configurations for a few long recordings of tones."""

    train: Path
    dev: Path

    def config(self, name: str, *overrides: str) -> PretrainConfig:
        files = [PROMPTS / "encoder.toml", PROMPTS / "pretrain.toml"]
        if name != "masked_prediction":
            files.append(PROMPTS / "objectives" / f"{name}.toml")
        return PretrainConfig.load(files, [f"data.train={self.train}", f"data.dev={self.dev}", *SETTINGS, *overrides])

    def task(self, name: str, *overrides: str) -> Task[Any]:
        config = self.config(name, *overrides)
        torch.manual_seed(config.seed)
        source = read_target_source(config)
        task = make_task(config, read_manifest(self.train), read_manifest(self.dev), source=source)
        model = task.model
        assert isinstance(model, PretrainModel)
        model.objective.prepare(model.encoder, task.train.read(range(task.train.sampler.num_batches)), config.seed)
        return task


def losses_of(task: Task[Any], batch: TaskBatch) -> Losses:
    losses: Losses = task.model(batch, 0)
    return losses
