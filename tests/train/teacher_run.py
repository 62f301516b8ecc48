"""Train a toy with a teacher and a loss of two terms: ``python teacher_run.py CONFIG.toml FOLDER --set A=B ...``.

STOP_AFTER="STEP RANK" sends a process SIGTERM after an update, as a scheduler does.
"""

import os
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.data.batches import Example, TaskBatch
from speechssl.data.manifest import read_manifest
from speechssl.frames import MaskConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.hiding import MaskedBatch, MaskedCollate
from speechssl.objective.objective import AllReduce, Losses, Objective, Term
from speechssl.objective.teacher import Teacher
from speechssl.terminal import exit_on_error
from speechssl.train.parallel import Ranks, joined_ranks
from speechssl.train.pretrain import PretrainConfig
from speechssl.train.run import train_in_folder
from speechssl.train.task import Batches, Measured, Task


class Distillation(Objective):
    """Be like a moving average of yourself where you see nothing, and loud: a term a hidden frame, one an utterance."""

    prepare_seconds = 1.0

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.teacher = Teacher(SpeechEncoder(config))
        self.head = nn.Linear(config.context.model_dim, config.context.model_dim)

    def prepare(self, encoder: SpeechEncoder, batches: Iterable[TaskBatch], seed: int) -> None:
        assert list(batches)
        self.teacher.follow(encoder, decay=0.0)

    def forward(self, encoder: SpeechEncoder, batch: MaskedBatch, step: int) -> Losses:
        audio = batch.audio
        frames = encoder.extract_frames(audio.waveforms, audio.lengths)
        found = self.head(encoder.contextualize(frames, batch.mask))
        with torch.no_grad():
            network = self.teacher.network
            wanted = network.contextualize(network.extract_frames(audio.waveforms, audio.lengths))
        apart = (found - wanted).square().mean(dim=2)
        loudness = (1 - found.mean(dim=1).square().mean(dim=1)).square()
        return {
            "distillation": Term((apart * batch.mask).sum(), "hidden", 1.0),
            "loudness": Term(loudness.sum(), "utterances", 0.3),
        }

    def after_update(self, encoder: SpeechEncoder, step: int, all_reduce: AllReduce) -> None:
        self.teacher.follow(encoder, decay=0.9)


@dataclass(frozen=True)
class Collate:
    masked: MaskedCollate

    def __call__(self, examples: Sequence[Example]) -> MaskedBatch:
        batch = self.masked(examples)
        return replace(batch, counts={**batch.counts, "utterances": len(examples)})


class Model(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder = SpeechEncoder(config)
        self.objective = Distillation(config)

    def forward(self, batch: MaskedBatch, step: int) -> Losses:
        losses: Losses = self.objective(self.encoder, batch, step)
        return losses


def main(file: str, folder: str, *options: str) -> None:
    config = PretrainConfig.load([Path(file)], options[1::2])
    manifests = [read_manifest(path) for path in (config.data.train, config.data.dev)]
    collate = Collate(MaskedCollate(config.encoder.feature_encoder.geometry, MaskConfig(span_frames=4), config.seed))

    def make_task() -> Task[Any]:
        model = Model(config.encoder)
        train, dev = (
            Batches.of_manifest(manifest, config.batches, collate, config.data.num_workers, config.seed, crop=True)
            for manifest in manifests
        )

        def after_update(step: int, all_reduce: AllReduce) -> None:
            model.objective.after_update(model.encoder, step, all_reduce)
            if os.environ.get("STOP_AFTER") == f"{step} {os.environ.get('RANK', '0')}":
                for _ in range(2):  # a scheduler's, and the same one passed on by a launcher
                    os.kill(os.getpid(), signal.SIGTERM)

        description = ModelDescription(kind="pretrained", step=0, encoder=config.encoder)
        return Task(
            stage="pretrain",
            model=model,
            saved_module=model,
            compiled=(model.objective,),
            train=train,
            dev=dev,
            evaluate=lambda batch, step: Measured(model(batch, step), batch.counts),
            best_metric="loss",
            shown_metrics=("loss",),
            frozen=lambda step: (),
            after_update=after_update,
            write_model=lambda step, path, weights: save_model(path, description, weights),
        )

    def prepare(task: Task[Any], ranks: Ranks) -> None:
        task.model.objective.prepare(task.model.encoder, task.train.read([0]), config.seed)

    with joined_ranks(config.trainer.device) as ranks:
        train_in_folder(Path(folder), "pretrain", config, ranks, {}, list, make_task, prepare)


if __name__ == "__main__":
    with exit_on_error():
        main(*sys.argv[1:])
