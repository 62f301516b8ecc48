import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import Given, loss_sum
from torch import Tensor
from torch.nn import functional as F

from speechssl.data.batches import Example
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.encoder import EncoderConfig, Frames, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.quantizer import QuantizerConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.objective.contrastive import (
    ContrastiveBatch,
    ContrastiveCollate,
    ContrastiveConfig,
    ContrastiveObjective,
)
from speechssl.objective.distractors import draw_distractors
from speechssl.objective.objective import Losses

GEOMETRY = FrameGeometry((10, 4), (5, 4))  # a frame every 20 samples, each seeing 25
MASK = MaskConfig(start_prob=0.1, span_frames=3, min_spans=2)
CONFIG = ContrastiveConfig(
    mask=MASK,
    quantizer=QuantizerConfig(num_codebooks=2, codebook_size=6, code_dim=12),
    comparison_dim=10,
    num_distractors=9,
)
LENGTHS = (620, 1000, 185, 25, 437, 90)


def make_examples(lengths: Sequence[int] = LENGTHS, epoch: int = 0) -> list[Example]:
    generator = np.random.default_rng(0)
    return [
        Example(index, epoch, generator.standard_normal(length).astype(np.float32) / 5, None)
        for index, length in enumerate(lengths)
    ]


def make_collate(num_distractors: int = 9, seed: int = 0) -> ContrastiveCollate:
    return CONFIG.model_copy(update={"num_distractors": num_distractors}).make_collate(GEOMETRY, seed)


def make_objective(
    config: ContrastiveConfig = CONFIG, frame_dim: int = 8, context_dim: int = 16
) -> ContrastiveObjective:
    torch.manual_seed(0)
    return ContrastiveObjective(config, frame_dim, context_dim).eval()


def make_inputs(batch: ContrastiveBatch) -> tuple[Frames, Tensor]:
    """Noise for what the encoder gives: frames and context, both with gradients."""
    torch.manual_seed(1)
    values = torch.randn(*batch.mask.shape, 8, requires_grad=True)
    features = torch.rand(*values.shape)
    return Frames(values, None, features), torch.randn(*batch.mask.shape, 16, requires_grad=True)


def naive_loss(objective: ContrastiveObjective, frames: Tensor, context: Tensor, batch: ContrastiveBatch) -> Tensor:
    """The contrastive part frame by frame, as the paper states it, in float64 and without noise."""
    quantizer = objective.quantizer
    losses = []
    for row, distractors in enumerate(batch.distractors):
        hidden = batch.mask[row].nonzero().flatten().tolist()
        codes = []
        for frame in hidden:
            scores = quantizer.projection(frames[row, frame]).view(quantizer.codebooks.shape[:2])
            codes.append(
                torch.cat([book[score.argmax()] for book, score in zip(quantizer.codebooks, scores, strict=True)])
            )
        for number, frame in enumerate(hidden):
            others = [codes[other] for other in distractors[number] if not torch.equal(codes[other], codes[number])]
            candidates = objective.target_projection(torch.stack([codes[number], *others]))
            prediction = objective.context_projection(context[row, frame])
            logits = F.cosine_similarity(prediction[None], candidates, dim=1) / objective.config.logit_temperature
            losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    return torch.stack(losses).sum()


