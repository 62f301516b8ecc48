"""The contrastive objective of wav2vec 2.0: find the true target of a hidden frame among distractors.

Shapes: B batch, S frames, C conv channels, D model dim, M places for hidden frames (as in `hiding`), K distractors, E
width of the comparison.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.batches import Example
from speechssl.frames import FrameGeometry
from speechssl.model.cpu import Dropout
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.quantizer import Quantizer, QuantizerConfig
from speechssl.objective.distractors import draw_distractors
from speechssl.objective.hiding import (
    HidingConfig,
    MaskedBatch,
    MaskedCollate,
    clean_frames,
    gather_frames,
    masked_context,
)
from speechssl.objective.objective import Limit, Losses, Objective, Term
from speechssl.rng import keyed_generator

_DISTRACT = 5  # the purpose of the generator that draws distractors
_COLLAPSED = (
    "most distractors are the same code as the target: the quantizer has collapsed; usual "
    "causes: a learning rate that is too high, too little objective.diversity_weight, a "
    "temperature that falls too fast (objective.quantizer), or audio in which all is alike; "
    "try half the rate first"
)


class ContrastiveConfig(HidingConfig):
    """The objective; the defaults are wav2vec 2.0 base's."""

    best_metric: ClassVar[str] = "contrastive"
    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "contrastive", "accuracy", "code_perplexity")

    kind: Literal["contrastive"] = "contrastive"
    quantizer: QuantizerConfig = QuantizerConfig()
    comparison_dim: int = Field(256, ge=1)
    num_distractors: int = Field(100, ge=1)
    logit_temperature: float = Field(0.1, gt=0)  # divides cosine similarities
    target_dropout: float = Field(0.1, ge=0, lt=1)  # on the frames that become targets
    diversity_weight: float = Field(0.1, ge=0)  # of the share of the codebooks that is not used
    penalty_weight: float = Field(10.0, ge=0)  # of the mean square of the feature encoder's output

    @property
    def chance(self) -> Mapping[str, float]:
        """Among a target and its distractors."""
        return {"contrastive": math.log(1 + self.num_distractors), "accuracy": 1 / (1 + self.num_distractors)}

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Targets that differ."""
        return (Limit("left_out", at_most=0.7, lines=3, meaning=_COLLAPSED, is_fatal=False),)

    def make_collate(self, geometry: FrameGeometry, seed: int) -> "ContrastiveCollate":
        """What hides frames and draws distractors."""
        return ContrastiveCollate(MaskedCollate(geometry, self.mask, seed), self.num_distractors)

    def build(self, encoder: EncoderConfig) -> "ContrastiveObjective":
        """Quantizer and projections for this encoder."""
        return ContrastiveObjective(self, encoder.feature_encoder.dims[-1], encoder.context.model_dim)


@dataclass(frozen=True)
class ContrastiveBatch(MaskedBatch):
    """Audio, what to hide of it and what to compare."""

    distractors: Tensor  # (B, M, K) int64 positions among the utterance's own hidden frames, never the frame itself


@dataclass(frozen=True)
class ContrastiveCollate:
    """Makes a batch in the loader's worker: masks and distractors depend on (seed, epoch, utterance) alone."""

    masked: MaskedCollate
    num_distractors: int

    def __call__(self, examples: Sequence[Example]) -> ContrastiveBatch:
        """Draw masks and distractors, and stack the audio.

        A hidden frame that is the only one is its own distractor, which the loss recognizes as equal and leaves out.
        """
        batch = self.masked(examples)
        distractors = torch.zeros(*batch.hidden.shape, self.num_distractors, dtype=torch.int64)
        counts = batch.mask.sum(dim=1).tolist()
        for row, count, example in zip(distractors, counts, examples, strict=True):
            generator = keyed_generator(self.masked.seed, example.epoch, example.index, _DISTRACT)
            row[:count] = torch.from_numpy(draw_distractors(count, self.num_distractors, generator))
        return ContrastiveBatch(**vars(batch), distractors=distractors)


