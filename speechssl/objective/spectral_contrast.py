"""A contrast against fixed targets: which frame of the recording sounds like that, by its spectrum?

The contrast of wav2vec 2.0 (Baevski et al., 2020, https://arxiv.org/abs/2006.11477) with two differences. What is told
apart are spectra of exactly the samples a frame sees, or cepstra, which reach into the frames beside it, behind a
learned linear map, rather than learned codes, which in a small budget stay at chance. And visible frames can count as
well. All other frames of the recording are distractors.

Shapes: B batch, S frames, D model dim, E width of the comparison.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.hiding import MaskedBatch, SpectralTargetsConfig, masked_context, prediction_terms
from speechssl.objective.objective import Losses, Objective


class SpectralContrastConfig(SpectralTargetsConfig):
    """The objective; masks and comparison are those of wav2vec 2.0 base."""

    kind: Literal["spectral_contrast"] = "spectral_contrast"

    def build(self, encoder: EncoderConfig) -> "SpectralContrastObjective":
        """Spectra and projections for this encoder."""
        return SpectralContrastObjective(self, encoder.feature_encoder.geometry, encoder.context.model_dim)


class SpectralContrastObjective(Objective):
    """Spectra, and the loss of finding the right one from the context."""

    def __init__(self, config: SpectralContrastConfig, geometry: FrameGeometry, context_dim: int) -> None:
        super().__init__()
        self.config = config
        self.spectrum = config.make_spectrum(geometry)
        self.target_projection = nn.Linear(self.spectrum.dim, config.comparison_dim)
        self.context_projection = nn.Linear(context_dim, config.comparison_dim)

    def forward(self, encoder: SpeechEncoder, batch: MaskedBatch, step: int) -> Losses:
        """Compare the context at each frame with the spectra of all frames of its recording."""
        config = self.config
        masked_frames, context = masked_context(encoder, batch, config.silence)
        spectra = self.spectrum(batch.audio.clean_waveforms, batch.audio.lengths)
        predictions, targets = self.context_projection(context), self.target_projection(spectra)
        with torch.autocast(predictions.device.type, enabled=False):
            predictions = F.normalize(predictions.float(), dim=2, eps=1e-8)
            targets = F.normalize(targets.float(), dim=2, eps=1e-8)
            logits = predictions @ targets.transpose(1, 2) / config.logit_temperature  # (B, S, S)
        positions = torch.arange(logits.shape[1], device=logits.device)
        if masked_frames.lengths is not None:
            logits = logits.masked_fill((positions >= masked_frames.lengths[:, None])[:, None, :], -torch.inf)
        losses = F.cross_entropy(logits.transpose(1, 2), positions.expand(logits.shape[:2]), reduction="none")
        correct = logits.argmax(dim=2) == positions
        return prediction_terms(losses, correct, masked_frames, batch, config.visible_weight, config.penalty_weight)