class TestCollate:
    def test_lists_the_hidden_frames(self) -> None:
        batch = make_collate()(make_examples())
        num_frames = [GEOMETRY.num_frames(length) for length in LENGTHS]
        assert batch.mask.shape == (6, max(num_frames))
        assert batch.counts["hidden"] == int(batch.mask.sum()) == int(batch.weights.sum())
        assert batch.hidden.shape == batch.weights.shape == (6, int(batch.mask.sum(dim=1).max()))
        assert batch.distractors.shape == (*batch.hidden.shape, 9)
        for row, length in enumerate(num_frames):
            expected = batch.mask[row].nonzero().flatten()
            assert not batch.mask[row, length:].any()
            assert torch.equal(batch.hidden[row, : len(expected)], expected)
            assert batch.weights[row].tolist() == [1.0] * len(expected) + [0.0] * (
                batch.hidden.shape[1] - len(expected)
            )
            assert batch.distractors[row].max() < max(len(expected), 1)
            assert batch.distractors[row].min() >= 0

    def test_audio_goes_with_it(self) -> None:
        examples = make_examples()
        audio = make_collate()(examples).audio
        assert audio.indices == (0, 1, 2, 3, 4, 5)
        assert audio.lengths is not None
        assert audio.lengths.tolist() == list(LENGTHS)
        for row, example in zip(audio.waveforms, examples, strict=True):
            assert torch.equal(row[: len(example.waveform)], torch.from_numpy(example.waveform))
            assert not row[len(example.waveform) :].any()

    def test_an_utterance_is_treated_alike_in_every_batch(self) -> None:
        examples, collate = make_examples(), make_collate()
        together = collate(examples)
        for numbers in ([5, 0, 2], [1], [4, 3]):
            apart = collate([examples[number] for number in numbers])
            for row, number in enumerate(numbers):
                count = int(together.weights[number].sum())
                frames = min(together.mask.shape[1], apart.mask.shape[1])
                assert torch.equal(apart.mask[row, :frames], together.mask[number, :frames])
                assert int(apart.weights[row].sum()) == count
                assert torch.equal(apart.hidden[row, :count], together.hidden[number, :count])
                assert torch.equal(apart.distractors[row, :count], together.distractors[number, :count])

    def test_masks_and_distractors_change_with_epoch_seed_and_utterance(self) -> None:
        same = [replace(example, index=number) for number, example in enumerate(make_examples((1000,)) * 2)]
        batch = make_collate()(same)
        assert not torch.equal(batch.mask[0], batch.mask[1])
        for other in (make_collate(seed=1)(same), make_collate()([replace(example, epoch=1) for example in same])):
            assert not torch.equal(batch.mask, other.mask)
            assert not torch.equal(batch.distractors[0, :8], other.distractors[0, :8])
        assert torch.equal(batch.mask, make_collate()(same).mask)

    def test_an_utterance_of_one_frame_has_nothing_to_hide(self) -> None:
        batch = make_collate()(make_examples((25,)))
        assert batch.counts["hidden"] == 0
        assert batch.mask.tolist() == [[False]]


class TestDistractors:
    @given(st.integers(2, 40), st.integers(1, 30), st.integers(0, 2**32))
    def test_are_hidden_frames_but_never_the_frame_itself(self, num_hidden: int, number: int, seed: int) -> None:
        distractors = draw_distractors(num_hidden, number, np.random.default_rng(seed))
        assert distractors.shape == (num_hidden, number)
        assert distractors.dtype == np.int64
        assert distractors.min() >= 0
        assert distractors.max() < num_hidden
        assert (distractors != np.arange(num_hidden)[:, None]).all()

    def test_are_uniform_over_the_others(self) -> None:
        distractors = draw_distractors(5, 4000, np.random.default_rng(0))
        for own, row in enumerate(distractors):
            counts = np.bincount(row, minlength=5)
            assert counts[own] == 0
            statistic = ((np.delete(counts, own) - 1000) ** 2 / 1000).sum()
            assert statistic < 16.3, "chi-square with 3 degrees of freedom, p = 0.001"

    def test_of_one_hidden_frame_or_none(self) -> None:
        assert draw_distractors(1, 3, np.random.default_rng(0)).tolist() == [[0, 0, 0]]
        assert draw_distractors(0, 3, np.random.default_rng(0)).shape == (0, 3)


