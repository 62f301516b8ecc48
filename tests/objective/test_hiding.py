from collections.abc import Callable
from typing import Any

import pytest
import torch
from losses import loss_sum
from torch import Tensor

from speechssl.data.batches import Example
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.causal import CausalConfig
from speechssl.model.encoder import SILENCE, EncoderConfig, SpeechEncoder, normalize_waveforms, silence_frames
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.objective.contrastive import ContrastiveConfig
from speechssl.objective.hiding import MaskedBatch, MaskedCollate, SilencedSpansConfig, clean_frames, masked_context
from speechssl.objective.masked_prediction import MaskedPredictionConfig

MASK = MaskConfig(start_prob=0.1, span_frames=3)


@pytest.fixture
def batch(geometry: FrameGeometry, make_examples: Callable[..., list[Example]]) -> MaskedBatch:
    return MaskedCollate(geometry, MASK, seed=0)(make_examples())


def valid_frames(encoder: SpeechEncoder, batch: MaskedBatch) -> Tensor:
    return torch.arange(batch.mask.shape[1]) < encoder.geometry.num_frames(batch.audio.lengths)[:, None]


def silenced_by_hand(geometry: FrameGeometry, waveforms: Tensor, mask: Tensor) -> Tensor:
    silenced = waveforms.clone()
    for row, frame in mask.nonzero().tolist():
        start, stop = geometry.span_samples(frame, frame)
        silenced[row, start:stop] = SILENCE
    return silenced


class TestCollate:
    def test_counts_hidden_and_all_frames(self, batch: MaskedBatch) -> None:
        num_frames = 30 + 49 + 9 + 2 + 21 + 4
        num_hidden = int(batch.mask.sum())
        assert num_hidden == batch.weights.sum() < num_frames
        assert batch.counts == {"hidden": num_hidden, "visible": num_frames - num_hidden, "frames": num_hidden}
        for row, weights, mask in zip(batch.hidden, batch.weights, batch.mask, strict=True):
            assert torch.equal(row[weights.bool()], mask.nonzero().flatten())

    def test_hides_as_many_frames_of_each_where_counts_are_equal(
        self, geometry: FrameGeometry, make_examples: Callable[..., list[Example]]
    ) -> None:
        collate = MaskedCollate(geometry, MASK.model_copy(update={"equal_counts": True}), seed=0)
        batch = collate(make_examples())
        assert len(set(batch.mask.sum(dim=1).tolist())) == 1
        assert batch.counts["hidden"] == batch.mask.sum() == batch.hidden.numel()
        assert torch.equal(batch.mask, collate(make_examples()).mask)


