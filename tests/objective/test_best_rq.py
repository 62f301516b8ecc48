from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from librosa.filters import mel
from losses import loss_sum
from torch import Tensor
from torch.nn import functional as F

from speechssl.data.batches import collate_audio
from speechssl.data.manifest import read_manifest, read_utterance
from speechssl.errors import TrainingError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.objective.best_rq import BestRqConfig, BestRqObjective, RandomQuantizer
from speechssl.objective.targets import StackedLogMel
from speechssl.train.guard import check_limits

CORPUS = Path(__file__).parents[2] / "recipes" / "prompts" / "corpus"
CONFIG = BestRqConfig(
    mask=MaskConfig(start_prob=0.1, span_frames=3), num_bands=6, code_dim=5, num_codebooks=2, codebook_size=7
)
FOUR_A_FRAME = FrameGeometry((20, 4, 4, 2, 2), (10, 4, 4, 2, 2))  # every 40 ms, seeing 650 samples
ONE_A_FRAME = FrameGeometry((700,), (160,))


@pytest.fixture
def objective(make_encoder: Any) -> BestRqObjective:
    torch.manual_seed(0)
    return CONFIG.build(make_encoder().config).eval()


@pytest.fixture(scope="module")
def speech() -> list[Tensor]:
    """A few recordings of the prompts, (1, T)."""
    utterances = list(read_manifest(CORPUS / "pretrain_dev.tsv"))[:12]
    return [torch.from_numpy(read_utterance(utterance))[None] for utterance in utterances]


