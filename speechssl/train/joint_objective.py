"""S4L: an objective without labels beside CTC, on one encoder (Zhai et al., 2019, https://arxiv.org/abs/1905.03670).

The loss is that of the labels plus ``weight`` times an objective of pretraining, here any, on unlabeled speech. In the
paper it is learned from labeled data too, as it is here with ``labeled_too``: the mean of both. The paper's objectives
are of images (rotations, exemplars), and it trains from fresh weights; here the encoder may be pretrained.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from pydantic import Field, model_validator
from torch import nn

from speechssl.config import Config
from speechssl.data.batches import TaskBatch
from speechssl.data.manifest import Manifest
from speechssl.data.sampler import BatchConfig
from speechssl.errors import ConfigError
from speechssl.frames import FrameGeometry
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.objective.contrastive import ContrastiveConfig
from speechssl.objective.kinds import AnyObjective
from speechssl.objective.objective import AllReduce, Losses
from speechssl.train.joint import Part, of_stream, stream_seed
from speechssl.train.labeled import LabeledBatch
from speechssl.train.parallel import Ranks
from speechssl.train.pretrain import find_short_batches, prepare_objective
from speechssl.train.task import Batches


class JointConfig(Config):
    """The section ``joint`` of a fine-tuning configuration; ``batches`` are as in pretraining.

    The encoder has the dropouts of ``regularization`` here too.
    """

    objective: AnyObjective = Field(ContrastiveConfig(), discriminator="kind")
    weight: float = Field(1.0, gt=0)  # of the objective, where CTC has 1; CTC's loss is that of an utterance
    labeled_too: bool = False  # whether the objective is learned from the labeled recordings as well
    batches: BatchConfig = BatchConfig()

    @model_validator(mode="after")
    def _reads_no_other_model(self) -> Self:
        if self.objective.target_files is not None:
            raise ValueError("objective.targets needs a pretraining of its own, found it in joint")
        return self


class JointObjective(Part):
    """An objective on the encoder of a CTC model.

    Raises:
        ConfigError: it cannot train such an encoder.
    """

    def __init__(self, config: JointConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        try:
            config.objective.check_encoder(encoder)
        except ValueError as error:
            raise ConfigError(f"joint.objective: {error}") from None
        self.objective = config.objective.build(encoder)
        self.compiled = (self.objective,)
        self.streams = ("unlabeled", "labeled") if config.labeled_too else ("unlabeled",)
        self.weight = config.weight / len(self.streams)
        self.limits = tuple(
            replace(limit, metric=f"{stream}.{limit.metric}")
            for stream in self.streams
            for limit in config.objective.limits
        )
        shown = config.objective.shown_metrics
        self.shown_metrics = tuple(f"unlabeled.{metric}" for metric in shown if metric != "loss")

    def prepare(self, ctc: CTCModel, streams: Mapping[str, Batches[Any]], seed: int, ranks: Ranks) -> None:
        """Find targets in unlabeled speech."""
        prepare_objective(self.objective, ctc.encoder, streams["unlabeled"], seed, ranks, "finetune")

    def forward(self, ctc: CTCModel, batches: Mapping[str, TaskBatch], step: int) -> Losses:
        """The objective's losses on each stream."""
        losses: dict[str, Any] = {}
        for stream in self.streams:
            losses |= of_stream(stream, self.objective(ctc.encoder, batches[stream], step), self.weight)
        return losses

    def after_update(self, ctc: CTCModel, step: int, all_reduce: AllReduce) -> None:
        """What the objective does."""
        self.objective.after_update(ctc.encoder, step, all_reduce)

    def frozen(self, ctc: CTCModel, step: int) -> tuple[nn.Module, ...]:
        """What the objective freezes."""
        return self.objective.frozen(ctc.encoder, step)


def make_streams(
    config: JointConfig, labeled: Batches[LabeledBatch], unlabeled: Manifest, geometry: FrameGeometry, seed: int
) -> dict[str, Batches[TaskBatch]]:
    """Make the batches for the objective.

    Raises:
        ConfigError: utterances could be too short to have something to predict.
    """
    if problem := find_short_batches(config.objective, config.batches, geometry):
        raise ConfigError(f"joint.{problem}")
    manifests = {"unlabeled": unlabeled} | ({"labeled": labeled.manifest} if config.labeled_too else {})
    streams = {}
    for name, manifest in manifests.items():
        own_seed = stream_seed(seed, name)
        collate = config.objective.make_collate(geometry, own_seed)
        streams[name] = Batches.of_manifest(
            manifest,
            config.batches,
            collate,
            labeled.num_workers,
            own_seed,
            crop=True,
            microbatches=labeled.sampler.microbatches,
        )
    return streams
