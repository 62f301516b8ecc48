"""Masked prediction of fixed targets: to which cluster does a frame belong?

HuBERT (Hsu et al., 2021, https://arxiv.org/abs/2106.07447), a contrast of the right cluster against all others. The
clusters are of MFCC as in its first iteration, or of a layer of a trained model as in its second; or else of log-mel
spectra of exactly the samples a frame sees, or of cepstra, which reach into the frames beside it. Two things differ.
Clusters are found when training starts, in its first batches, from the frames that become labels, unless a file gives
them; labels are computed batch by batch and not written to files. And visible frames can count as well: the loss is
divided by the frames' total weight, where fairseq's HuBERT divides by their number, which differs if the weight of
visible frames is neither 0 nor 1.

Shapes: B batch, T samples, S frames, D model dim, E width of the comparison, K clusters.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.batches import TaskBatch
from speechssl.errors import ConfigError, TrainingError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.clusters import describe_layer, fit_centers, nearest_centers
from speechssl.objective.hiding import (
    HidingConfig,
    MaskedBatch,
    SpectralTargetsConfig,
    chance_among,
    masked_context,
    prediction_terms,
)
from speechssl.objective.layer_targets import LayerTargets, LayerTargetsConfig
from speechssl.objective.mfcc import Mfcc
from speechssl.objective.objective import Losses, Objective, TargetFiles, TargetSource
from speechssl.objective.targets import Cepstra, LogMel


class MaskedPredictionConfig(SpectralTargetsConfig):
    """The objective; masks and comparison are those of HuBERT base."""

    kind: Literal["masked_prediction"] = "masked_prediction"
    mask: MaskConfig = MaskConfig(start_prob=0.08)
    targets: LayerTargetsConfig | None = None  # instead of spectra, which then have no effect
    num_clusters: int = Field(100, ge=2)
    fit_seconds: float = Field(1200.0, gt=0)  # of audio, from which the clusters are found

    @property
    def chance(self) -> Mapping[str, float]:
        """Among the clusters."""
        return chance_among(self.num_clusters)

    @property
    def target_files(self) -> TargetFiles | None:
        """The model whose layer is clustered."""
        return None if self.targets is None else TargetFiles(self.targets.model, self.targets.clusters)

    def min_frames(self, geometry: FrameGeometry) -> int:
        """As with spectra, unless these have no effect."""
        return super().min_frames(geometry) if self.targets is None else HidingConfig.min_frames(self, geometry)

    def build(self, encoder: EncoderConfig) -> "MaskedPredictionObjective":
        """Clusters and projection for this encoder."""
        return MaskedPredictionObjective(self, encoder.feature_encoder.geometry, encoder.context.model_dim)


class MaskedPredictionObjective(Objective):
    """Clusters of spectra or of a model's layer, and the loss of predicting them from the context."""

    centers: Tensor

    def __init__(self, config: MaskedPredictionConfig, geometry: FrameGeometry, context_dim: int) -> None:
        super().__init__()
        self.config = config
        self.geometry = geometry
        self.prepare_seconds = config.fit_seconds
        if config.targets is None:
            self._describe_by(config.make_spectrum(geometry))
        self.projection = nn.Linear(context_dim, config.comparison_dim)
        self.embeddings = nn.Parameter(torch.rand(config.num_clusters, config.comparison_dim))

    def _describe_by(self, features: LogMel | Cepstra | Mfcc | LayerTargets) -> None:
        self.features = features
        self.register_buffer("centers", torch.zeros(self.config.num_clusters, features.dim))

    @torch.no_grad()
    def take(self, source: TargetSource) -> None:
        """Take the model whose layer is clustered, and the clusters if they are given.

        Raises:
            ConfigError: it has no such layer, or the clusters are of another number or of something else.
        """
        targets, num_clusters = self.config.targets, self.config.num_clusters
        assert targets is not None
        self._describe_by(LayerTargets(targets, source.encoder, self.geometry))
        if (clusters := source.clusters) is not None:
            clusters.check(describe_layer(source.model, source.digest, source.encoder, targets.layer))
            if len(clusters.centers) != num_clusters:
                found = len(clusters.centers)
                raise ConfigError(
                    f"objective.num_clusters: expected the {found} of {clusters.path}, found {num_clusters}"
                )
            self.centers.copy_(clusters.centers)
            self.prepare_seconds = 0.0

    @torch.no_grad()
    def prepare(self, encoder: SpeechEncoder, batches: Iterable[TaskBatch], seed: int) -> None:
        """Find the clusters by k-means, unless they were given.

        Raises:
            TrainingError: the recordings have fewer frames than there are to be clusters.
        """
        if not self.prepare_seconds:
            return
        device = self.centers.device
        features = torch.cat([self.features(batch.audio.clean_waveforms.to(device)).flatten(0, 1) for batch in batches])
        if len(features) < self.config.num_clusters:
            raise TrainingError(
                f"objective.num_clusters: expected at most the {len(features)} frames of the training data, "
                f"found {self.config.num_clusters}"
            )
        self.centers.copy_(torch.from_numpy(fit_centers(features.cpu().numpy(), self.config.num_clusters, seed)))

    @torch.no_grad()
    def targets(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """The cluster of each frame: (B, T) to (B, S) int64."""
        return nearest_centers(self.features(waveforms, lengths), self.centers)

    def forward(self, encoder: SpeechEncoder, batch: MaskedBatch, step: int) -> Losses:
        """Predict the clusters of hidden and, if they have a weight, visible frames."""
        config = self.config
        masked_frames, context = masked_context(encoder, batch, config.silence)
        targets = self.targets(batch.audio.clean_waveforms, batch.audio.lengths)
        predictions = self.projection(context)
        with torch.autocast(predictions.device.type, enabled=False):
            predictions = F.normalize(predictions.float(), dim=2, eps=1e-8)
            clusters = F.normalize(self.embeddings.float(), dim=1, eps=1e-8)
            logits = predictions @ clusters.T / config.logit_temperature  # (B, S, K)
            losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        correct = logits.argmax(dim=2) == targets
        return prediction_terms(losses, correct, masked_frames, batch, config.visible_weight, config.penalty_weight)