def reference_spectra(waveform: npt.NDArray[np.float32], geometry: FrameGeometry, num_bands: int) -> npt.NDArray[Any]:
    """Standardized, stacked log-mel spectra of one recording, (S, N F), one window after another."""
    waveform = ((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-8)).astype(np.float64)
    waveform = np.pad(waveform, 1000)  # silence on both sides
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    filters = mel(sr=16_000, n_fft=512, n_mels=num_bands, htk=True, norm=None)
    number = max(geometry.hop_samples // 160, 1)
    frames = []
    for frame in range(geometry.num_frames(len(waveform) - 2000)):
        middle = 1000 + frame * geometry.hop_samples + geometry.receptive_field_samples / 2
        first = int(np.floor(middle - (160 * (number - 1) + 400) / 2))
        pieces = [waveform[first + 160 * i : first + 160 * i + 400] for i in range(number)]
        frames.append([np.log(np.maximum(filters @ np.abs(np.fft.rfft(p * window, 512)) ** 2, 5e-5)) for p in pieces])
    spectra = np.array(frames)  # (S, N, F)
    spectra -= spectra.mean(axis=(0, 1))
    return (spectra / (spectra.std(axis=(0, 1)) + 1e-3)).reshape(len(spectra), -1)


class TestStackedLogMel:
    @pytest.mark.parametrize(("geometry", "number"), [(FOUR_A_FRAME, 4), (ONE_A_FRAME, 1)])
    def test_is_what_numpy_computes_window_by_window(
        self, speech: list[Tensor], geometry: FrameGeometry, number: int
    ) -> None:
        for waveform in speech[:3]:
            found = StackedLogMel(geometry, 80)(waveform)[0].numpy()
            expected = reference_spectra(waveform[0].numpy(), geometry, 80)
            assert found.shape == expected.shape == (geometry.num_frames(waveform.shape[1]), number * 80)
            np.testing.assert_allclose(found, expected, atol=5e-3)

    def test_padding_changes_nothing(self, geometry: FrameGeometry, make_examples: Any) -> None:
        spectrum, examples = StackedLogMel(geometry, 6), make_examples()
        audio = collate_audio(examples)
        together = spectrum(audio.waveforms, audio.lengths)
        for row, example in zip(together, examples, strict=True):
            alone = spectrum(torch.from_numpy(example.waveform)[None])[0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-3, atol=1e-3)
            assert not row[len(alone) :].any()

    def test_every_band_has_frequencies(self) -> None:
        assert (StackedLogMel(FOUR_A_FRAME, 80).mel.filters.sum(dim=0) > 0.1).all()


class TestTargets:
    def test_are_the_codes_that_numpy_finds(self, speech: list[Tensor]) -> None:
        torch.manual_seed(0)
        quantizer = RandomQuantizer(320, 16, 3, 50)
        for waveform in speech[:3]:
            x = StackedLogMel(FOUR_A_FRAME, 80)(waveform)
            for number, found in enumerate(quantizer(x)[0].numpy().T):
                projected = x[0].double().numpy() @ quantizer.projections[number].double().numpy()
                codes = quantizer.codebooks[number].double().numpy()
                np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-6)
                cosines = projected @ codes.T / np.linalg.norm(projected, axis=1, keepdims=True)
                distances = np.linalg.norm(
                    projected[:, None] / np.linalg.norm(projected, axis=1)[:, None, None] - codes, axis=2
                )
                np.testing.assert_array_equal(found, cosines.argmax(axis=1))
                np.testing.assert_array_equal(found, distances.argmin(axis=1))

    def test_do_not_depend_on_level_or_offset(self, speech: list[Tensor]) -> None:
        torch.manual_seed(0)
        spectrum, quantizer = StackedLogMel(FOUR_A_FRAME, 80), RandomQuantizer(320, 16, 1, 8192)
        codes = torch.cat([quantizer(spectrum(waveform))[0] for waveform in speech])
        for factor, offset in ((2.0, 0.0), (0.05, 0.0), (1.0, 0.01)):
            changed = torch.cat([quantizer(spectrum(factor * waveform + offset))[0] for waveform in speech])
            assert (changed == codes).float().mean() > 0.95, (factor, offset)

    def test_differ_between_codebooks_and_seeds(self) -> None:
        x, found = torch.randn(1, 200, 40), []
        for seed in (0, 1, 0):
            torch.manual_seed(seed)
            found.append(RandomQuantizer(40, 16, 2, 100)(x))
        assert torch.equal(found[0], found[2])
        assert (found[0] == found[1]).float().mean() < 0.1
        assert (found[0][:, :, 0] == found[0][:, :, 1]).float().mean() < 0.1

    def test_are_exact_under_autocast(self) -> None:
        torch.manual_seed(0)
        quantizer, x = RandomQuantizer(40, 16, 1, 8192), torch.randn(1, 200, 40)
        expected = quantizer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(quantizer(x), expected)

    def test_are_kept_with_the_weights(self, objective: BestRqObjective, make_encoder: Any, make_examples: Any) -> None:
        audio = collate_audio(make_examples())
        encoder = make_encoder()
        torch.manual_seed(1)
        other = CONFIG.build(encoder.config).eval()
        assert not torch.equal(
            other.targets(audio.waveforms, audio.lengths), objective.targets(audio.waveforms, audio.lengths)
        )
        other.load_state_dict(objective.state_dict())
        assert torch.equal(
            other.targets(audio.waveforms, audio.lengths), objective.targets(audio.waveforms, audio.lengths)
        )

    def test_of_spectra_that_are_not_standardized_are_few(self, speech: list[Tensor]) -> None:
        """Why it is required: spectra of 16-bit samples have a large common mean, which all projections share."""
        torch.manual_seed(0)
        spectrum, quantizer = StackedLogMel(FOUR_A_FRAME, 80), RandomQuantizer(320, 16, 1, 8192)
        standardized, raw = [], []
        for waveform in speech:
            standardized.append(spectrum(waveform))
            pieces = F.pad(2**15 * waveform, (115, 115)).unfold(1, 880, 640).unfold(2, 400, 160)
            raw.append(spectrum.mel(pieces).flatten(2))
        few, many = (len(quantizer(torch.cat(x, dim=1)).unique()) for x in (raw, standardized))
        assert few < many / 3


