from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from losses import loss_sum
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.batches import Example
from speechssl.errors import TrainingError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.encoder import SpeechEncoder
from speechssl.objective.byol import ByolBatch, ByolConfig, ByolObjective
from speechssl.objective.collapse import spread_and_rank
from speechssl.objective.direct_predictor import DirectPredictor
from speechssl.objective.projector import Perceptron, ValidNorm
from speechssl.objective.teacher import split_weights
from speechssl.objective.views import Views, apply_views
from speechssl.train.guard import check_limits

MASK = MaskConfig(start_prob=0.1, span_frames=3, min_spans=1)
CONFIG = ByolConfig(mask=MASK, decay=0.9, projector_dim=24, projection_dim=8, predictor_dim=20)
SIMSIAM = CONFIG.model_copy(update={"decay": 0.0, "projector_layers": 3, "norm_output": True})
MakeEncoder = Callable[..., SpeechEncoder]
MakeExamples = Callable[..., list[Example]]


def alone(_: Tensor) -> None:
    """What a single process has for ``all_reduce``."""


def make_objective(encoder: SpeechEncoder, config: ByolConfig = CONFIG) -> ByolObjective:
    torch.manual_seed(1)
    objective = config.build(encoder.config)
    objective.prepare(encoder, (), 0)
    return objective


def make_batch(geometry: FrameGeometry, examples: Sequence[Example], config: ByolConfig = CONFIG) -> ByolBatch:
    return config.make_collate(geometry, 0)(examples)


def with_other_weights(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)


class TestCollate:
    def test_counts_frames_of_both_views(self, geometry: FrameGeometry, make_examples: MakeExamples) -> None:
        batch = make_batch(geometry, make_examples())
        assert batch.counts["pairs"] == batch.valid.sum()
        assert batch.valid.shape == batch.mask.shape == (12, geometry.num_frames(1000))
        assert not (batch.mask & ~batch.valid.bool()).any()
        assert batch.mask.any(dim=1).all()
        assert not torch.equal(batch.mask[:6], batch.mask[6:])

    def test_views_and_masks_depend_on_the_utterance_alone(
        self, geometry: FrameGeometry, make_examples: MakeExamples
    ) -> None:
        examples = make_examples()
        batch, single = make_batch(geometry, examples), make_batch(geometry, examples[4:5])
        length = single.mask.shape[1]
        assert torch.equal(batch.mask[[4, 10], :length], single.mask)
        assert torch.equal(batch.views.gains_db[[4, 10]], single.views.gains_db)


@pytest.mark.parametrize("config", [CONFIG, SIMSIAM], ids=["byol", "simsiam"])
def test_loss_is_two_minus_two_cosines_in_both_directions(
    config: ByolConfig, geometry: FrameGeometry, make_encoder: MakeEncoder, make_examples: MakeExamples
) -> None:
    """By hand, one utterance without padding, the views one after the other."""
    encoder = make_encoder("layer")
    objective = make_objective(encoder, config).eval()
    if objective.teacher is not None:
        with_other_weights(objective.teacher.network)
    batch = make_batch(geometry, make_examples((700,)), config)
    online, targets = [], []
    for view in (0, 1):
        one = Views(*(tensor[view : view + 1] for tensor in vars(batch.views).values()))
        frames = encoder.extract_frames(apply_views(one, batch.audio.waveforms, None))
        ones = torch.ones(1, frames.values.shape[1])
        own = objective.projector(encoder.contextualize(frames, batch.mask[view : view + 1]), ones)
        online.append(objective.predictor(own, ones)[0])
        if objective.teacher is None:
            targets.append(own[0])
        else:
            network: Any = objective.teacher.network
            frames = network["encoder"].extract_frames(apply_views(one, batch.audio.waveforms, None))
            targets.append(network["projector"](network["encoder"].contextualize(frames), ones)[0])
    distances = [2 - 2 * F.cosine_similarity(online[view], targets[1 - view], dim=1) for view in (0, 1)]
    losses = objective(encoder, batch, 0)
    torch.testing.assert_close(losses["distance"].sum, torch.cat(distances).sum())
    assert losses["distance"].weight == 1
    nearest = [(F.normalize(online[v], dim=1) @ F.normalize(targets[1 - v], dim=1).T).argmax(dim=1) for v in (0, 1)]
    right = sum(int((found == torch.arange(len(found))).sum()) for found in nearest)
    assert losses["accuracy"].sum == right


