"""Autoregressive predictive coding: from what was said so far, predict the spectrum some frames ahead.

Chung et al., 2019, https://arxiv.org/abs/1904.03240; with a quantizer, VQ-APC (Chung et al., 2020,
https://arxiv.org/abs/2005.08392). As published, the spectra are standardized over the recording, the head is linear and
the loss is their L1 distance, over all frames that have a frame so many ahead. What differs: the published network is
three GRUs over spectra every 10 ms, which predicts 5 of them ahead; here any context network that does not see the
future reads waveforms, and of an encoder with longer hops a frame predicts the 10 ms spectra of a whole hop at once.

Shapes: B batch, T samples, S frames, D model dim, N spectra a frame, F mel bands, A frames ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from speechssl.data.batches import Example, TaskBatch, collate_audio
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.quantizer import Quantizer, QuantizerConfig
from speechssl.objective.objective import Losses, Objective, ObjectiveConfig, Term
from speechssl.objective.targets import StackedLogMel

_LEAST_BASELINE = 0.1  # an error of next to nothing, as in digital silence, is no measure for others


class ApcConfig(ObjectiveConfig):
    """The objective; the defaults are published for frames every 10 ms."""

    best_metric: ClassVar[str] = "prediction"
    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "skill", "skill_over_last")
    predicts_future: ClassVar[bool] = True

    kind: Literal["apc"] = "apc"
    num_ahead: int = Field(5, ge=1)  # frames from the last that is known to the one that is predicted, A
    num_bands: int = Field(80, ge=1)  # mel bands of the spectra
    # Of the context, before the head (VQ-APC: one codebook of 512 entries, temperature 0.5); None predicts from it.
    quantizer: QuantizerConfig | None = None

    def min_frames(self, geometry: FrameGeometry) -> int:
        """A frame and the one that it predicts."""
        return self.num_ahead + 1

    def make_collate(self, geometry: FrameGeometry, seed: int) -> "ApcCollate":
        """What counts the frames that have one to predict."""
        return ApcCollate(geometry, self.num_ahead)

    def build(self, encoder: EncoderConfig) -> "ApcObjective":
        """Spectra and head for this encoder."""
        return ApcObjective(self, encoder.feature_encoder.geometry, encoder.context.model_dim)


@dataclass(frozen=True)
class ApcCollate:
    """Makes a batch that counts "frames", those that have a frame to predict; nothing is drawn."""

    geometry: FrameGeometry
    num_ahead: int

    def __call__(self, examples: Sequence[Example]) -> TaskBatch:
        """Stack the audio."""
        lengths = [self.geometry.num_frames(len(example.waveform)) for example in examples]
        return TaskBatch(
            collate_audio(examples), {"frames": sum(max(length - self.num_ahead, 0) for length in lengths)}
        )


class ApcObjective(Objective):
    """A linear prediction of spectra from the context."""

    def __init__(self, config: ApcConfig, geometry: FrameGeometry, context_dim: int) -> None:
        super().__init__()
        self.config = config
        self.spectrum = StackedLogMel(geometry, config.num_bands)
        self.quantizer = None if config.quantizer is None else Quantizer(config.quantizer, context_dim)
        if self.quantizer is not None:  # as any linear map: wav2vec 2.0's wide one nearly decides on the codes at once
            self.quantizer.projection.reset_parameters()
        input_dim = context_dim if config.quantizer is None else config.quantizer.code_dim
        self.head = nn.Linear(input_dim, self.spectrum.dim)

    def forward(self, encoder: SpeechEncoder, batch: TaskBatch, step: int) -> Losses:
        """Predict the spectra ahead; ``step`` sets the Gumbel temperature.

        Returns:
            Sums over frames: the mean L1 distance over the bands; what is gained over predicting that the last 10 ms go
            on, or the recording's mean, each 1 less the recording's ratio of errors; perplexity with a quantizer.
        """
        audio, ahead = batch.audio, self.config.num_ahead
        frames = encoder.extract_frames(audio.waveforms, audio.lengths)
        context = encoder.contextualize(frames)[:, :-ahead]  # (B, S - A, D), frames that may have one to predict
        num_known = torch.full_like(context[:, 0, 0], context.shape[1], dtype=torch.int64)  # (B,)
        if frames.lengths is not None:
            num_known = (frames.lengths - ahead).clamp(min=0)
        weights = (torch.arange(context.shape[1], device=context.device) < num_known[:, None]).float()
        terms = {}
        if self.quantizer is not None:
            temperature = self.quantizer.temperature(step)
            quantized = self.quantizer(context.flatten(0, 1), weights.flatten(), temperature)
            context = quantized.codes.unflatten(0, weights.shape)
            terms["code_perplexity"] = Term(quantized.code_perplexity * weights.sum(), "frames")
        predictions = self.head(context)
        spectra = self.spectrum(audio.clean_waveforms, audio.lengths)
        targets = spectra[:, ahead:]
        last = spectra[:, :-ahead, -self.config.num_bands :].repeat(1, 1, self.spectrum.num_spectra)
        with torch.autocast(context.device.type, enabled=False):
            errors, of_last, of_mean = (
                ((guess - targets).abs().mean(dim=2) * weights).sum(dim=1)  # (B,)
                for guess in (predictions.float(), last, torch.zeros_like(targets))
            )
        terms["prediction"] = Term(errors.sum(), "frames", 1.0)
        for name, baseline in (("skill_over_last", of_last), ("skill", of_mean)):
            ratio = errors / torch.maximum(baseline, _LEAST_BASELINE * num_known).clamp(min=1e-8)
            terms[name] = Term(((1 - ratio) * num_known).sum(), "frames")
        return terms