class ContrastiveObjective(Objective):
    """Quantized targets, distractors and their loss (Baevski et al., 2020, section 3.2)."""

    def __init__(self, config: ContrastiveConfig, frame_dim: int, context_dim: int) -> None:
        super().__init__()
        self.config = config
        self.target_dropout = Dropout(config.target_dropout)
        self.quantizer = Quantizer(config.quantizer, frame_dim)
        self.target_projection = nn.Linear(config.quantizer.code_dim, config.comparison_dim)
        self.context_projection = nn.Linear(context_dim, config.comparison_dim)

    def forward(self, encoder: SpeechEncoder, batch: ContrastiveBatch, step: int) -> Losses:
        """Compare the context at hidden frames with the targets there; ``step`` sets the Gumbel temperature.

        Returns:
            Sums over hidden frames: the contrastive loss, the share of unused entries, the feature penalty; accuracy,
            the two perplexities, the share of distractors left out because they equal the target.
        """
        config = self.config
        masked_frames, context = masked_context(encoder, batch, config.silence)
        frames = clean_frames(encoder, batch, config.silence, masked_frames)
        hidden, weights = batch.hidden, batch.weights
        shape = hidden.shape
        target_frames = self.target_dropout(gather_frames(frames, hidden))
        temperature = self.quantizer.temperature(step)
        quantized = self.quantizer(target_frames.flatten(0, 1), weights.flatten(), temperature)
        predictions = self.context_projection(gather_frames(context, hidden))
        targets = self.target_projection(quantized.codes.to(predictions.dtype)).unflatten(0, shape)
        logits = self._logits(predictions, targets, quantized.ids.view(shape), batch.distractors)

        contrastive = ((logits.logsumexp(dim=2) - logits[:, :, 0]) * weights).sum()
        best_wrong = logits[:, :, 1:].amax(dim=2)
        # Equal scores are no success, nor is a comparison with nothing: a collapsed model has accuracy 0.
        correct = (logits[:, :, 0] > best_wrong) & best_wrong.isfinite()
        left_out = logits[:, :, 1:].isinf().float().mean(dim=2)
        num_entries = config.quantizer.num_codebooks * config.quantizer.codebook_size
        unused = (num_entries - quantized.prob_perplexity) / num_entries
        # Measures of a batch as a whole count by its hidden frames.
        count = weights.sum()
        terms = {
            "contrastive": Term(contrastive, "hidden", 1.0),
            "accuracy": Term((correct * weights).sum(), "hidden"),
            "code_perplexity": Term(quantized.code_perplexity * count, "hidden"),
            "prob_perplexity": Term(quantized.prob_perplexity * count, "hidden"),
            "left_out": Term((left_out * weights).sum(), "hidden"),
        }
        if config.diversity_weight:
            terms["unused"] = Term(unused * count, "hidden", config.diversity_weight)
        if config.penalty_weight:
            # Weighed by each utterance's own hidden frames, so that the sum does not depend on what shares its batch.
            penalty = (masked_frames.energy * weights.sum(dim=1)).sum()
            terms["penalty"] = Term(penalty, "hidden", config.penalty_weight)
        return terms

    def _logits(self, predictions: Tensor, targets: Tensor, ids: Tensor, distractors: Tensor) -> Tensor:
        """(B, M, E) predictions and targets to (B, M, 1 + K) scores, the right target first."""
        with torch.autocast(predictions.device.type, enabled=False):
            # All pairs in one product, then a choice among them: far less memory than copies of the distractors.
            predictions = F.normalize(predictions.float(), dim=2, eps=1e-8)
            targets = F.normalize(targets.float(), dim=2, eps=1e-8)
            similarity = predictions @ targets.transpose(1, 2) / self.config.logit_temperature  # (B, M, M)
        right = similarity.diagonal(dim1=1, dim2=2)[:, :, None]
        wrong = similarity.gather(2, distractors)
        other_ids = ids[:, None, :].expand_as(similarity).gather(2, distractors)
        wrong = wrong.masked_fill(other_ids == ids[:, :, None], -torch.inf)
        return torch.cat((right, wrong), dim=2)