def test_teacher_hears_the_clean_recording_and_the_student_what_was_mixed_into_it(
    geometry: FrameGeometry, make_encoder: MakeEncoder, make_examples: MakeExamples
) -> None:
    encoder = make_encoder("layer")
    batch = make_batch(geometry, make_examples((700,)))
    mixed = replace(batch, audio=replace(batch.audio, clean=torch.randn(1, 700)))
    for config in (CONFIG, SIMSIAM):
        objective = make_objective(encoder, config).eval()
        seen: list[Tensor] = []
        project = objective._project
        objective._project = lambda network, batch, waveforms, mask, seen=seen, project=project: (  # type: ignore[method-assign,misc]
            seen.append(waveforms) or project(network, batch, waveforms, mask)  # type: ignore[func-returns-value]
        )
        objective(encoder, mixed, 0)
        assert seen[0] is mixed.audio.waveforms
        assert seen[1] is mixed.audio.clean


class TestTeacher:
    def test_moves_by_the_rest_of_its_decay_after_the_update(self, make_encoder: MakeEncoder) -> None:
        encoder = make_encoder()
        objective = make_objective(encoder)
        assert objective.teacher is not None
        before = {name: weight.clone() for name, weight in objective.teacher.network.named_parameters()}
        students = {f"encoder.{name}": weight for name, weight in encoder.named_parameters()}
        students |= {f"projector.{name}": weight for name, weight in objective.projector.named_parameters()}
        assert before.keys() == students.keys()
        assert all(torch.equal(before[name], students[name]) for name in before)  # it begins as a copy
        with_other_weights(encoder)
        with_other_weights(objective.projector)
        objective.after_update(encoder, 1, alone)
        for name, weight in objective.teacher.network.named_parameters():
            torch.testing.assert_close(weight, 0.9 * before[name] + 0.1 * students[name])

    def test_is_not_there_without_an_average(self, make_encoder: MakeEncoder) -> None:
        objective = make_objective(make_encoder(), SIMSIAM)
        assert not split_weights(objective)[1]
        objective.after_update(make_encoder(), 1, alone)

    @pytest.mark.parametrize("config", [CONFIG, SIMSIAM], ids=["byol", "simsiam"])
    def test_targets_get_no_gradient(
        self, config: ByolConfig, geometry: FrameGeometry, make_encoder: MakeEncoder, make_examples: MakeExamples
    ) -> None:
        """Gradients are those with the same targets as constants, and a teacher has none."""
        encoder = make_encoder("layer")
        objective = make_objective(encoder, config).train()
        targets: list[Tensor] = []
        roll = Tensor.roll
        batch = make_batch(geometry, make_examples((700, 300)), config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "roll", lambda x, *shifts, **dims: targets.append(x) or roll(x, *shifts, **dims))  # type: ignore[func-returns-value]
            loss_sum(objective(encoder, batch, 0)).backward()
        assert len(targets) == 1
        assert not targets[0].requires_grad
        assert all(
            parameter.grad is not None for parameter in (*encoder.parameters(), *objective.projector.parameters())
        )
        if objective.teacher is not None:
            assert all(parameter.grad is None for parameter in objective.teacher.parameters())


