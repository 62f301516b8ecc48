"""Reconstruction: what is the spectrum of the clean recording where something was hidden, cut out or added?

The masked autoencoder of Mockingjay (Liu et al., 2020, https://arxiv.org/abs/1910.12638) and its successor TERA (Liu et
al., 2021, https://arxiv.org/abs/2007.06028), which also cuts out a band of frequencies and adds noise. Scored
everywhere, it is a denoising autoencoder. With the section ``mixing`` it has to leave out another voice too.

Different from both: the encoder hears a waveform, so all of this happens to the waveform rather than to a spectrum. A
span is one of the encoder's frames; hidden, it becomes the mask embedding or silence. Where the originals put other
frames into a span, it gets another piece of the recording. A band is cut out by a filter, and the bands beside it lose
the part that overlaps. Noise has a power relative to the recording; TERA adds N(0, 0.2) to every cell of the spectrum,
in pauses no more than in speech. Spectra are of every 10 ms as in the originals, so that a frame reconstructs all that
fall into its hop. The head is linear.

Shapes: B batch, T samples, S frames, N spectra a frame, F mel bands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from speechssl.data.audio import SAMPLE_RATE, Waveform
from speechssl.data.batches import Example
from speechssl.data.mixing import make_noise, scaled_below
from speechssl.frames import FrameGeometry, Mask, MaskConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.hiding import HidingConfig, MaskedBatch, MaskedCollate, masked_context
from speechssl.objective.objective import Losses, Objective, Term
from speechssl.objective.targets import StackedLogMel, mel_edges
from speechssl.rng import keyed_generator

_CORRUPT = 31  # the purpose of the generator that damages recordings
HIDDEN_SHARE, REPLACED_SHARE = 0.8, 0.1
"""Of the recordings: in the first the spans are hidden, in the second replaced, in the rest left as they are."""

_Share = Annotated[float, Field(ge=0, le=1)]


class ReconstructionConfig(HidingConfig):
    """The objective; the default masks are TERA's 15 % in spans of 7 frames of 10 ms, with frames of 20 ms.

    Attributes:
        num_bands: Mel bands of the spectrum, F.
        most_cut: The largest share of the mel bands that is cut out of a recording (TERA: 0.2); how many and which is
            drawn, none included.
        noise_probability: Of a recording to get white noise throughout.
        noise_decibels: The bounds of the recording's power over that of the noise.
        scored: The spans and the band, or every cell of the spectrum.
    """

    best_metric: ClassVar[str] = "loss"
    shown_metrics: ClassVar[tuple[str, ...]] = ("loss", "skill", "hidden_skill")

    kind: Literal["reconstruction"] = "reconstruction"
    mask: MaskConfig = MaskConfig(start_prob=0.0375, span_frames=4, min_spans=1)
    num_bands: int = Field(80, ge=1)
    most_cut: _Share = 0.0
    noise_probability: _Share = 0.0
    noise_decibels: tuple[float, float] = (0.0, 20.0)
    scored: Literal["changed", "all"] = "changed"

    @model_validator(mode="after")
    def _hides_something(self) -> Self:
        if self.scored == "changed" and self.mask.min_spans < 1:
            raise ValueError("mask.min_spans must be at least 1, or an update could have nothing to predict")
        return self

    def make_collate(self, geometry: FrameGeometry, seed: int) -> "ReconstructionCollate":
        """What hides, replaces, cuts out and adds."""
        return ReconstructionCollate(MaskedCollate(geometry, self.mask, seed), self)

    def build(self, encoder: EncoderConfig) -> "ReconstructionObjective":
        """Spectrum and head for this encoder."""
        return ReconstructionObjective(self, encoder.feature_encoder.geometry, encoder.context.model_dim)


@dataclass(frozen=True)
class ReconstructionBatch(MaskedBatch):
    """Damaged audio; its mask has the spans only where they are hidden. It counts scored "cells" and "hidden_cells"."""

    spans: Tensor  # (B, S) bool, hidden, replaced or left as they are
    scored: Tensor  # (B, S, F) bool; a cell is a band of all spectra of a frame


@dataclass(frozen=True)
class ReconstructionCollate:
    """Makes a batch in the loader's worker: what is damaged depends on (seed, epoch, utterance) alone."""

    masked: MaskedCollate
    config: ReconstructionConfig

    def __call__(self, examples: Sequence[Example]) -> ReconstructionBatch:
        """Draw spans and bands, damage the waveforms and stack them, with the clean ones beside."""
        batch, geometry, config = self.masked(examples), self.masked.geometry, self.config
        heard, mask = batch.audio.waveforms.clone(), batch.mask.clone()
        scored = batch.mask[:, :, None].repeat(1, 1, config.num_bands)
        for row, example in enumerate(examples):
            generator = keyed_generator(self.masked.seed, example.epoch, example.index, _CORRUPT)
            waveform, num_frames = example.waveform, geometry.num_frames(len(example.waveform))
            draw = generator.random()
            if draw >= HIDDEN_SHARE:
                mask[row] = False
            if HIDDEN_SHARE <= draw < HIDDEN_SHARE + REPLACED_SHARE:
                waveform = replace_spans(waveform, batch.mask[row, :num_frames].numpy(), geometry, generator)
            if generator.random() < config.noise_probability:
                noise = make_noise("white", len(waveform), generator)
                waveform = waveform + scaled_below(waveform, noise, generator.uniform(*config.noise_decibels))
            width = int(generator.integers(int(config.most_cut * config.num_bands) + 1))
            first = int(generator.integers(config.num_bands - width + 1))
            if width:
                waveform = cut_bands(waveform, first, first + width, config.num_bands)
            heard[row, : len(waveform)] = torch.from_numpy(waveform)
            scored[row, :num_frames, first : first + width] = True
            if config.scored == "all":
                scored[row, :num_frames] = True
        counts = {"cells": int(scored.sum()), "hidden_cells": int(batch.mask.sum()) * config.num_bands}
        audio = replace(batch.audio, waveforms=heard, clean=batch.audio.clean_waveforms)
        unchanged = {"hidden": batch.hidden, "weights": batch.weights}
        return ReconstructionBatch(audio, counts, mask, **unchanged, spans=batch.mask, scored=scored)


