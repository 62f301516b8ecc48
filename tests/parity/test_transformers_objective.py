"""Quantizer, contrastive loss and masks against transformers, given the same weights, masks and distractors.

Conventions that differ: in evaluation, their perplexity and diversity loss are of the entries chosen, which have no
gradient, in training of the averaged distribution; ours reports both and takes the diversity from the second always.
Their perplexity leaves out what has no probability, ours adds 1e-7 to every probability, as fairseq does. Their loss
has no penalty on the features, and nothing scales the gradient of the feature encoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from losses import loss_sum
from torch import Tensor, nn

from speechssl.checkpoint.transformers_names import to_transformers
from speechssl.frames import MaskConfig, draw_mask
from speechssl.objective.distractors import draw_distractors

Case = Any  # of conftest.py, which pytest does not let a test import
Theirs = Any
STEP = 1000


@pytest.fixture(scope="session")
def peer_module(peer: Callable[[str], ModuleType]) -> ModuleType:
    return peer("transformers.models.wav2vec2.modeling_wav2vec2")


@pytest.fixture(scope="module")
def ours(case: Case) -> nn.Module:
    return nn.ModuleDict({"encoder": case.encoder, "objective": case.objective}).eval()


@pytest.fixture(scope="session")
def to_theirs() -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Weights or gradients of encoder and objective, as Wav2Vec2ForPreTraining names and shapes them."""

    def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        result = to_transformers(weights)
        result["quantizer.codevectors"] = result["quantizer.codevectors"].flatten(0, 1)[None]
        return result

    return convert


@pytest.fixture(scope="module")
def theirs(case: Case, ours: nn.Module, peer_module: Any, transformers_settings: Any, to_theirs: Any) -> Theirs:
    """The Wav2Vec2ForPreTraining that is our encoder and objective, weight by weight."""
    config, quantizer = case.objective.config, case.objective.config.quantizer
    settings = transformers_settings(case.encoder.config) | {
        "num_codevector_groups": quantizer.num_codebooks,
        "num_codevectors_per_group": quantizer.codebook_size,
        "codevector_dim": quantizer.code_dim,
        "proj_codevector_dim": config.comparison_dim,
        "contrastive_logits_temperature": config.logit_temperature,
        "num_negatives": config.num_distractors,
        "diversity_loss_weight": config.diversity_weight,
    }
    model = peer_module.Wav2Vec2ForPreTraining(peer_module.Wav2Vec2Config(**settings)).eval()
    model.load_state_dict(to_theirs(ours.state_dict()))  # strict: every name of theirs
    model.set_gumbel_temperature(quantizer.temperature(STEP))
    return model


@pytest.fixture(params=[False, True], ids=["evaluation", "training"])
def is_training(request: pytest.FixtureRequest, ours: nn.Module, theirs: Theirs, gumbel_noise: None) -> Any:
    """Without dropout, training differs by the Gumbel softmax alone, whose noise is the same on both sides."""
    ours.train(request.param), theirs.train(request.param)
    yield request.param
    ours.eval(), theirs.eval()


def reweigh(monkeypatch: pytest.MonkeyPatch, case: Case, **weights: float) -> None:
    monkeypatch.setattr(case.objective, "config", case.objective.config.model_copy(update=weights))


def flat_distractors(case: Case) -> Tensor:
    """(B, S, K) as they want them: numbers of frames in the whole batch, given for every frame, used at hidden ones."""
    batch = case.batch
    num_rows, num_frames = batch.mask.shape
    first = torch.arange(num_rows)[:, None, None] * num_frames
    result = first.repeat(1, num_frames, batch.distractors.shape[2])
    for row, (hidden, distractors, weights) in enumerate(
        zip(batch.hidden, batch.distractors, batch.weights, strict=True)
    ):
        count = int(weights.sum())
        result[row, hidden[:count]] = row * num_frames + hidden[distractors[:count]]
    return result


def floored_perplexity(probabilities: Tensor, mask: Tensor) -> Tensor:
    mean = probabilities[mask.flatten()].mean(dim=0)
    return (-(mean * (mean + 1e-7).log()).sum(dim=-1)).exp().sum()


def ask(theirs: Theirs, case: Case, distractors: Tensor | None = None) -> Any:
    attention_mask = None
    if case.lengths is not None:
        attention_mask = (torch.arange(case.waveforms.shape[1]) < case.lengths[:, None]).long()
    return theirs(
        case.waveforms,
        attention_mask=attention_mask,
        mask_time_indices=case.batch.mask,
        sampled_negative_indices=distractors,
    )


