"""Reconstruction: what is damaged and how, measured on planted signals; what is scored; what the skill says."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from losses import loss_sum
from torch import nn

from speechssl.data.batches import Example
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.objective.objective import Term
from speechssl.objective.reconstruction import (
    ReconstructionBatch,
    ReconstructionConfig,
    ReconstructionObjective,
    cut_bands,
    replace_spans,
)
from speechssl.objective.targets import StackedLogMel, mel_edges

CONFIG = ReconstructionConfig(mask=MaskConfig(start_prob=0.1, span_frames=3, min_spans=1), num_bands=6)
EVERYTHING = CONFIG.model_copy(update={"most_cut": 0.5, "noise_probability": 0.5})


def objective_of(config: ReconstructionConfig, make_encoder: Any) -> ReconstructionObjective:
    torch.manual_seed(0)
    return config.build(make_encoder().config).eval()


def many(make_examples: Any, count: int = 400) -> list[Example]:
    waveform = make_examples((1000,))[0].waveform
    return [Example(index, 0, waveform, None) for index in range(count)]


def shares(term: Term, batch: ReconstructionBatch) -> float:
    return float(term.sum) / batch.counts[term.count]


class TestDamage:
    def test_a_band_is_cut_out_and_nothing_else(self) -> None:
        edges, time = mel_edges(20), np.arange(16_000) / 16_000
        tones = [np.sin(2 * np.pi * hertz * time) for hertz in (300, edges[6] + 20, edges[10] - 20, 5000)]
        found = cut_bands(np.sum(tones, axis=0).astype(np.float32), 6, 9, 20)
        left = [2 * np.dot(tone, found) / len(time) for tone in tones]
        np.testing.assert_allclose(left, [1, 0, 0, 1], atol=2e-3)
        assert found.dtype == np.float32
        assert len(cut_bands(found[:-1], 0, 20, 20)) == len(found) - 1

    def test_a_cut_band_is_at_the_floor_of_the_spectrum(self) -> None:
        noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        power = [
            StackedLogMel(FrameGeometry((400,), (320,)), 20).mel(torch.from_numpy(waveform).view(-1, 400)).exp().numpy()
            for waveform in (noise, cut_bands(noise, 12, 15, 20))
        ]
        ratio = power[1].mean(axis=0) / power[0].mean(axis=0)
        assert ratio[12:15].max() < 1e-3
        assert ratio[:11].min() > 0.9
        assert ratio[16:].min() > 0.9

    def test_a_replaced_span_is_another_piece_of_the_recording(self, geometry: FrameGeometry) -> None:
        waveform = np.arange(1000, dtype=np.float32)
        spans = np.zeros(geometry.num_frames(1000), dtype=np.bool_)
        spans[3:6] = spans[20:21] = spans[-1] = True
        starts = set()
        for seed in range(50):
            found = replace_spans(waveform, spans, geometry, np.random.default_rng(seed))
            seen = np.zeros(1000, dtype=np.bool_)
            for first, last in ((3, 5), (20, 20), (len(spans) - 1, len(spans) - 1)):
                start, stop = geometry.span_samples(first, last)
                seen[start:stop] = True
                assert (np.diff(found[start:stop]) == 1).all()
                assert 0 <= found[start] <= 1000 - (stop - start)
            assert (found[~seen] == waveform[~seen]).all()
            starts.add(found[geometry.span_samples(3, 5)[0]])
        assert len(starts) > 40

    def test_four_fifths_are_hidden_a_tenth_replaced_the_rest_left(
        self, geometry: FrameGeometry, make_examples: Any
    ) -> None:
        batch = CONFIG.make_collate(geometry, 0)(many(make_examples))
        is_changed = (batch.audio.waveforms != batch.audio.clean).any(dim=1)
        is_hidden = batch.mask.any(dim=1)
        assert float(is_hidden.float().mean()) == pytest.approx(0.8, abs=0.05)
        assert float(is_changed.float().mean()) == pytest.approx(0.1, abs=0.04)
        assert not (is_changed & is_hidden).any()
        assert batch.spans.any(dim=1).all()
        assert torch.equal(batch.mask[is_hidden], batch.spans[is_hidden])

    def test_noise_is_throughout_and_as_loud_as_said(self, geometry: FrameGeometry, make_examples: Any) -> None:
        config = CONFIG.model_copy(update={"noise_probability": 0.5, "noise_decibels": (3.0, 9.0)})
        examples = [
            Example(e.index, 0, np.float32(10.0 ** (e.index % 3 - 2)) * e.waveform, None) for e in many(make_examples)
        ]
        audio = config.make_collate(geometry, 0)(examples).audio
        noise = (audio.waveforms - audio.clean)[(audio.waveforms != audio.clean).float().mean(dim=1) > 0.9]
        clean = audio.clean[(audio.waveforms != audio.clean).float().mean(dim=1) > 0.9]
        assert len(noise) / 400 == pytest.approx(0.5, abs=0.07)
        decibels = 10 * (clean.var(dim=1) / noise.var(dim=1)).log10()
        ordinary = decibels[decibels > 2.5]  # without what is replaced too
        assert len(ordinary) > 0.85 * len(decibels)
        assert 2.9 < ordinary.min() < 3.5
        assert 8.5 < ordinary.max() < 9.1

    def test_depends_on_the_utterance_alone(self, geometry: FrameGeometry, make_examples: Any) -> None:
        collate = pickle.loads(pickle.dumps(EVERYTHING.make_collate(geometry, 0)))
        examples = make_examples()
        together = collate(examples)
        for row, example in enumerate(examples):
            alone = collate([example])
            length, num_frames = len(example.waveform), geometry.num_frames(len(example.waveform))
            assert torch.equal(together.audio.waveforms[row, :length], alone.audio.waveforms[0])
            assert not together.audio.waveforms[row, length:].any()
            assert torch.equal(together.scored[row, :num_frames], alone.scored[0])
            assert not together.scored[row, num_frames:].any()
        assert not torch.equal(together.audio.waveforms, EVERYTHING.make_collate(geometry, 1)(examples).audio.waveforms)

    def test_what_was_mixed_in_stays_and_the_target_is_clean(self, geometry: FrameGeometry, make_examples: Any) -> None:
        examples = [Example(e.index, 0, e.waveform, None, clean=np.zeros_like(e.waveform)) for e in make_examples()]
        audio = CONFIG.make_collate(geometry, 0)(examples).audio
        assert not audio.clean_waveforms.any()
        assert audio.waveforms.any(dim=1).all()


class TestScored:
    def test_are_the_spans_and_the_band(self, geometry: FrameGeometry, make_examples: Any) -> None:
        widths = []
        for row in EVERYTHING.make_collate(geometry, 0)(many(make_examples)).scored:
            bands = row.all(dim=0)
            spans = row.all(dim=1)
            assert torch.equal(row, spans[:, None] | bands)
            assert spans.any()
            places = bands.nonzero()[:, 0]
            assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)
            widths.append(len(places))
        assert np.bincount(widths).min() > 60  # 0 to 3 of 6 bands, 100 each
        assert max(widths) == 3

    def test_can_be_everything(self, geometry: FrameGeometry, make_examples: Any) -> None:
        examples = make_examples()
        batch = EVERYTHING.model_copy(update={"scored": "all"}).make_collate(geometry, 0)(examples)
        num_frames = [geometry.num_frames(len(example.waveform)) for example in examples]
        assert batch.scored.sum(dim=(1, 2)).tolist() == [6 * number for number in num_frames]
        assert batch.counts["cells"] == 6 * sum(num_frames)
        assert batch.counts["hidden_cells"] == 6 * int(batch.spans.sum())

    def test_something_must_be(self) -> None:
        nothing = MaskConfig(min_spans=0)
        with pytest.raises(ValueError, match=r"mask\.min_spans must be at least 1"):
            ReconstructionConfig(mask=nothing)
        assert ReconstructionConfig(mask=nothing, scored="all").scored == "all"


TWO_A_FRAME = FrameGeometry((40, 20), (16, 20))  # every 20 ms, seeing 344 samples


class TestLoss:
    def test_is_the_absolute_error_in_scored_cells(self, make_encoder: Any, make_examples: Any) -> None:
        encoder = make_encoder(geometry=TWO_A_FRAME)
        objective = EVERYTHING.build(encoder.config).eval()
        batch = EVERYTHING.make_collate(TWO_A_FRAME, 0)(make_examples((6000, 9000, 1500)))
        losses = objective(encoder, batch, 0)
        frames = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
        predictions = objective.head(encoder.contextualize(frames, batch.mask))
        targets = objective.spectrum(batch.audio.clean, batch.audio.lengths)
        assert targets.shape[2] == 2 * 6
        distances = (predictions - targets).abs()
        expected = sum(
            (distances[row, frame, band] + distances[row, frame, 6 + band]).item() / 2
            for row, frame, band in batch.scored.nonzero().tolist()
        )
        assert loss_sum(losses).item() == pytest.approx(expected, rel=1e-4)
        assert batch.counts["cells"] == len(batch.scored.nonzero())

    def test_is_the_sum_of_its_utterances(self, geometry: FrameGeometry, make_encoder: Any, make_examples: Any) -> None:
        objective, encoder = objective_of(EVERYTHING, make_encoder), make_encoder()
        collate = EVERYTHING.make_collate(geometry, 0)
        together = objective(encoder, collate(make_examples()), 0)
        alone = [objective(encoder, collate([example]), 0) for example in make_examples()]
        for name, term in together.items():
            assert float(term.sum) == pytest.approx(
                sum(float(losses[name].sum) for losses in alone), rel=1e-3, abs=1e-3
            )

    def test_skill_is_0_for_the_mean_spectrum_and_1_for_the_right_one(
        self, geometry: FrameGeometry, make_encoder: Any, make_examples: Any
    ) -> None:
        objective, encoder = objective_of(EVERYTHING, make_encoder), make_encoder()
        batch = EVERYTHING.make_collate(geometry, 0)(make_examples((620, 1000, 437)))
        targets = objective.spectrum(batch.audio.clean, batch.audio.lengths)

        class Answer(nn.Module):
            def __init__(self, values: torch.Tensor) -> None:
                super().__init__()
                self.values = values

            def forward(self, context: torch.Tensor) -> torch.Tensor:
                return self.values

        for share, expected in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (-1.0, -1.0)):
            objective.head = Answer(share * targets)
            losses = objective(encoder, batch, 0)
            for name in ("skill", "hidden_skill"):
                assert shares(losses[name], batch) == pytest.approx(expected, abs=1e-5)
        objective.head = Answer(torch.where(batch.spans[:, :, None], 0, targets))  # what is heard, and no more
        losses = objective(encoder, batch, 0)
        assert shares(losses["hidden_skill"], batch) == pytest.approx(0, abs=1e-5)
        assert 0.05 < shares(losses["skill"], batch) < 0.95

    def test_a_silent_recording_has_no_skill(self, geometry: FrameGeometry, make_encoder: Any) -> None:
        objective, encoder = objective_of(CONFIG, make_encoder), make_encoder()
        batch = CONFIG.make_collate(geometry, 0)([Example(0, 0, np.zeros(500, np.float32), None)])
        losses = objective(encoder, batch, 0)
        assert float(losses["skill"].sum) == 0
        assert losses["reconstruction"].sum.isfinite()