class TestSilence:
    def test_takes_every_sample_that_a_hidden_frame_sees_and_no_other(
        self, geometry: FrameGeometry, batch: MaskedBatch
    ) -> None:
        waveforms = torch.ones(6, 1003)  # three samples more than any frame sees
        found = silence_frames(waveforms, batch.mask, geometry)
        assert torch.equal(found, silenced_by_hand(geometry, waveforms, batch.mask))
        assert (found[:, -3:] == 1).all()
        assert 0.1 < found.mean() < 0.9

    def test_comes_after_the_normalisation_of_the_recording_as_it_sounds(
        self, make_encoder: Any, batch: MaskedBatch
    ) -> None:
        encoder, plain = make_encoder(normalize=True), make_encoder()
        audio = batch.audio
        normal = silenced_by_hand(encoder.geometry, normalize_waveforms(audio.waveforms, audio.lengths), batch.mask)
        expected = plain.extract_frames(normal, audio.lengths).values
        assert torch.equal(encoder.extract_frames(audio.waveforms, audio.lengths, batch.mask).values, expected)

    @pytest.mark.parametrize("mask_embedding", [False, True])
    def test_is_what_the_context_network_gets(
        self, make_encoder: Any, batch: MaskedBatch, mask_embedding: bool
    ) -> None:
        encoder, audio = make_encoder(), batch.audio
        heard, context = masked_context(encoder, batch, SilencedSpansConfig(mask_embedding=mask_embedding))
        frames = encoder.extract_frames(silenced_by_hand(encoder.geometry, audio.waveforms, batch.mask), audio.lengths)
        assert torch.equal(heard.values, frames.values)
        assert torch.equal(heard.energy, frames.energy)
        assert torch.equal(context, encoder.contextualize(frames, batch.mask if mask_embedding else None))

    def test_without_it_frames_are_hidden_from_the_context_network(self, make_encoder: Any, batch: MaskedBatch) -> None:
        encoder = make_encoder()
        heard, context = masked_context(encoder, batch, None)
        frames = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
        assert torch.equal(heard.values, frames.values)
        assert torch.equal(context, encoder.contextualize(frames, batch.mask))
        assert clean_frames(encoder, batch, None, heard) is heard.values

    def test_hidden_samples_reach_the_context_in_no_way(self, make_encoder: Any, batch: MaskedBatch) -> None:
        encoder = make_encoder()
        batch.audio.waveforms.requires_grad_()
        _, context = masked_context(encoder, batch, SilencedSpansConfig())
        context[valid_frames(encoder, batch)].square().sum().backward()
        gradient = batch.audio.waveforms.grad
        is_heard = silence_frames(torch.ones_like(gradient), batch.mask, encoder.geometry) == 1
        assert not gradient[~is_heard].any()
        assert gradient[is_heard].any()

    @pytest.mark.parametrize("epsilon", [1e-5, 5e-4])
    def test_leaves_gradients_as_large_as_they_are_without_it(self, make_examples: Any, epsilon: float) -> None:
        """Also through many layers of norms without biases, of which each has its steepest slope at zeros."""
        features = FeatureEncoderConfig(
            dims=(32,) * 5, kernels=(10, 4, 3, 2, 2), strides=(5, 2, 2, 1, 1), norm="layer", norm_epsilon=epsilon
        )
        torch.manual_seed(0)
        encoder = SpeechEncoder(
            EncoderConfig(feature_encoder=features, context=CausalConfig(), normalize_waveforms=1e-8)
        )
        batch = MaskedCollate(encoder.geometry, MASK, seed=0)(make_examples((2000,)))
        sizes = []
        for silence in (None, SilencedSpansConfig()):
            frames, _ = masked_context(encoder, batch, silence)
            weights = torch.randn(frames.values.shape, generator=torch.Generator().manual_seed(0))
            gradients = torch.autograd.grad((frames.values * weights).sum(), [*encoder.feature_encoder.parameters()])
            sizes.append(torch.nn.utils.get_total_norm(gradients).item())
        assert sizes[1] < 10 * sizes[0]

    @pytest.mark.parametrize("target_gradient", [False, True])
    def test_targets_are_of_the_recording_as_it_sounds(
        self, make_encoder: Any, batch: MaskedBatch, target_gradient: bool
    ) -> None:
        encoder = make_encoder()
        silence = SilencedSpansConfig(target_gradient=target_gradient)
        heard, _ = masked_context(encoder, batch, silence)
        targets = clean_frames(encoder, batch, silence, heard)
        expected = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths).values
        valid = valid_frames(encoder, batch)  # without a gradient, frames come by the ways of inference
        torch.testing.assert_close(targets[valid], expected[valid], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(heard.values[valid], expected[valid], atol=0.1)
        assert targets.requires_grad is target_gradient

    @pytest.mark.parametrize("objective", [ContrastiveConfig, MaskedPredictionConfig])
    @pytest.mark.parametrize("mask_embedding", [False, True])
    def test_every_parameter_takes_part_in_training(
        self, make_encoder: Any, make_examples: Any, geometry: FrameGeometry, objective: Any, mask_embedding: bool
    ) -> None:
        """Or several processes would wait for its gradient."""
        encoder = make_encoder().train()
        config = objective(mask=MASK, silence=SilencedSpansConfig(mask_embedding=mask_embedding, target_gradient=False))
        model = config.build(encoder.config)
        loss_sum(model(encoder, config.make_collate(geometry, 0)(make_examples()), 0)).backward()
        for name, parameter in [*encoder.named_parameters(), *model.named_parameters()]:
            assert parameter.grad is not None, name

    def test_the_batch_is_the_sum_of_its_utterances(
        self, make_encoder: Any, make_examples: Any, geometry: FrameGeometry
    ) -> None:
        encoder, config = make_encoder(), ContrastiveConfig(mask=MASK, silence=SilencedSpansConfig())
        torch.manual_seed(0)
        objective, collate = config.build(encoder.config).eval(), config.make_collate(geometry, 0)
        together = objective(encoder, collate(make_examples()), 0)
        alone = [objective(encoder, collate([example]), 0) for example in make_examples()]
        for name in ("contrastive", "penalty", "accuracy", "left_out"):
            expected = sum(losses[name].sum.item() for losses in alone)
            assert together[name].sum.item() == pytest.approx(expected, rel=1e-5), name
