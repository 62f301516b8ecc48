"""data2vec: predict what a moving average of the model makes of the frames that are hidden from it.

Baevski et al., 2022, https://arxiv.org/abs/2202.03555, as fairseq trains it on speech. The statistics that normalize a
target see the utterance's own frames only; fairseq's see padding too.

Shapes: B batch, S frames, D model dim, M places for hidden frames (as in `hiding`), L target layers.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.batches import TaskBatch
from speechssl.frames import MaskConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.hiding import MaskedBatch, gather_frames, masked_context
from speechssl.objective.objective import AllReduce, Limit, Losses, Objective, Term
from speechssl.objective.self_distillation import (
    ContextTeacher,
    LinearDecay,
    SelfDistillationConfig,
    hidden_targets,
)

_SMALL = 1e-6  # added to what is divided by or has a root
_COLLAPSED = "{} are nearly the same in all frames, which is easy to predict; try a decay nearer to 1 or a lower rate"


class Data2VecObjectiveConfig(SelfDistillationConfig):
    """The objective; the defaults are data2vec base's."""

    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "skill", "target_deviation", "prediction_deviation")

    kind: Literal["data2vec"] = "data2vec"
    mask: MaskConfig = MaskConfig(min_spans=1)
    decay: LinearDecay = LinearDecay()  # of the teacher
    beta: float = Field(0.0, ge=0)  # below this distance the loss is quadratic, above linear; 0: quadratic throughout

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The published ones."""
        return (
            Limit("target_deviation", 0.1, self.check_from_step, _COLLAPSED.format("targets")),
            Limit("prediction_deviation", 0.01, self.check_from_step, _COLLAPSED.format("predictions")),
        )

    def build(self, encoder: EncoderConfig) -> "Data2VecObjective":
        """Teacher and regression for this encoder."""
        return Data2VecObjective(self, encoder)


class Data2VecObjective(Objective):
    """A teacher, and the regression of the mean of its last layers at hidden frames."""

    def __init__(self, config: Data2VecObjectiveConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.teacher = ContextTeacher(encoder, config.num_target_layers)
        self.head = nn.Linear(encoder.context.model_dim, encoder.context.model_dim)

    def prepare(self, encoder: SpeechEncoder, batches: Iterable[TaskBatch], seed: int) -> None:
        """Begin as a copy of the student."""
        self.teacher.follow(encoder.context, decay=0.0)

    def forward(self, encoder: SpeechEncoder, batch: MaskedBatch, step: int) -> Losses:
        """Compare predictions with the teacher's layers.

        Returns:
            Sums over hidden frames: the loss, and the skill, which share of the target's square is predicted (0: no
            more than by the recording's mean). And measures of the batch: the deviations of targets and predictions
            from frame to frame.
        """
        masked_frames, context = masked_context(encoder, batch, self.config.silence)
        targets = hidden_targets(self.teacher, encoder, batch, self.config, masked_frames).mean(dim=0)  # (B, M, D)
        predictions = self.head(gather_frames(context, batch.hidden)).float()
        weights = batch.weights[:, :, None]
        with torch.autocast(predictions.device.type, enabled=False):
            if self.config.beta:
                distances = F.smooth_l1_loss(predictions, targets, reduction="none", beta=self.config.beta)
            else:
                distances = F.mse_loss(predictions, targets, reduction="none")
            loss = (distances * weights).sum() * targets.shape[2] ** -0.5
        with torch.no_grad():
            count = batch.weights.sum()
            unexplained = (predictions - targets).square().sum(dim=2) / (targets.square().sum(dim=2) + _SMALL)
            deviations = [_deviation(x, weights) for x in (targets, predictions)]
        return {
            "regression": Term(loss, "hidden", 1.0),
            "skill": Term(((1 - unexplained) * batch.weights).sum(), "hidden"),
            "target_deviation": Term(deviations[0] * count, "hidden"),
            "prediction_deviation": Term(deviations[1] * count, "hidden"),
        }

    def after_update(self, encoder: SpeechEncoder, step: int, all_reduce: AllReduce) -> None:
        """Let the teacher follow."""
        self.teacher.follow(encoder.context, self.config.decay.at(step))


def _deviation(x: Tensor, weights: Tensor) -> Tensor:
    """(B, M, D) to (), the mean over channels of the deviation over the hidden frames, as published."""
    count = weights.sum()
    mean = (x * weights).sum(dim=(0, 1)) / count
    variance = ((x - mean).square() * weights).sum(dim=(0, 1)) / (count - 1).clamp(min=1)
    return (variance + _SMALL).sqrt().mean()