class TestNorm:
    def test_is_batch_norm_over_valid_frames(self) -> None:
        norm, reference = ValidNorm(5), nn.BatchNorm1d(5)
        with torch.no_grad():
            for module in (norm, reference):
                module.weight.copy_(torch.arange(5.0))
                module.bias.copy_(torch.arange(5.0) / 3)
        x, valid = torch.randn(2, 30, 5) * 3 + 1, torch.rand(2, 30) < 0.7
        for training in (True, False):
            found = norm.train(training)(x, valid.float())
            for group in (0, 1):
                expected = reference(x[group, valid[group]])
                torch.testing.assert_close(found[group, valid[group]], expected, rtol=1e-4, atol=1e-5)

    def test_without_scale_has_no_parameters(self) -> None:
        assert not list(ValidNorm(5, affine=False).parameters())
        assert len(list(Perceptron((3, 4, 4, 2), norm_output=True).parameters())) == 2 * 3 + 1


@pytest.mark.parametrize("predictor", ["mlp", "direct"])
def test_a_padded_batch_is_its_utterances_one_by_one_with_norms_over_utterances(
    predictor: str, geometry: FrameGeometry, make_encoder: MakeEncoder, make_examples: MakeExamples
) -> None:
    config = CONFIG.model_copy(update={"norm_over": "utterance", "predictor": predictor})
    encoder, examples = make_encoder("layer"), make_examples()
    objective = make_objective(encoder, config).eval()
    together = objective(encoder, make_batch(geometry, examples, config), 0)
    single = [objective(encoder, make_batch(geometry, [example], config), 0) for example in examples]
    for name in ("distance", "accuracy"):
        torch.testing.assert_close(
            together[name].sum, torch.stack([terms[name].sum for terms in single]).sum(), rtol=1e-4, atol=1e-4
        )


def test_padding_does_not_matter_to_batch_norm(
    geometry: FrameGeometry, make_encoder: MakeEncoder, make_examples: MakeExamples
) -> None:
    """A batch gives the same with more padding."""
    encoder, examples = make_encoder("layer"), make_examples()
    objective = make_objective(encoder).eval()
    roomy = [replace(example, fixed_samples=1400) for example in examples]
    expected, found = (objective(encoder, make_batch(geometry, some), 0) for some in (examples, roomy))
    for name, term in expected.items():
        torch.testing.assert_close(found[name].sum, term.sum, rtol=1e-4, atol=1e-4)


class TestDirectPredictor:
    def test_matches_numpy(self) -> None:
        predictor = DirectPredictor(6, "direct", 0.3, 0.01)
        generator = np.random.default_rng(0)
        moving = None
        for step in (1, 2, 3):
            batches = []
            for _ in range(2):  # microbatches
                x = generator.standard_normal((2, 9, 6)) * np.arange(6)  # the first dimension is always 0
                valid = generator.random((2, 9)) < 0.8
                predictor.train()(torch.from_numpy(x).float(), torch.from_numpy(valid).float())
                batches.append(x[valid])
            predictor.eval()(torch.ones(1, 4, 6), torch.ones(1, 4))  # evaluation is not gathered
            predictor.follow(step, alone)
            frames = np.concatenate(batches)
            correlation = frames.T @ frames / len(frames)
            moving = correlation if moving is None else 0.3 * moving + 0.7 * correlation
            values, vectors = np.linalg.eigh(moving)
            scales = np.maximum(np.sqrt(np.maximum(values, 0) / values.max()) + 0.01, 1e-4)
            np.testing.assert_allclose(predictor.weight, vectors * scales @ vectors.T, atol=1e-5)
        x = torch.randn(1, 3, 6)
        torch.testing.assert_close(predictor(x, torch.ones(1, 3)), x @ predictor.weight.T)

    def test_has_a_floor(self) -> None:
        predictor = DirectPredictor(3, "direct", 0.3, 0.0).train()
        predictor(torch.tensor([[[1.0, 0, 0]]]), torch.ones(1, 1))
        predictor.follow(1, alone)
        torch.testing.assert_close(predictor.weight, torch.diag(torch.tensor([1.0, 1e-4, 1e-4])))

    def test_copy_is_the_correlation(self) -> None:
        predictor = DirectPredictor(3, "copy", 0.3, 0.01).train()
        x = torch.randn(2, 5, 3)
        predictor(x, torch.ones(2, 5))
        predictor.follow(1, alone)
        expected = x.flatten(0, 1).T @ x.flatten(0, 1) / 10 + 0.01 * torch.eye(3)
        torch.testing.assert_close(predictor.weight, expected)

    def test_two_processes_add_up(self) -> None:
        x = torch.randn(2, 6, 4)
        whole, half = (DirectPredictor(4, "direct", 0.3, 0.01).train() for _ in range(2))
        other = x[1].T @ x[1]

        def add_other(sums: Tensor) -> None:
            sums += torch.cat((other, torch.full((1, 4), 6.0)))

        whole(x, torch.ones(2, 6))
        whole.follow(1, alone)
        half(x[:1], torch.ones(1, 6))
        half.follow(1, add_other)
        torch.testing.assert_close(half.weight, whole.weight)

    @pytest.mark.parametrize("rule", ["direct", "copy"])
    def test_is_never_trained(
        self, rule: str, geometry: FrameGeometry, make_encoder: MakeEncoder, make_examples: MakeExamples
    ) -> None:
        config, encoder = CONFIG.model_copy(update={"predictor": rule}), make_encoder("layer")
        objective = make_objective(encoder, config).train()
        assert not list(objective.predictor.parameters())
        loss_sum(objective(encoder, make_batch(geometry, make_examples(), config), 0)).backward()
        assert torch.equal(objective.predictor.weight, torch.eye(8))
        objective.after_update(encoder, 1, alone)
        assert not torch.equal(objective.predictor.weight, torch.eye(8))
        assert {"predictor.weight", "predictor.correlation"} <= split_weights(objective)[0].keys()