class TestLoss:
    @pytest.mark.parametrize("visible_weight", [0.0, 0.5])
    def test_is_the_mean_cross_entropy_of_the_codebooks(
        self, objective: BestRqObjective, make_encoder: Any, make_examples: Any, visible_weight: float
    ) -> None:
        objective.config = CONFIG.model_copy(update={"visible_weight": visible_weight})
        encoder = make_encoder()
        batch = objective.config.make_collate(encoder.geometry, 0)(make_examples())
        losses = objective(encoder, batch, 0)
        frames = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
        context = encoder.contextualize(frames, batch.mask)
        targets = objective.targets(batch.audio.waveforms, batch.audio.lengths)
        expected, hidden, correct = 0.0, [], []
        for row, length in enumerate(frames.lengths.tolist()):
            for frame in range(length):
                logits = objective.head(context[row, frame]).view(2, 7)
                loss = F.cross_entropy(logits, targets[row, frame]).item()
                expected += loss * (1.0 if batch.mask[row, frame] else visible_weight)
                if batch.mask[row, frame]:
                    hidden.append(loss)
                    correct += (logits.argmax(dim=1) == targets[row, frame]).tolist()
        assert loss_sum(losses).item() == pytest.approx(expected, rel=1e-4)
        assert batch.counts["hidden"] == len(hidden)
        assert losses["hidden_loss"].sum.item() == pytest.approx(np.sum(hidden), rel=1e-4)
        assert losses["hidden_accuracy"].sum.item() == pytest.approx(np.sum(correct) / 2, rel=1e-4)

    def test_is_the_sum_of_its_utterances(
        self, objective: BestRqObjective, make_encoder: Any, make_examples: Any
    ) -> None:
        encoder = make_encoder()
        collate = CONFIG.make_collate(encoder.geometry, 0)
        together = objective(encoder, collate(make_examples()), 0)
        alone = [objective(encoder, collate([example]), 0) for example in make_examples()]
        assert loss_sum(together).item() == pytest.approx(sum(loss_sum(losses).item() for losses in alone), rel=1e-5)


class TestUse:
    def test_counts_the_hidden_frames_of_recent_updates(
        self, objective: BestRqObjective, make_encoder: Any, make_examples: Any
    ) -> None:
        encoder = make_encoder()
        batch = CONFIG.make_collate(encoder.geometry, 0)(make_examples())
        targets = objective.targets(batch.audio.waveforms, batch.audio.lengths)[batch.mask]  # (hidden, G)
        counts = torch.stack([torch.bincount(codes, minlength=7) for codes in targets.T]).float()
        objective(encoder, batch, 0)  # evaluation counts nothing
        objective.train()
        for _ in range(2):
            objective(encoder, batch, 0)
        objective.after_update(encoder, 1, lambda tensor: tensor.mul_(3))  # as if two other processes had the same
        torch.testing.assert_close(objective.code_counts, 6 * counts)
        losses = objective(encoder, batch, 1)
        objective.after_update(encoder, 2, lambda tensor: None)
        torch.testing.assert_close(objective.code_counts, (6 * 0.99 + 1) * counts)

        measured = {name: (term.sum / len(targets)).item() for name, term in losses.items()}
        assert measured["code_use"] == pytest.approx((counts > 0).float().mean().item())
        shares = (counts / len(targets)).numpy()
        entropies = [-sum(share * np.log(share) for share in row if share) for row in shares]
        assert measured["target_perplexity"] == pytest.approx(np.exp(entropies).mean(), rel=1e-4)

    def test_forgets_a_code_after_a_hundred_updates(self, objective: BestRqObjective) -> None:
        objective._new_counts = F.one_hot(torch.tensor([3, 3]), 7).float()
        for step in range(102):
            objective.after_update(None, step, lambda tensor: None)  # type: ignore[arg-type]  # it needs no encoder
            objective._new_counts = torch.zeros(2, 7)
            assert bool((objective.code_counts >= 0.99**100).any()) == (step <= 100), step

    def test_silence_ends_a_run(self, make_encoder: Any, make_examples: Any) -> None:
        """One code for all frames, and the model predicts it."""
        torch.manual_seed(0)
        objective, encoder = BestRqConfig().build(make_encoder().config), make_encoder()
        limits = BestRqConfig().limits

        def measured(examples: Any) -> dict[str, float]:
            batch = BestRqConfig().make_collate(encoder.geometry, 0)(examples)
            losses = objective(encoder, batch, 0)
            return {name: (term.sum / batch.counts[term.count]).item() for name, term in losses.items()}

        check_limits(limits, measured(make_examples()), 1)
        examples = make_examples()
        for example in examples:
            example.waveform[:] = 0
        with torch.no_grad():
            objective.head.weight.zero_()
        found = measured(examples)
        assert found["target_perplexity"] < 3  # rounding errors give each recording one of its own
        assert found["prediction_perplexity"] == pytest.approx(1)
        with pytest.raises(
            TrainingError, match=r"expected target_perplexity of at least 4, found \S+: nearly all frames"
        ):
            check_limits(limits, found, 1)