class TestLoss:
    def test_is_that_of_the_naive_one(self) -> None:
        batch = make_collate()(make_examples())
        frames, context = make_inputs(batch)
        objective = make_objective()
        losses = objective(Given(frames, context), batch, step=0)
        exact, exact_context = deepcopy(objective).double(), context.detach().double().requires_grad_()
        expected = naive_loss(exact, frames.values.double(), exact_context, batch)
        assert losses["contrastive"].sum.item() == pytest.approx(expected.item(), rel=1e-5)

        alone = make_objective(CONFIG.model_copy(update={"diversity_weight": 0.0, "penalty_weight": 0.0}))
        loss_sum(alone(Given(frames, context), batch, step=0)).backward()
        expected.backward()
        pairs = [(context, exact_context), (alone.quantizer.codebooks, exact.quantizer.codebooks)]
        for name in ("target_projection", "context_projection"):
            pairs += zip(getattr(alone, name).parameters(), getattr(exact, name).parameters(), strict=True)
        for found, wanted in pairs:
            assert wanted.grad.any()
            difference = (found.grad - wanted.grad).norm() / wanted.grad.norm()
            assert difference < 1e-5

    def test_sum_is_contrast_diversity_and_penalty(self) -> None:
        batch = make_collate()(make_examples())
        frames, context = make_inputs(batch)
        losses = make_objective()(Given(frames, context), batch, step=0)
        parts, count = {name: term.sum for name, term in losses.items()}, batch.counts["hidden"]
        unused = (2 * 6 - parts["prob_perplexity"] / count) / (2 * 6)
        assert 0 < unused < 1
        expected = parts["contrastive"] + 0.1 * count * unused + 10 * parts["penalty"]
        assert loss_sum(losses).item() == pytest.approx(expected.item(), rel=1e-5)
        assert {term.count for term in losses.values()} == {"hidden"}
        by_hand = sum(energy * hidden for energy, hidden in zip(frames.energy, batch.mask.sum(dim=1), strict=True))
        assert parts["penalty"].item() == pytest.approx(by_hand.item(), rel=1e-5)

    def test_terms_are_those_of_the_loss_and_measures(self) -> None:
        batch = make_collate()(make_examples())
        losses = make_objective()(Given(*make_inputs(batch)), batch, step=0)
        assert loss_sum(losses).requires_grad
        weights = {name: term.weight for name, term in losses.items()}
        measures = dict.fromkeys(("accuracy", "code_perplexity", "prob_perplexity", "left_out"), 0.0)
        assert weights == {"contrastive": 1.0, "unused": 0.1, "penalty": 10.0} | measures
        means = means_of(losses, batch)
        assert 2 <= means["code_perplexity"] <= 12
        assert 2 <= means["prob_perplexity"] <= 12
        assert 0 < means["accuracy"] < 1
        assert 0 < means["left_out"] < 1

    def test_is_float32_under_autocast(self) -> None:
        batch = make_collate()(make_examples())
        frames, context = make_inputs(batch)
        objective = make_objective()
        expected = objective(Given(frames, context), batch, step=0)
        with torch.autocast("cpu", torch.bfloat16):
            found = objective(Given(frames, context), batch, step=0)
        assert loss_sum(found).dtype == torch.float32
        assert loss_sum(found).item() == pytest.approx(loss_sum(expected).item(), rel=0.1)

    def test_every_parameter_learns(self) -> None:
        batch = make_collate()(make_examples())
        objective = make_objective().train()
        loss_sum(objective(Given(*make_inputs(batch)), batch, step=0)).backward()
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


class TestGradientOfTargets:
    CONTRAST_ALONE = CONFIG.model_copy(update={"diversity_weight": 0.0, "penalty_weight": 0.0})

    def test_contrast_alone_teaches_the_quantizer_and_the_feature_encoder(self) -> None:
        batch = make_collate()(make_examples())
        frames, context = make_inputs(batch)
        objective = make_objective(self.CONTRAST_ALONE).train()
        loss_sum(objective(Given(frames, context), batch, step=0)).backward()
        assert objective.quantizer.codebooks.grad.any()
        assert objective.quantizer.projection.weight.grad.any()
        assert frames.values.grad is not None
        assert not frames.values.grad[~batch.mask].any()
        count = int(batch.mask[1].sum())
        assert frames.values.grad[1, batch.hidden[1, :count]].any(dim=1).float().mean() > 0.8

    def test_distractors_learn_too(self) -> None:
        objective, frames, batch = planted(
            self.CONTRAST_ALONE.model_copy(update={"num_distractors": 3}), entries=range(8)
        )
        only_first = replace(batch, weights=torch.zeros(1, 8))
        only_first.weights[0, 0] = 1
        loss_sum(objective(Given(frames, torch.randn(1, 8, 16)), only_first, step=0)).backward()
        learns = objective.quantizer.codebooks.grad[0].any(dim=1).nonzero().flatten().tolist()
        assert learns == sorted({0, *batch.distractors[0, 0].tolist()})


