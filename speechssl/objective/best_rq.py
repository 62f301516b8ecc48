"""BEST-RQ: predict the codes that a random projection and random codebooks, never trained, give to spectra.

Chiu et al., 2022, https://arxiv.org/abs/2202.01855. Targets cost next to nothing and need neither a teacher nor
clusters. They are as published: log-mel spectra of 80 bands every 10 ms, standardized over the recording, stacked, and
the code whose direction is nearest to that of their projection. What differs is what is hidden. The published encoder
reads log-mel spectra, and noise replaces them before its first layer. This one reads waveforms, and spans are hidden as
for every objective here: frames from the context network, or samples from the feature encoder (``silence``).

Shapes: B batch, T samples, S frames, D model dim, P width of the projection, G codebooks, V entries.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.collapse import mean_perplexity
from speechssl.objective.hiding import (
    HidingConfig,
    MaskedBatch,
    MaskedCollate,
    chance_among,
    masked_context,
    prediction_terms,
)
from speechssl.objective.objective import AllReduce, Limit, Losses, Objective, Term
from speechssl.objective.targets import StackedLogMel

_USE_DECAY = 0.99  # of the counts of codes, an update: what the last hundred updates had prevails
_USED = 0.99**100  # what is left of a single frame a hundred updates ago


class BestRqConfig(HidingConfig):
    """The objective; codes are the published ones, masks those of HuBERT base."""

    best_metric: ClassVar[str] = "hidden_loss"
    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "hidden_loss", "hidden_accuracy", "code_use")

    kind: Literal["best_rq"] = "best_rq"
    mask: MaskConfig = MaskConfig(start_prob=0.08)
    num_bands: int = Field(80, ge=1)  # mel bands of the spectra
    code_dim: int = Field(16, ge=1)  # of the projection and of the codes
    num_codebooks: int = Field(1, ge=1)  # each with a projection of its own
    codebook_size: int = Field(8192, ge=2)
    visible_weight: float = Field(0.0, ge=0)  # of a visible frame in the loss, where a hidden one has 1
    penalty_weight: float = Field(0.0, ge=0)  # of the mean square of the feature encoder's output

    @property
    def chance(self) -> Mapping[str, float]:
        """Among the codes."""
        return chance_among(self.codebook_size)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Of the codes."""
        meaning = (
            "nearly all frames have the same few codes, from which nothing can be learned; are the recordings silent, "
            "or objective.codebook_size too small?"
        )
        return (Limit("target_perplexity", 4.0, 1, meaning),)

    def make_collate(self, geometry: FrameGeometry, seed: int) -> MaskedCollate:
        """What hides frames."""
        return MaskedCollate(geometry, self.mask, seed, self.visible_weight)

    def build(self, encoder: EncoderConfig) -> "BestRqObjective":
        """Codes and heads for this encoder."""
        return BestRqObjective(self, encoder.feature_encoder.geometry, encoder.context.model_dim)


class RandomQuantizer(nn.Module):
    """Random projections and codebooks, drawn once and saved with the model."""

    projections: Tensor
    codebooks: Tensor

    def __init__(self, input_dim: int, code_dim: int, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        projections = torch.empty(num_codebooks, input_dim, code_dim)
        for projection in projections:
            nn.init.xavier_uniform_(projection)
        codebooks = F.normalize(torch.randn(num_codebooks, codebook_size, code_dim), dim=2)
        self.register_buffer("projections", projections)
        self.register_buffer("codebooks", codebooks)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, S, G) int64: in each codebook, the code whose cosine with the projection is largest."""
        with torch.autocast(x.device.type, enabled=False):  # or near codes would be one
            # The length of a projection changes all its scores alike, so it need not be 1.
            projected = torch.einsum("bsc,gcp->gbsp", x.float(), self.projections)
            books = zip(projected, self.codebooks, strict=True)
            return torch.stack([(vectors @ codes.T).argmax(dim=2) for vectors, codes in books], dim=2)


class BestRqObjective(Objective):
    """Random codes of spectra, and the loss of predicting them from the context."""

    code_counts: Tensor

    def __init__(self, config: BestRqConfig, geometry: FrameGeometry, context_dim: int) -> None:
        super().__init__()
        self.config = config
        groups, size = config.num_codebooks, config.codebook_size
        self.spectrum = StackedLogMel(geometry, config.num_bands)
        self.quantizer = RandomQuantizer(self.spectrum.dim, config.code_dim, groups, size)
        self.head = nn.Linear(context_dim, groups * size)
        self.register_buffer("code_counts", torch.zeros(groups, size))
        self._new_counts: Tensor | None = None  # of this update

    def targets(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """The codes of each frame: (B, T) to (B, S, G) int64."""
        codes: Tensor = self.quantizer(self.spectrum(waveforms, lengths))
        return codes

    def forward(self, encoder: SpeechEncoder, batch: MaskedBatch, step: int) -> Losses:
        """Predict the codes of hidden and, if they have a weight, visible frames.

        Returns:
            Beside the sums over frames: how many codes the hidden frames of the batch effectively have and how many are
            predicted, and the share of the codebooks that targets hit in about the last hundred updates.
        """
        config = self.config
        masked_frames, context = masked_context(encoder, batch, config.silence)
        targets = self.targets(batch.audio.clean_waveforms, batch.audio.lengths)
        logits = self.head(context).unflatten(2, self.code_counts.shape)  # (B, S, G, V)
        with torch.autocast(logits.device.type, enabled=False):
            losses = F.cross_entropy(logits.float().permute(0, 3, 1, 2), targets, reduction="none").mean(dim=2)
        predicted = logits.argmax(dim=3)
        correct = (predicted == targets).float().mean(dim=2)
        terms = prediction_terms(losses, correct, masked_frames, batch, config.visible_weight, config.penalty_weight)

        # Measures of a batch as a whole count by its hidden frames.
        target_counts = self._count(targets, batch.mask)
        if self.training:
            self._new_counts = target_counts if self._new_counts is None else self._new_counts + target_counts
        num_hidden = batch.mask.sum()
        measures = {
            "target_perplexity": mean_perplexity(_shares(target_counts)),
            "prediction_perplexity": mean_perplexity(_shares(self._count(predicted, batch.mask))),
            "code_use": (self.code_counts >= _USED).float().mean(),
        }
        return {**terms, **{name: Term(value * num_hidden, "hidden") for name, value in measures.items()}}

    def after_update(self, encoder: SpeechEncoder, step: int, all_reduce: AllReduce) -> None:
        """Follow which codes the targets had."""
        assert self._new_counts is not None
        all_reduce(self._new_counts)
        self.code_counts.mul_(_USE_DECAY).add_(self._new_counts)
        self._new_counts = None

    def _count(self, codes: Tensor, mask: Tensor) -> Tensor:
        """(B, S, G) codes to (G, V), how often each occurs in the frames of the mask."""
        counts = torch.zeros_like(self.code_counts).T.contiguous()  # (V, G)
        weights = mask.type_as(counts).flatten()[:, None].expand(-1, codes.shape[2])
        return counts.scatter_add_(0, codes.flatten(0, 1), weights).T.contiguous()


def _shares(counts: Tensor) -> Tensor:
    """(G, V) counts to distributions."""
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