class TestQuantizer:
    @torch.no_grad()
    def test_codes(self, case: Case, theirs: Theirs, is_training: bool, assert_close: Any) -> None:
        mask = case.batch.mask
        frames = case.encoder.extract_frames(case.waveforms, case.lengths).values
        found = case.objective.quantizer(
            frames[mask], torch.ones(int(mask.sum())), case.objective.config.quantizer.temperature(STEP)
        )
        expected, perplexity = theirs.quantizer(frames, mask_time_indices=mask)
        assert_close(found.codes, expected[mask])
        ours = found.prob_perplexity if is_training else found.code_perplexity
        # The floor of 1e-7 under a logarithm takes as much of the perplexity for every entry that is used.
        floor = 1e-7 * case.objective.config.quantizer.codebook_size
        assert ours.item() == pytest.approx(perplexity.item(), rel=1e-5 + floor)

    @torch.no_grad()
    def test_targets_and_predictions(self, case: Case, theirs: Theirs, assert_close: Any) -> None:
        frames = case.encoder.extract_frames(case.waveforms, case.lengths)
        context = case.encoder.contextualize(frames, case.batch.mask)
        quantized = case.objective.quantizer(frames.values.flatten(0, 1), case.valid.flatten().float(), 1.0)
        targets = case.objective.target_projection(quantized.codes).unflatten(0, context.shape[:2])
        expected = ask(theirs, case)
        assert_close(targets[case.valid], expected.projected_quantized_states[case.valid])
        predictions = case.objective.context_projection(context)
        assert_close(predictions[case.valid], expected.projected_states[case.valid])


