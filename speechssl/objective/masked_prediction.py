"""Masked prediction of fixed targets: to which cluster of spectra does a frame belong?

The first iteration of HuBERT (Hsu et al., 2021, https://arxiv.org/abs/2106.07447), a contrast of the right cluster
against all others, with two differences. The clusters are of log-mel spectra of exactly the samples a frame sees, or of
cepstra, which reach into the frames beside it; they are found when training starts and not written to files. And
visible frames can count as well: the loss is divided by the frames' total weight, where fairseq's HuBERT divides by
their number, which differs if the weight of visible frames is neither 0 nor 1.

Shapes: B batch, T samples, S frames, D model dim, E width of the comparison, K clusters.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.batches import TaskBatch
from speechssl.errors import TrainingError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.hiding import MaskedBatch, SpectralTargetsConfig, masked_context, prediction_terms
from speechssl.objective.objective import Losses, Objective


class MaskedPredictionConfig(SpectralTargetsConfig):
    """The objective; masks and comparison are those of HuBERT base."""

    kind: Literal["masked_prediction"] = "masked_prediction"
    mask: MaskConfig = MaskConfig(start_prob=0.08)
    num_clusters: int = Field(100, ge=2)
    fit_seconds: float = Field(1200.0, gt=0)  # of audio, from which the clusters are found

    def build(self, encoder: EncoderConfig) -> "MaskedPredictionObjective":
        """Clusters and projection for this encoder."""
        return MaskedPredictionObjective(self, encoder.feature_encoder.geometry, encoder.context.model_dim)


class MaskedPredictionObjective(Objective):
    """Clusters of spectra, and the loss of predicting them from the context."""

    centers: Tensor

    def __init__(self, config: MaskedPredictionConfig, geometry: FrameGeometry, context_dim: int) -> None:
        super().__init__()
        self.config = config
        self.prepare_seconds = config.fit_seconds
        self.spectrum = config.make_spectrum(geometry)
        self.register_buffer("centers", torch.zeros(config.num_clusters, self.spectrum.dim))
        self.projection = nn.Linear(context_dim, config.comparison_dim)
        self.embeddings = nn.Parameter(torch.rand(config.num_clusters, config.comparison_dim))

    @torch.no_grad()
    def prepare(self, encoder: SpeechEncoder, batches: Iterable[TaskBatch], seed: int) -> None:
        """Find the clusters by k-means.

        Raises:
            TrainingError: the recordings have fewer frames than there are to be clusters.
        """
        from sklearn.cluster import KMeans  # here, since it is slow to load
        from threadpoolctl import threadpool_limits

        device = self.centers.device
        spectra = torch.cat([self.spectrum(batch.audio.clean_waveforms.to(device)).flatten(0, 1) for batch in batches])
        if len(spectra) < self.config.num_clusters:
            raise TrainingError(
                f"objective.num_clusters: expected at most the {len(spectra)} frames of the training data, "
                f"found {self.config.num_clusters}"
            )
        k_means = KMeans(self.config.num_clusters, n_init=1, max_iter=50, random_state=seed)
        with threadpool_limits(1):  # several threads would add in an order of their own each time
            self.centers.copy_(torch.from_numpy(k_means.fit(spectra.cpu().numpy()).cluster_centers_))

    @torch.no_grad()
    def targets(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """The cluster of each frame: (B, T) to (B, S) int64."""
        spectra = self.spectrum(waveforms, lengths)
        with torch.autocast(waveforms.device.type, enabled=False):  # or near centers would be one
            nearest: Tensor = (self.centers.square().sum(dim=1) - 2 * spectra @ self.centers.T).argmin(dim=2)
        return nearest

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
