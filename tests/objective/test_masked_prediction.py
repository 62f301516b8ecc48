import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from librosa.filters import mel
from losses import loss_sum
from torch.nn import functional as F

from speechssl.data.batches import Example, TaskBatch, collate_audio
from speechssl.errors import TrainingError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.objective.masked_prediction import MaskedPredictionConfig, MaskedPredictionObjective
from speechssl.objective.targets import Cepstra, LogMel, mel_filters

CONFIG = MaskedPredictionConfig(
    mask=MaskConfig(start_prob=0.1, span_frames=3), num_clusters=7, num_bands=6, comparison_dim=8
)


@pytest.fixture
def objective(make_encoder: Any, make_examples: Any) -> MaskedPredictionObjective:
    torch.manual_seed(0)
    objective = CONFIG.build(make_encoder().config).eval()
    prepare(objective, make_examples(), seed=0)
    return objective


def prepare(objective: MaskedPredictionObjective, examples: Sequence[Example], seed: int) -> None:
    batches = (TaskBatch(collate_audio([example]), {}) for example in examples)
    objective.prepare(None, batches, seed)  # type: ignore[arg-type]  # spectra need no encoder


class TestLogMel:
    @pytest.mark.parametrize("num_samples", [199, 250, 400, 465])
    @pytest.mark.parametrize("num_bands", [10, 40])
    def test_filters_are_those_of_librosa(self, num_samples: int, num_bands: int) -> None:
        expected = mel(sr=16_000, n_fft=num_samples, n_mels=num_bands, htk=True, norm=None)
        np.testing.assert_array_equal(mel_filters(num_samples, num_bands), expected.T)

    def test_finds_a_tone_in_its_band_at_its_time(self) -> None:
        geometry = FrameGeometry((400,), (320,))
        spectrum = LogMel(geometry, 40)
        time = torch.arange(16_000) / 16_000
        waveform = torch.where(time < 0.5, 0.1 * torch.sin(2 * math.pi * 1000 * time), 1e-5 * torch.randn(16_000))
        found = spectrum(waveform[None])[0]
        assert found.shape == (49, 80)
        band = int(spectrum.mel.filters[1000 * 400 // 16_000].argmax())
        assert (found[:24, :40].argmax(dim=1) == band).all()
        assert found[:24, band].min() > found[26:, band].max() + 5
        change = found[:, 40 + band]
        assert change[22:27].min() < -1
        assert change[3:20].abs().max() < 0.1

    def test_does_not_depend_on_level_or_offset(self) -> None:
        spectrum, waveform = LogMel(FrameGeometry((400,), (320,)), 40), torch.randn(1, 8000) / 20
        waveform[:, 3000:5000] *= 1e-4  # as quiet as the floor
        for changed in (2 * waveform, 0.01 * waveform, waveform + 0.1):
            torch.testing.assert_close(spectrum(changed), spectrum(waveform), rtol=0, atol=0.05)

    def test_change_is_the_slope_over_five_frames(self) -> None:
        found = LogMel(FrameGeometry((400,), (320,)), 5)(torch.randn(1, 8000))[0].numpy()
        for frame in range(2, len(found) - 2):
            slope = np.polyfit(range(5), found[frame - 2 : frame + 3, :5], 1)[0]
            np.testing.assert_allclose(found[frame, 5:], slope, atol=1e-4)

    def test_padding_changes_nothing(self, geometry: FrameGeometry, make_examples: Any) -> None:
        spectrum, examples = LogMel(geometry, 6), make_examples()
        audio = collate_audio(examples)
        together = spectrum(audio.waveforms, audio.lengths)
        for row, example in zip(together, examples, strict=True):
            alone = spectrum(torch.from_numpy(example.waveform)[None])[0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-4)


class TestCepstra:
    def test_are_standardized_coefficients_of_three_frames(self) -> None:
        geometry = FrameGeometry((400,), (320,))
        waveform = torch.randn(1, 8000)
        found = Cepstra(geometry, 40)(waveform)[0].numpy()
        bands, changes = LogMel(geometry, 40)(waveform)[0].chunk(2, dim=1)
        expected = np.concatenate(
            [scipy.fft.dct(part.numpy(), norm="ortho")[:, :13] for part in (bands, changes)], axis=1
        )
        expected = (expected - expected.mean(axis=0)) / (expected.std(axis=0) + 1e-3)
        assert found.shape == (len(expected), 3 * 26)
        np.testing.assert_allclose(found[:, 26:52], expected, atol=1e-3)
        np.testing.assert_allclose(found[1:, :26], expected[:-1], atol=1e-3)
        np.testing.assert_allclose(found[:-1, 52:], expected[1:], atol=1e-3)
        np.testing.assert_allclose(found[-1, 52:], expected[-1], atol=1e-3)

    def test_padding_changes_nothing(self, geometry: FrameGeometry, make_examples: Any) -> None:
        cepstra, examples = Cepstra(geometry, 6), make_examples()
        audio = collate_audio(examples)
        together = cepstra(audio.waveforms, audio.lengths)
        for row, example in zip(together, examples, strict=True):
            alone = cepstra(torch.from_numpy(example.waveform)[None])[0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-3, atol=1e-3)

    def test_are_clustered_if_wished(self, make_encoder: Any, make_examples: Any) -> None:
        objective = CONFIG.model_copy(update={"spectra": "cepstra"}).build(make_encoder().config)
        prepare(objective, make_examples(), seed=0)
        assert objective.centers.shape == (7, 3 * 12)
        audio = collate_audio(make_examples())
        expected = torch.cdist(objective.features(audio.waveforms, audio.lengths), objective.centers[None])
        assert torch.equal(objective.targets(audio.waveforms, audio.lengths), expected.argmin(dim=2))


class TestTargets:
    def test_are_the_nearest_centers_of_well_filled_clusters(
        self, objective: MaskedPredictionObjective, make_examples: Any
    ) -> None:
        audio = collate_audio(make_examples())
        targets = objective.targets(audio.waveforms, audio.lengths)
        spectra = objective.features(audio.waveforms, audio.lengths)
        assert torch.equal(targets, torch.cdist(spectra, objective.centers[None]).argmin(dim=2))
        assert len(targets.unique()) == 7

    def test_are_exact_under_autocast(self, objective: MaskedPredictionObjective, make_examples: Any) -> None:
        audio = collate_audio(make_examples((1000,)))
        torch.manual_seed(0)
        objective.centers.copy_(objective.features(audio.waveforms)[0, 0] + 0.01 * torch.randn(7, 12))
        expected = objective.targets(audio.waveforms, None)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(objective.targets(audio.waveforms, None), expected)

    def test_fit_is_the_same_for_the_same_seed(self, make_encoder: Any, make_examples: Any) -> None:
        centers = []
        for seed in (0, 0, 1):
            objective = CONFIG.build(make_encoder().config)
            prepare(objective, make_examples(), seed)
            centers.append(objective.centers)
        assert torch.equal(centers[0], centers[1])
        assert not torch.equal(centers[0], centers[2])

    def test_more_clusters_than_frames_are_refused(self, make_encoder: Any, make_examples: Any) -> None:
        objective = CONFIG.model_copy(update={"num_clusters": 50}).build(make_encoder().config)
        with pytest.raises(TrainingError, match=r"num_clusters: expected at most the 49 frames .* found 50$"):
            prepare(objective, make_examples((1000,)), seed=0)

    def test_are_kept_with_the_weights(self, objective: MaskedPredictionObjective, make_encoder: Any) -> None:
        other = CONFIG.build(make_encoder().config)
        other.load_state_dict(objective.state_dict())
        assert torch.equal(other.centers, objective.centers)
        assert other.centers.any()


class TestLoss:
    @pytest.mark.parametrize("visible_weight", [0.0, 0.5])
    def test_is_cross_entropy_over_the_cosines(
        self,
        objective: MaskedPredictionObjective,
        make_encoder: Any,
        make_examples: Any,
        geometry: FrameGeometry,
        visible_weight: float,
    ) -> None:
        objective.config = CONFIG.model_copy(update={"visible_weight": visible_weight})
        encoder, batch = make_encoder(), objective.config.make_collate(geometry, 0)(make_examples())
        losses = objective(encoder, batch, 0)
        frames = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
        context = encoder.contextualize(frames, batch.mask)
        targets = objective.targets(batch.audio.waveforms, batch.audio.lengths)
        expected, count, hidden_losses, hidden_correct = 0.0, 0.0, [], []
        for row, length in enumerate(frames.lengths.tolist()):
            for frame in range(length):
                prediction = objective.projection(context[row, frame])
                logits = F.cosine_similarity(prediction[None], objective.embeddings, dim=1) / 0.1
                loss = F.cross_entropy(logits, targets[row, frame]).item()
                weight = 1.0 if batch.mask[row, frame] else visible_weight
                expected += weight * (loss + 10 * frames.energy[row].item())
                count += weight
                if batch.mask[row, frame]:
                    hidden_losses.append(loss)
                    hidden_correct.append(bool(logits.argmax() == targets[row, frame]))
        assert batch.counts["frames"] == pytest.approx(count)
        assert batch.counts["hidden"] == len(hidden_losses)
        assert loss_sum(losses).item() == pytest.approx(expected, rel=1e-4)
        assert losses["hidden_loss"].sum.item() == pytest.approx(np.sum(hidden_losses), rel=1e-4)
        assert losses["hidden_accuracy"].sum.item() == pytest.approx(np.sum(hidden_correct), rel=1e-4)

    def test_is_the_sum_of_its_utterances(
        self, objective: MaskedPredictionObjective, make_encoder: Any, make_examples: Any, geometry: FrameGeometry
    ) -> None:
        objective.config = CONFIG.model_copy(update={"visible_weight": 0.5})
        encoder, collate = make_encoder(), CONFIG.make_collate(geometry, 0)
        together = objective(encoder, collate(make_examples()), 0)
        alone = [objective(encoder, collate([example]), 0) for example in make_examples()]
        assert loss_sum(together).item() == pytest.approx(sum(loss_sum(losses).item() for losses in alone), rel=1e-5)

    def test_a_mask_that_may_hide_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"mask\.min_spans must be at least 1"):
            MaskedPredictionConfig(mask=MaskConfig(min_spans=0))