class TestLoss:
    def test_contrastive_loss_and_its_gradients(
        self,
        case: Case,
        ours: nn.Module,
        theirs: Theirs,
        is_training: bool,
        to_theirs: Any,
        assert_gradients: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        reweigh(monkeypatch, case, diversity_weight=0.0, penalty_weight=0.0)
        found, expected = case.losses(STEP), ask(theirs, case, flat_distractors(case)).contrastive_loss
        assert loss_sum(found).item() == pytest.approx(expected.item(), rel=1e-5)
        assert_gradients(ours, loss_sum(found), theirs, expected, to_theirs)

    @pytest.mark.parametrize("is_training", [True], indirect=True)
    def test_with_diversity_and_all_gradients(
        self,
        case: Case,
        ours: nn.Module,
        theirs: Theirs,
        is_training: bool,
        to_theirs: Any,
        assert_gradients: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Given the floor of 1e-7 in their perplexity too."""
        reweigh(monkeypatch, case, penalty_weight=0.0)
        monkeypatch.setattr(theirs.quantizer, "_compute_perplexity", floored_perplexity)
        found, expected = loss_sum(case.losses(STEP)), ask(theirs, case, flat_distractors(case)).loss
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        assert_gradients(ours, found, theirs, expected, to_theirs)

    @pytest.mark.parametrize("is_training", [True], indirect=True)
    @torch.no_grad()
    def test_diversity_alone(self, case: Case, theirs: Theirs, is_training: bool, monkeypatch: Any) -> None:
        found = loss_sum(case.losses(STEP))
        reweigh(monkeypatch, case, diversity_weight=0.0)
        diversity = (found - loss_sum(case.losses(STEP))).item()
        expected = ask(theirs, case, flat_distractors(case)).diversity_loss
        assert diversity == pytest.approx(0.1 * expected.item(), rel=1e-3)  # a small difference of large sums

    def test_distractors_that_equal_the_target_are_left_out_on_both_sides(self, make_case: Any) -> None:
        """What makes the comparisons above at the tiny sizes worth something: a good part of the distractors is."""
        case = make_case("tiny-layer-pre", is_padded=True)
        assert 0.05 < case.losses()["left_out"].sum / case.batch.counts["hidden"] < 0.8


class TestDeviations:
    @pytest.mark.parametrize("is_training", [True], indirect=True)
    @torch.no_grad()
    def test_they_have_no_penalty_on_the_features(self, case: Case, theirs: Theirs, is_training: bool) -> None:
        found, expected = case.losses(STEP), ask(theirs, case, flat_distractors(case)).loss
        penalty = case.objective.config.penalty_weight * found["penalty"].sum
        assert penalty > 0
        assert (loss_sum(found) - penalty).item() == pytest.approx(expected.item(), rel=1e-5)

    @torch.no_grad()
    def test_their_diversity_in_evaluation_is_of_the_entries_chosen(self, case: Case, theirs: Theirs) -> None:
        found, expected = case.losses(), ask(theirs, case, flat_distractors(case))
        total = case.objective.config.quantizer.num_codebooks * case.objective.config.quantizer.codebook_size
        of_chosen = case.batch.counts["hidden"] - found["code_perplexity"].sum / total
        of_distribution = case.batch.counts["hidden"] - found["prob_perplexity"].sum / total
        assert expected.diversity_loss.item() == pytest.approx(of_chosen.item(), rel=1e-5)
        weighed = found["contrastive"].sum + 0.1 * of_distribution + 10 * found["penalty"].sum
        assert loss_sum(found).item() == pytest.approx(weighed.item(), rel=1e-5)
        assert abs(of_chosen - of_distribution) > 1e-3 * of_chosen

    def test_they_do_not_scale_the_gradient_of_the_feature_encoder(
        self,
        case: Case,
        ours: nn.Module,
        theirs: Theirs,
        to_theirs: Any,
        assert_gradients: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Base trains its convolutions with a tenth of the gradient, through context and targets alike."""
        reweigh(monkeypatch, case, diversity_weight=0.0, penalty_weight=0.0)
        config = case.encoder.config
        scaled = config.feature_encoder.model_copy(update={"gradient_scale": 0.1})
        monkeypatch.setattr(case.encoder, "config", config.model_copy(update={"feature_encoder": scaled}))

        def undo_scale(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
            scales = {name: 10.0 if "feature_encoder" in name else 1.0 for name in gradients}
            return to_theirs({name: gradient * scales[name] for name, gradient in gradients.items()})  # type: ignore[no-any-return]

        expected = ask(theirs, case, flat_distractors(case)).contrastive_loss
        assert_gradients(ours, loss_sum(case.losses()), theirs, expected, undo_scale)

    def test_one_hidden_frame_is_an_error_there(self, peer_module: Any) -> None:
        mask = np.array([[False, True, False]])
        with pytest.raises(ValueError, match="high"):
            peer_module._sample_negative_indices((1, 3), 4, mask)
        assert draw_distractors(1, 4, np.random.default_rng(0)).tolist() == [[0, 0, 0, 0]]

    def test_a_target_alone_among_its_equals_costs_nothing(self, make_case: Any) -> None:
        """All its distractors are left out: no loss, no success."""
        case = make_case("tiny-layer-pre", is_padded=False)
        batch = case.batch
        own = torch.arange(batch.hidden.shape[1])[None, :, None].expand_as(batch.distractors)
        losses = replace(case, batch=replace(batch, distractors=own)).losses()
        assert losses["contrastive"].sum == 0
        assert losses["accuracy"].sum == 0


class TestMasks:
    @pytest.mark.parametrize(("prob", "span"), [(0.65, 10), (0.5, 10), (0.5, 5)])
    @pytest.mark.parametrize("num_frames", [100, 150, 250, 500, 1000])
    def test_hide_the_same_share_of_an_utterance(
        self, peer_module: Any, prob: float, span: int, num_frames: int
    ) -> None:
        found, expected = mean_masks(peer_module, num_frames, MaskConfig(start_prob=prob / span, span_frames=span))
        assert found.mean() == pytest.approx(expected.mean(), abs=0.01)

    @pytest.mark.parametrize("prob", [0.1, 0.25, 0.5])
    def test_hide_the_same_share_of_the_channels(self, peer_module: Any, prob: float) -> None:
        config = MaskConfig(start_prob=prob / 64, span_frames=64, min_spans=0)
        found, expected = mean_masks(peer_module, 768, config)
        assert found.mean() == pytest.approx(expected.mean(), abs=0.01)

    def test_the_last_frame_is_hidden_there_and_never_here(self, peer_module: Any) -> None:
        """Their last start is the last that fits; ours is one earlier, as in fairseq."""
        found, expected = mean_masks(peer_module, 100, MaskConfig())
        assert found[-1] == 0 < expected[-1]
        assert np.abs(found[20:80] - expected[20:80]).max() < 0.1  # 4 standard deviations

    def test_the_number_of_spans_is_rounded_once_a_batch_there_and_once_an_utterance_here(
        self, peer_module: Any
    ) -> None:
        """0.5 spans: all rows of their batch have one or none has."""
        np.random.seed(0)  # noqa: NPY002
        seen = {tuple(peer_module._compute_mask_indices((8, 100), 0.05, 10).any(axis=1)) for _ in range(40)}
        assert seen == {(True,) * 8, (False,) * 8}
        generator = np.random.default_rng(0)
        config = MaskConfig(start_prob=0.005, min_spans=0)
        rows = [draw_mask(100, config, generator).any() for _ in range(400)]
        assert 160 < sum(rows) < 240


def mean_masks(peer_module: Any, num_frames: int, config: MaskConfig, draws: int = 1000) -> tuple[Any, Any]:
    """How often each frame is hidden, here and there; one utterance a batch."""
    generator = np.random.default_rng(0)
    np.random.seed(0)  # noqa: NPY002  # theirs draws from the global generator
    found = [draw_mask(num_frames, config, generator) for _ in range(draws)]
    prob = config.start_prob * config.span_frames
    expected = [
        peer_module._compute_mask_indices((1, num_frames), prob, config.span_frames, min_masks=config.min_spans)[0]
        for _ in range(draws)
    ]
    return np.mean(found, axis=0), np.mean(expected, axis=0)