def planted(
    config: ContrastiveConfig, entries: Sequence[int], size: int = 64, width: int = 16
) -> tuple[ContrastiveObjective, Frames, ContrastiveBatch]:
    """One utterance, hidden throughout, whose frames choose these entries of a single codebook; no projections."""
    config = config.model_copy(
        update={
            "quantizer": QuantizerConfig(num_codebooks=1, codebook_size=size, code_dim=width),
            "comparison_dim": width,
        }
    )
    objective = make_objective(config, frame_dim=size, context_dim=width)
    with torch.no_grad():
        torch.nn.init.normal_(objective.quantizer.codebooks)
        for linear in (objective.quantizer.projection, objective.target_projection, objective.context_projection):
            linear.weight.copy_(torch.eye(len(linear.weight)))
            linear.bias.zero_()
    number = len(entries)
    values = 50 * F.one_hot(torch.tensor(list(entries)), size).float()[None]
    [example] = make_examples((GEOMETRY.num_samples(number),))
    batch = replace(
        make_collate(config.num_distractors)([example]),
        mask=torch.ones(1, number, dtype=torch.bool),
        hidden=torch.arange(number)[None],
        weights=torch.ones(1, number),
        distractors=torch.from_numpy(draw_distractors(number, config.num_distractors, np.random.default_rng(0)))[None],
        counts={"hidden": number},
    )
    return objective, Frames(values, None, torch.zeros_like(values)), batch


def means_of(losses: Losses, batch: ContrastiveBatch) -> dict[str, float]:
    return {name: (term.sum / batch.counts[term.count]).item() for name, term in losses.items()}


class TestPlantedAnswers:
    def test_perfect_predictions(self) -> None:
        objective, frames, batch = planted(ContrastiveConfig(), entries=range(60), width=128)
        context = 3 * objective.quantizer.codebooks.detach()[:, :60]
        found = means_of(objective(Given(frames, context), batch, step=0), batch)
        assert found["contrastive"] < 0.05
        assert found["accuracy"] == 1
        assert found["left_out"] == 0
        assert found["code_perplexity"] == pytest.approx(60, rel=1e-3)

    def test_guesses(self) -> None:
        config = ContrastiveConfig(logit_temperature=1.0)
        objective, frames, batch = planted(config, entries=range(300), size=300, width=128)
        found = means_of(objective(Given(frames, torch.randn(1, 300, 128)), batch, step=0), batch)
        assert found["contrastive"] == pytest.approx(math.log(101), abs=0.03)
        assert found["accuracy"] < 0.05

    def test_opposite_predictions(self) -> None:
        objective, frames, batch = planted(ContrastiveConfig(), entries=range(60), width=128)
        found = means_of(
            objective(Given(frames, -objective.quantizer.codebooks.detach()[:, :60]), batch, step=0), batch
        )
        assert found["contrastive"] > 10
        assert found["accuracy"] == 0

    def test_a_distractor_equal_to_the_target_is_left_out(self) -> None:
        objective, frames, batch = planted(ContrastiveConfig(num_distractors=2), entries=(5, 5, 9))
        batch = replace(batch, distractors=torch.tensor([[[1, 2], [0, 0], [0, 1]]]))
        context = torch.randn(1, 3, 16)
        books = objective.quantizer.codebooks[0]
        to_5, to_9 = (F.cosine_similarity(context[0], books[entry][None]) / 0.1 for entry in (5, 9))
        expected = [
            F.softplus(to_9[0] - to_5[0]),
            torch.tensor(0.0),  # nothing is left to compare with
            torch.logsumexp(torch.stack((to_9[2], to_5[2], to_5[2])), dim=0) - to_9[2],
        ]
        for row, loss in enumerate(expected):
            weights = torch.zeros(1, 3)
            weights[0, row] = 1
            found = objective(Given(frames, context), replace(batch, weights=weights), step=0)
            assert found["contrastive"].sum.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
            assert found["left_out"].sum.item() == (0.5, 1.0, 0.0)[row]
            assert found["accuracy"].sum.item() == float([to_5[0] > to_9[0], False, to_9[2] > to_5[2]][row])

    def test_a_collapsed_quantizer_has_no_accuracy(self) -> None:
        objective, frames, batch = planted(ContrastiveConfig(), entries=[7] * 30)
        losses = objective(Given(frames, torch.randn(1, 30, 16)), batch, step=0)
        found = means_of(losses, batch)
        assert found["accuracy"] == 0
        assert found["left_out"] == 1
        assert found["contrastive"] == pytest.approx(0, abs=1e-6)
        assert found["code_perplexity"] == pytest.approx(1, rel=1e-4)
        loss_sum(losses).backward()
        assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)

    def test_equal_scores_are_no_success(self) -> None:
        objective, frames, batch = planted(ContrastiveConfig(), entries=range(30))
        found = means_of(objective(Given(frames, torch.zeros(1, 30, 16)), batch, step=0), batch)
        assert found["accuracy"] == 0
        assert found["contrastive"] == pytest.approx(math.log(101), rel=1e-5)
        assert found["contrastive"] == pytest.approx(ContrastiveConfig().chance["contrastive"], rel=1e-5)

    def test_one_hidden_frame_teaches_nothing(self) -> None:
        objective, frames, batch = planted(ContrastiveConfig(), entries=[3])
        found = means_of(objective(Given(frames, objective.quantizer.codebooks.detach()[:, 3:4]), batch, step=0), batch)
        assert (found["accuracy"], found["left_out"]) == (0, 1)
        assert found["contrastive"] == pytest.approx(0, abs=1e-6)

    def test_temperature_divides_the_cosines(self) -> None:
        objective, frames, batch = planted(ContrastiveConfig(num_distractors=1), entries=(0, 1))
        context = -7 * objective.quantizer.codebooks.detach()[:, :2]  # of which the length does not matter
        cosine = F.cosine_similarity(context[0, 0], context[0, 1], dim=0).item()
        found = means_of(objective(Given(frames, context), batch, step=0), batch)
        assert found["contrastive"] == pytest.approx(math.log1p(math.exp((1 - cosine) / 0.1)), rel=1e-4)


