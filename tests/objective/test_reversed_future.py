import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from losses import loss_sum
from torch import Tensor
from torch.nn import functional as F

from speechssl.data.batches import Example, collate_audio
from speechssl.errors import TrainingError
from speechssl.frames import FrameGeometry
from speechssl.model.causal import CausalConfig
from speechssl.model.causal_transformer import CausalTransformerConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.objective.reversed_future import (
    ReversedFutureBatch,
    ReversedFutureConfig,
    ReversedFutureObjective,
    cut_to_frames,
    reverse_time,
)
from speechssl.objective.views import Views, apply_views
from speechssl.train.guard import check_limits

GEOMETRY = FrameGeometry((10, 4), (5, 4))  # a frame every 20 samples, each seeing 25
CONFIG = ReversedFutureConfig(gaps=(2, 3, 60))  # the last is longer than any utterance
NAMES = ("contrast", "accuracy", "own_accuracy", "own_chance", "others_accuracy", "others_chance")
MakeExamples = Callable[..., list[Example]]


@pytest.fixture(params=["causal", "causal_transformer"])
def encoder(request: pytest.FixtureRequest) -> SpeechEncoder:
    torch.manual_seed(0)
    convolutions = FeatureEncoderConfig(dims=(12, 16), kernels=GEOMETRY.kernels, strides=GEOMETRY.strides, norm="layer")
    context: CausalConfig | CausalTransformerConfig = CausalConfig(model_dim=14, kernels=(2, 3), norm="frame")
    if request.param == "causal_transformer":
        context = CausalTransformerConfig(
            num_layers=2, model_dim=14, num_heads=2, ffn_dim=16, position_kernel=4, position_groups=2
        )
    return SpeechEncoder(EncoderConfig(feature_encoder=convolutions, context=context)).eval()


def make_objective(encoder: SpeechEncoder, config: ReversedFutureConfig = CONFIG) -> ReversedFutureObjective:
    torch.manual_seed(1)
    return config.build(encoder.config).eval()


def make_batch(examples: Sequence[Example], config: ReversedFutureConfig = CONFIG) -> ReversedFutureBatch:
    return config.make_collate(GEOMETRY, 0)(examples)


class TestReversal:
    def test_reverses_what_is_valid(self) -> None:
        values = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
        assert reverse_time(values, torch.tensor([4, 2])).tolist() == [[4, 3, 2, 1], [6, 5, 0, 0]]
        assert reverse_time(values, None).tolist() == [[4, 3, 2, 1], [0, 0, 6, 5]]
        vectors = torch.randn(2, 4, 3)
        found = reverse_time(vectors, torch.tensor([3, 4]))
        assert torch.equal(found[0], vectors[0, [2, 1, 0, 3]])
        assert torch.equal(reverse_time(found, torch.tensor([3, 4])), vectors)

    def test_frames_of_the_reversed_recording_hear_the_same_samples(self, make_examples: MakeExamples) -> None:
        examples = make_examples()
        lengths = [GEOMETRY.num_frames(len(example.waveform)) for example in examples]
        audio = collate_audio(examples)
        audio = cut_to_frames(replace(audio, clean=audio.waveforms + 1), lengths, GEOMETRY)
        assert audio.lengths is not None
        assert audio.clean is not None
        heard = audio.waveforms.unfold(1, 25, 20)
        backward = reverse_time(audio.waveforms, audio.lengths).unfold(1, 25, 20).flip(2)
        assert heard.shape[1] == max(lengths)
        for row, length in enumerate(lengths):
            assert GEOMETRY.num_frames(int(audio.lengths[row])) == length
            assert torch.equal(backward[row, :length].flip(0), heard[row, :length])
            assert not audio.clean[row, audio.lengths[row] :].any()

    def test_recordings_of_one_length_are_not_padded(self, make_examples: MakeExamples) -> None:
        batch = make_batch(make_examples((1000, 1000)))
        assert batch.audio.lengths is None
        assert batch.audio.waveforms.shape == batch.views.noise[:2].shape == (2, 985)