def replace_spans(waveform: Waveform, spans: Mask, geometry: FrameGeometry, generator: np.random.Generator) -> Waveform:
    """Replace every sample that the frames of a span see by a piece of the same recording from a random place."""
    replaced = waveform.copy()
    borders = np.flatnonzero(np.diff(np.pad(spans, 1).astype(np.int8)))
    for first, stop in borders.reshape(-1, 2).tolist():
        start, end = geometry.span_samples(first, stop - 1)
        source = int(generator.integers(len(waveform) - (end - start) + 1))
        replaced[start:end] = waveform[source : source + end - start]
    return replaced


def cut_bands(waveform: Waveform, first: int, stop: int, num_bands: int) -> Waveform:
    """Remove every frequency that counts in the mel bands [first, stop)."""
    edges = mel_edges(num_bands)
    spectrum = np.fft.rfft(waveform)
    hertz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    spectrum[(hertz >= edges[first]) & (hertz <= edges[stop + 1])] = 0
    return np.fft.irfft(spectrum, len(waveform)).astype(np.float32)


class ReconstructionObjective(Objective):
    """The spectra of clean recordings, and the loss of reconstructing them."""

    def __init__(self, config: ReconstructionConfig, geometry: FrameGeometry, context_dim: int) -> None:
        super().__init__()
        self.config = config
        self.spectrum = StackedLogMel(geometry, config.num_bands)
        self.head = nn.Linear(context_dim, self.spectrum.dim)

    def forward(self, encoder: SpeechEncoder, batch: ReconstructionBatch, step: int) -> Losses:
        """Compare the context with the clean spectra.

        Returns:
            Sums over scored cells: the absolute error, and the skill, 1 minus the error as a share of what the
            recording's mean spectrum gives: 0 if nothing was learned, 1 if all. ``hidden_skill`` is that of all bands
            of the spans, which in a tenth of the recordings can be heard.
        """
        _, context = masked_context(encoder, batch, self.config.silence)
        predictions = self.head(context)
        targets = self.spectrum(batch.audio.clean_waveforms, batch.audio.lengths)
        errors, of_mean = (  # (B, S, F), means over the spectra of a frame
            distances.abs().unflatten(2, (-1, self.config.num_bands)).mean(dim=2)
            for distances in (predictions.float() - targets, targets)
        )
        spans = batch.spans[:, :, None].expand_as(batch.scored)
        return {
            "reconstruction": Term((errors * batch.scored).sum(), "cells", 1.0),
            "skill": Term(_skill(errors, of_mean, batch.scored), "cells"),
            "hidden_skill": Term(_skill(errors, of_mean, spans), "hidden_cells"),
        }


def _skill(errors: Tensor, of_mean: Tensor, cells: Tensor) -> Tensor:
    """Add up the skill of each recording in some of its (B, S, F) cells, as often as there are cells."""
    error, baseline = (errors * cells).sum(dim=(1, 2)), (of_mean * cells).sum(dim=(1, 2))
    skill = torch.where(baseline > 0, 1 - error / baseline.clamp(min=1e-6), 0)
    return (skill * cells.sum(dim=(1, 2))).sum()
