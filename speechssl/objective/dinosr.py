"""DinoSR: predict to which entry of an online codebook each layer of a moving average of the model assigns a frame.

Liu et al., 2023, https://arxiv.org/abs/2305.10005. Two differences from the published code: statistics that normalize
the teacher's layers see the utterance's own frames only, and codebooks move once an update rather than once a batch.

Shapes: B batch, S frames, D model dim, M places for hidden frames (as in `hiding`), L target layers, V entries.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.batches import TaskBatch
from speechssl.frames import MaskConfig
from speechssl.model.encoder import EncoderConfig, Frames, SpeechEncoder
from speechssl.objective.collapse import mean_perplexity
from speechssl.objective.hiding import MaskedBatch, gather_frames, masked_input
from speechssl.objective.objective import AllReduce, Limit, Losses, Objective, Term
from speechssl.objective.online_codebook import OnlineCodebooks
from speechssl.objective.self_distillation import (
    ContextTeacher,
    LinearDecay,
    SelfDistillationConfig,
    hidden_targets,
)

_COLLAPSED = "nearly all frames have the same code, which is easy to predict; try a decay nearer to 1 or a lower rate"


class CodesConfig(SelfDistillationConfig):
    """What the configurations of DinoSR and SpidR share.

    Attributes:
        codebook_size: Entries of the codebook that each target layer has.
        codebook_decay: Of the moving averages that the entries are.
        freeze_step: From this update on feature encoder and projection do not learn; None: they always do.
    """

    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "target_perplexity", "prediction_perplexity")

    codebook_size: int = Field(256, ge=2)
    codebook_decay: float = Field(0.9, ge=0, lt=1)
    freeze_step: int | None = Field(200_000, ge=0)

    @property
    def chance(self) -> Mapping[str, float]:
        """Among the codes of a codebook."""
        return {"prediction": math.log(self.codebook_size), "accuracy": 1 / self.codebook_size}

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Of the codes."""
        return (Limit("target_perplexity", 2.0, self.check_from_step, _COLLAPSED),)

    def decay_at(self, step: int) -> float:
        """Return the teacher's decay after the ``step``-th update."""
        raise NotImplementedError


class DinoSRConfig(CodesConfig):
    """The objective; the defaults are the published ones. From ``freeze_step`` on the teacher rests too."""

    kind: Literal["dinosr"] = "dinosr"
    mask: MaskConfig = MaskConfig(start_prob=0.08, min_spans=1)
    decay: LinearDecay = LinearDecay()

    def decay_at(self, step: int) -> float:
        """Linear until the teacher rests."""
        return 1.0 if self.freeze_step is not None and step >= self.freeze_step else self.decay.at(step)

    def build(self, encoder: EncoderConfig) -> "DinoSRObjective":
        """Teacher, codebooks and heads for this encoder."""
        return DinoSRObjective(self, encoder)


class DinoSRObjective(Objective):
    """A teacher, codebooks of its last layers, and heads that predict their entries at hidden frames."""

    def __init__(self, config: CodesConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        model_dim, num_layers = encoder.context.model_dim, config.num_target_layers
        self.teacher = ContextTeacher(encoder, num_layers)
        self.codebooks = OnlineCodebooks(num_layers, config.codebook_size, model_dim, config.codebook_decay)
        self.heads = nn.ModuleList(nn.Linear(model_dim, config.codebook_size) for _ in range(num_layers))

    def prepare(self, encoder: SpeechEncoder, batches: Iterable[TaskBatch], seed: int) -> None:
        """Begin as a copy of the student."""
        self.teacher.follow(encoder.context, decay=0.0)

    def frozen(self, encoder: SpeechEncoder, step: int) -> tuple[nn.Module, ...]:
        """Feature encoder and projection, from a step on."""
        if self.config.freeze_step is None or step < self.config.freeze_step:
            return ()
        return encoder.feature_encoder, encoder.frame_norm, encoder.context.get_submodule("projection")

    def read_student(self, encoder: SpeechEncoder, frames: Frames, mask: Tensor | None) -> Sequence[Tensor]:
        """What each head reads, (B, S, D): all of them the student's output."""
        return [encoder.contextualize(frames, mask)] * len(self.heads)

    def forward(self, encoder: SpeechEncoder, batch: MaskedBatch, step: int) -> Losses:
        """Predict the teacher's codes.

        Returns:
            Sums over hidden frames of means over layers: the cross-entropy, and the predictions that are right. And
            measures of the batch, means over layers: the perplexities of the codes and of the mean prediction, and the
            share of the entries that are in use.
        """
        frames, mask = masked_input(encoder, batch, self.config.silence)
        read = self.read_student(encoder, frames, mask)
        logits = torch.stack(
            [head(gather_frames(x, batch.hidden)) for head, x in zip(self.heads, read, strict=True)]
        ).float()  # (L, B, M, V)
        targets = hidden_targets(self.teacher, encoder, batch, self.config, frames).flatten(1, 2)  # (L, B M, D)
        codes = self.codebooks(targets)
        weights = batch.weights.flatten()
        if self.training:
            self.codebooks.gather(targets, codes, weights)
        logits = logits.flatten(1, 2)  # (L, B M, V)
        losses = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
        with torch.no_grad():
            count = weights.sum()
            correct = logits.argmax(dim=2) == codes
            chosen = F.one_hot(codes, logits.shape[2])
            shares, predicted = ((x * weights[:, None]).sum(dim=1) / count for x in (chosen, logits.softmax(dim=2)))
        return {
            "prediction": Term((losses.mean(dim=0) * weights).sum(), "hidden", 1.0),
            "accuracy": Term((correct.float().mean(dim=0) * weights).sum(), "hidden"),
            "target_perplexity": Term(mean_perplexity(shares) * count, "hidden"),
            "prediction_perplexity": Term(mean_perplexity(predicted) * count, "hidden"),
            "code_use": Term((shares > 0).float().mean() * count, "hidden"),
        }

    def after_update(self, encoder: SpeechEncoder, step: int, all_reduce: AllReduce) -> None:
        """Move the codebooks, and let the teacher follow."""
        self.codebooks.update(all_reduce)
        self.teacher.follow(encoder.context, self.config.decay_at(step))