def test_what_is_known_of_past_and_future(encoder: SpeechEncoder, make_examples: MakeExamples) -> None:
    """Of the past: nothing behind a frame. Of the future: nothing before it."""
    objective, batch = make_objective(encoder), make_batch(make_examples())
    frame = 12
    at = frame * 20
    later = batch.audio.waveforms.clone()
    later[1, at + 25 :] *= -2
    earlier = batch.audio.waveforms.clone()
    earlier[1, :at] *= -2
    views = replace(batch.views, noise=torch.zeros_like(batch.views.noise))  # whose level is that of the whole
    views.taps[:] = F.one_hot(torch.tensor(127), 255)  # and an equalizer reaches 8 ms
    batch = replace(batch, views=views)
    before = objective._read(encoder, batch)
    past, _ = objective._read(encoder, replace(batch, audio=replace(batch.audio, waveforms=later)))
    _, future = objective._read(encoder, replace(batch, audio=replace(batch.audio, waveforms=earlier)))
    torch.testing.assert_close(past[1, : frame + 1], before[0][1, : frame + 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(future[1, frame:], before[1][1, frame:], rtol=1e-4, atol=1e-5)
    assert not torch.isclose(past[1, frame + 1], before[0][1, frame + 1]).all()
    assert not torch.isclose(future[1, frame - 1], before[1][1, frame - 1]).all()


@pytest.mark.parametrize(
    ("negatives", "norm_over", "temperature"),
    [("own", "none", None), ("others", "batch", 0.2), ("all", "utterance", None)],
)
@torch.no_grad()
def test_matches_the_definition(
    negatives: Any, norm_over: Any, temperature: float | None, encoder: SpeechEncoder, make_examples: MakeExamples
) -> None:
    """Pair by pair, each utterance read alone, each direction too."""
    values = {"negatives": negatives, "norm_over": norm_over, "logit_temperature": temperature}
    config = CONFIG.model_copy(update=values)
    objective, examples = make_objective(encoder, config), make_examples()
    batch = make_batch(examples, config)
    known: tuple[list[Tensor], list[Tensor]] = ([], [])
    for row, example in enumerate(examples):
        length = GEOMETRY.num_frames(len(example.waveform))
        whole = torch.from_numpy(example.waveform[: GEOMETRY.num_samples(length)])[None]
        for direction in (0, 1):
            number = direction * len(examples) + row
            view = Views(*(tensor[number : number + 1] for tensor in vars(batch.views).values()))
            view = replace(view, noise=view.noise[:, : whole.shape[1]])
            heard = apply_views(view, whole, None)
            frames = encoder.extract_frames(heard.flip(1) if direction else heard)
            context = encoder.contextualize(frames)[0]
            known[direction].append(context.flip(0) if direction else context)
    for side in known:
        every = torch.cat(side)
        for row, own in enumerate(side):
            over = {"none": None, "batch": every, "utterance": own}[norm_over]
            if over is not None:
                side[row] = (own - over.mean(dim=0)) / (over.var(dim=0, correction=0) + 1e-5).sqrt()

    def similarity(prediction: Tensor, answer: Tensor) -> float:
        if temperature is None:
            return float(prediction @ answer)
        return float(F.cosine_similarity(prediction, answer, dim=0)) / temperature

    past, future = known
    expected = dict.fromkeys(NAMES, 0.0)
    for gap, predictor in zip(config.gaps, objective.predictors, strict=True):
        for row in range(len(examples)):
            for j in range(len(past[row]) - gap):
                for question, answers, right in (
                    (past[row][j], future, j + gap),
                    (future[row][j + gap], past, j),
                ):
                    scores = [
                        [similarity(predictor(question), answer) for answer in answer_row] for answer_row in answers
                    ]
                    score = scores[row].pop(right)
                    own, others = scores.pop(row), [value for other in scores for value in other]
                    wrong = {"own": own, "others": others, "all": own + others}[negatives]
                    expected["contrast"] += float(torch.tensor([score, *wrong]).logsumexp(dim=0)) - score
                    expected["accuracy"] += score > max(own + others)
                    expected["own_accuracy"] += score > max(own)
                    expected["own_chance"] += 1 / (1 + len(own))
                    expected["others_accuracy"] += score > max(others)
                    expected["others_chance"] += 1 / (1 + len(others))
    losses = objective(encoder, batch, 0)
    found = {name: float(losses[name].sum) for name in NAMES}
    assert found == pytest.approx(expected, rel=1e-4)
    assert batch.counts["pairs"] == 2 * sum(max(len(one) - gap, 0) for one in past for gap in config.gaps)
    assert batch.counts["compared"] == batch.counts["pairs"]


def test_a_recording_alone_has_no_others(encoder: SpeechEncoder, make_examples: MakeExamples) -> None:
    batch = make_batch(make_examples((620,)))
    losses = make_objective(encoder)(encoder, batch, 0)
    assert batch.counts["compared"] == 0
    assert losses["others_accuracy"].sum == losses["others_chance"].sum == 0
    assert losses["contrast"].sum > 0
    assert losses["accuracy"].sum == losses["own_accuracy"].sum


def test_own_splits_are_the_same_in_any_batch(encoder: SpeechEncoder, make_examples: MakeExamples) -> None:
    config = CONFIG.model_copy(update={"negatives": "own", "norm_over": "utterance"})
    objective, examples = make_objective(encoder, config), make_examples()
    together = objective(encoder, make_batch(examples, config), 0)
    single = [objective(encoder, make_batch([example], config), 0) for example in examples]
    for name in ("contrast", "own_accuracy", "own_chance"):
        expected = torch.stack([terms[name].sum for terms in single]).sum()
        torch.testing.assert_close(together[name].sum, expected, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns(encoder: SpeechEncoder, make_examples: MakeExamples) -> None:
    """Also the predictor of a gap that no utterance has."""
    objective = make_objective(encoder).train()
    loss_sum(objective(encoder.train(), make_batch(make_examples()), 0)).backward()
    for parameter in (*encoder.parameters(), *objective.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@torch.no_grad()
def test_voices_alone_give_others_and_not_the_own_split(encoder: SpeechEncoder) -> None:
    """Planted: context that says only whose recording it is finds its recording every time and the split never."""
    objective = make_objective(encoder)
    voices = torch.eye(14)[:3, None].expand(-1, 20, -1) * 10
    for predictor in objective.predictors:
        predictor.weight.copy_(torch.eye(14))
        predictor.bias.zero_()
    objective._read = lambda encoder, batch: (voices, voices)  # type: ignore[method-assign]
    length = GEOMETRY.num_samples(20)
    batch = make_batch([Example(index, 0, np.zeros(length, np.float32), None) for index in range(3)])
    losses = objective(encoder, batch, 0)
    means = {name: float(term.sum) / batch.counts[term.count] for name, term in losses.items()}
    assert means["others_accuracy"] == 1
    assert means["own_accuracy"] == means["accuracy"] == 0
    assert means["own_chance"] == pytest.approx(1 / 20)
    assert means["others_chance"] == pytest.approx(1 / 41)
    assert means["contrast"] == pytest.approx(math.log(20), abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("directions", "is_healthy"), [(0, False), (1, False), (14, True)], ids=["one place", "a line", "everywhere"]
)
def test_a_context_that_is_the_same_everywhere_ends_the_run(
    encoder: SpeechEncoder, directions: int, is_healthy: bool
) -> None:
    objective = make_objective(encoder)
    basis = torch.eye(14)[:, :directions]
    context = torch.ones(14) + torch.randn(2, 50, directions) @ basis.T
    objective._read = lambda encoder, batch: (context, context)  # type: ignore[method-assign]
    length = GEOMETRY.num_samples(50)
    batch = make_batch([Example(index, 0, np.zeros(length, np.float32), None) for index in range(2)])
    means = {name: float(t.sum) / batch.counts[t.count] for name, t in objective(encoder, batch, 0).items()}
    check_limits(CONFIG.limits, means, 999)
    if is_healthy:
        check_limits(CONFIG.limits, means, 1000)
    else:
        with pytest.raises(TrainingError, match="the same everywhere"):
            check_limits(CONFIG.limits, means, 1000)