class TestCollapse:
    def test_spread_and_rank_of_known_vectors(self) -> None:
        torch.manual_seed(0)
        weights = (torch.arange(5000) < 4000).float()
        even, line = torch.randn(5000, 16), torch.randn(5000, 1) * torch.ones(16)
        even[4000:] = 7.0  # padding
        spread, rank = spread_and_rank(even, weights)
        assert (float(spread), float(rank)) == (pytest.approx(1, abs=0.02), pytest.approx(16, abs=0.2))
        assert spread_and_rank(line, weights)[1] == pytest.approx(1, abs=1e-3)
        spread, _ = spread_and_rank(torch.randn(16) + 1e-3 * even, weights)
        assert spread < 0.01

    def test_without_predictor_and_average_it_collapses_and_is_seen(
        self, geometry: FrameGeometry, make_encoder: MakeEncoder, make_examples: MakeExamples
    ) -> None:
        """The same few utterances again and again: the predictor alone keeps the projections apart."""
        config = ByolConfig(decay=0.0, projector_dim=32, projection_dim=16, predictor_dim=16)

        def final_metrics(predictor: nn.Module | None) -> dict[str, float]:
            encoder = make_encoder("layer", norm_first=True).train()
            objective = make_objective(encoder, config).train()
            if predictor is not None:
                objective.predictor = predictor  # type: ignore[assignment]
            optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=3e-3)
            for step in range(200):
                examples = [Example(e.index, step, e.waveform, None) for e in make_examples((1000, 800))]
                batch = make_batch(geometry, examples, config)
                losses = objective(encoder, batch, step)
                optimizer.zero_grad()
                (loss_sum(losses) / batch.counts["pairs"]).backward()
                optimizer.step()
                objective.after_update(encoder, step + 1, alone)
            return {name: float(term.sum.detach()) / batch.counts[term.count] for name, term in losses.items()}

        class Itself(nn.Module):
            def forward(self, x: Tensor, valid: Tensor) -> Tensor:
                return x

        collapsed, healthy = final_metrics(Itself()), final_metrics(None)
        check_limits(config.limits, healthy, 1000)
        with pytest.raises(TrainingError, match="have become alike"):
            check_limits(config.limits, collapsed, 1000)