class TestPadding:
    @pytest.mark.parametrize("norm", ["group", "layer"])
    @pytest.mark.parametrize("norm_first", [False, True])
    @pytest.mark.parametrize("normalize", [False, True])
    def test_the_batch_is_the_sum_of_its_utterances(self, norm: str, norm_first: bool, normalize: bool) -> None:
        torch.manual_seed(0)
        encoder = SpeechEncoder(
            EncoderConfig(
                feature_encoder=FeatureEncoderConfig(
                    dims=(12, 16), kernels=GEOMETRY.kernels, strides=GEOMETRY.strides, norm=norm, bias=norm == "layer"
                ),
                context=TransformerConfig(
                    num_layers=2,
                    model_dim=32,
                    num_heads=4,
                    ffn_dim=48,
                    position_kernel=8,
                    position_groups=4,
                    norm_first=norm_first,
                ),
                normalize_waveforms=normalize,
            )
        ).eval()
        objective = make_objective(frame_dim=16, context_dim=32)

        def losses_of(examples: list[Example]) -> Losses:
            return objective(encoder, make_collate()(examples), step=0)

        examples = make_examples()
        together, alone = losses_of(examples), [losses_of([example]) for example in examples]
        assert together["accuracy"].sum > 0
        for name in ("contrastive", "penalty", "accuracy", "left_out"):
            expected = sum(losses[name].sum.item() for losses in alone)
            assert together[name].sum.item() == pytest.approx(expected, rel=1e-5), name

    def test_what_is_not_hidden_is_not_compared(self) -> None:
        batch = make_collate()(make_examples())
        frames, context = make_inputs(batch)
        objective = make_objective()
        expected = loss_sum(objective(Given(frames, context), batch, step=0))
        other = torch.where(batch.mask[:, :, None], frames.values, torch.randn_like(frames.values))
        other_context = torch.where(batch.mask[:, :, None], context, torch.randn_like(context))
        found = loss_sum(objective(Given(replace(frames, values=other), other_context), batch, step=0))
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_target_dropout_acts_in_training_alone() -> None:
    batch = make_collate()(make_examples())
    frames, context = make_inputs(batch)
    for probability in (0.0, 0.5):
        objective = make_objective(CONFIG.model_copy(update={"target_dropout": probability}))
        quiet = objective(Given(frames, context), batch, step=0)["prob_perplexity"].sum  # which noise does not touch
        noisy = objective.train()(Given(frames, context), batch, step=0)["prob_perplexity"].sum
        assert torch.equal(quiet, noisy) is (probability == 0)


def test_gumbel_temperature_is_that_of_the_step() -> None:
    batch = make_collate()(make_examples())
    objective, seen = make_objective(), []
    objective.quantizer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    for step in (0, 1000, 10**6):
        objective(Given(*make_inputs(batch)), batch, step=step)
    assert seen == [2.0, CONFIG.quantizer.temperature(1000), 0.5]
