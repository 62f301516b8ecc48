import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from losses import Given, loss_sum
from torch import Tensor, nn

from speechssl.data.batches import Example
from speechssl.frames import FrameGeometry
from speechssl.model.causal import CausalConfig
from speechssl.model.encoder import EncoderConfig, Frames, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.objective.objective import Losses
from speechssl.objective.wav2vec import Wav2vecBatch, Wav2vecConfig, Wav2vecObjective, prediction_offset
from speechssl.train.pretrain import PretrainConfig

MakeExamples = Callable[..., list[Example]]
CONFIG = Wav2vecConfig(num_steps=4, num_distractors=5)
GEOMETRY = FrameGeometry((10, 4), (5, 4))  # a frame every 20 samples, each seeing 25: an offset of 2
LENGTHS = (620, 1000, 185, 45, 437, 90)
NUM_FRAMES = (30, 49, 9, 2, 21, 4)
PAIRS = (28 + 27 + 26 + 25, 47 + 46 + 45 + 44, 7 + 6 + 5 + 4, 0, 19 + 18 + 17 + 16, 2 + 1)
ENCODER = EncoderConfig(
    feature_encoder=FeatureEncoderConfig(
        dims=(12, 8),
        kernels=GEOMETRY.kernels,
        strides=GEOMETRY.strides,
        norm="utterance",
        activation="relu",
        log_compression=True,
        frame_norm=False,
        gradient_scale=1.0,
    ),
    context=CausalConfig(model_dim=16, kernels=(2, 3, 4)),
)


@pytest.fixture
def batch(make_examples: MakeExamples) -> Wav2vecBatch:
    return CONFIG.make_collate(GEOMETRY, seed=0)(make_examples(LENGTHS))


def make_given(lengths: Sequence[int] = NUM_FRAMES) -> Given:
    """Noise with gradients."""
    torch.manual_seed(1)
    shape = (len(lengths), max(lengths))
    frames = Frames(torch.randn(*shape, 8, requires_grad=True), torch.tensor(lengths), torch.zeros(*shape, 8))
    return Given(frames, torch.randn(*shape, 16, requires_grad=True))


def make_objective(config: Wav2vecConfig = CONFIG) -> Wav2vecObjective:
    torch.manual_seed(0)
    return config.build(ENCODER)


def naive_loss(objective: Wav2vecObjective, frames: Tensor, context: Tensor, batch: Wav2vecBatch) -> tuple[Tensor, int]:
    """The loss as the paper states it, pair by pair, and the number of pairs whose right frame scores highest."""
    loss, num_correct = frames.new_zeros(()), 0
    for row, length in enumerate(NUM_FRAMES):
        for now in range(length):
            for number, weight in enumerate(objective.weight):
                then = now + 2 + number
                if then < length:
                    expected = weight @ context[row, now] + objective.bias
                    right = frames[row, then] @ expected
                    wrong = [frames[row, other] @ expected for other in batch.distractors[row, then].tolist()]
                    loss = loss - right.sigmoid().log() - sum((-score).sigmoid().log() for score in wrong)
                    num_correct += all(right > score for score in wrong)
    return loss, num_correct


class TestCollate:
    def test_counts_the_pairs(self, batch: Wav2vecBatch, make_examples: MakeExamples) -> None:
        assert batch.counts == {"pairs": sum(PAIRS)}
        for example, pairs in zip(make_examples(LENGTHS), PAIRS, strict=True):
            assert CONFIG.make_collate(GEOMETRY, seed=0)([example]).counts["pairs"] == pairs

    def test_distractors_are_frames_of_the_utterance_but_never_the_target(self, batch: Wav2vecBatch) -> None:
        assert batch.distractors.shape == (6, 49, 5)
        for row, length in zip(batch.distractors, NUM_FRAMES, strict=True):
            assert 0 <= row[:length].min() <= row[:length].max() < length
            assert not (row[:length] == torch.arange(length)[:, None]).any()
            assert not row[length:].any()

    def test_distractors_are_uniform_over_the_other_frames(self, make_examples: MakeExamples) -> None:
        collate = Wav2vecConfig(num_distractors=4000).make_collate(GEOMETRY, seed=0)
        [rows] = collate(make_examples((GEOMETRY.num_samples(5),))).distractors
        for own, row in enumerate(rows):
            counts = torch.bincount(row, minlength=5).double()
            assert counts[own] == 0
            statistic = (counts - 1000).square().sum() / 1000 - 1000
            assert statistic < 16.3, "chi-square with 3 degrees of freedom, p = 0.001"

    def test_an_utterance_is_treated_alike_in_every_batch(
        self, batch: Wav2vecBatch, make_examples: MakeExamples
    ) -> None:
        examples = make_examples(LENGTHS)
        apart = CONFIG.make_collate(GEOMETRY, seed=0)([examples[4], examples[0]])
        assert torch.equal(apart.distractors[0, :21], batch.distractors[4, :21])
        assert torch.equal(apart.distractors[1], batch.distractors[0, :30])
        assert apart.audio.indices == (4, 0)

    def test_distractors_change_with_epoch_seed_and_utterance(
        self, batch: Wav2vecBatch, make_examples: MakeExamples
    ) -> None:
        examples = make_examples(LENGTHS)
        later = CONFIG.make_collate(GEOMETRY, seed=0)([replace(example, epoch=1) for example in examples])
        for other in (later, CONFIG.make_collate(GEOMETRY, seed=1)(examples)):
            assert not torch.equal(other.distractors[0], batch.distractors[0])
        assert not torch.equal(batch.distractors[0, :20], batch.distractors[1, :20])


class TestLoss:
    def test_is_that_of_the_naive_one(self, batch: Wav2vecBatch) -> None:
        objective, given = make_objective(), make_given()
        losses = objective(given, batch, step=0)
        loss_sum(losses).backward()
        exact = deepcopy(objective).double()
        frames, context = (x.detach().double().requires_grad_() for x in (given.frames.values, given.context))
        expected, num_correct = naive_loss(exact, frames, context, batch)
        expected.backward()
        assert loss_sum(losses).item() == pytest.approx(expected.item(), rel=1e-5)
        assert losses["accuracy"].sum.item() == num_correct > 0
        pairs = [(given.frames.values, frames), (given.context, context)]
        pairs += [(objective.weight, exact.weight), (objective.bias, exact.bias)]
        for found, wanted in pairs:
            assert wanted.grad is not None
            torch.testing.assert_close(found.grad, wanted.grad.float(), rtol=1e-4, atol=1e-4)

    def test_of_a_batch_is_the_sum_of_its_utterances(self, make_examples: MakeExamples) -> None:
        torch.manual_seed(0)
        encoder, objective, examples = SpeechEncoder(ENCODER), make_objective(), make_examples(LENGTHS)
        collate = CONFIG.make_collate(GEOMETRY, seed=0)

        def losses_of(examples: list[Example]) -> Losses:
            return objective(encoder, collate(examples), step=0)

        together, alone = losses_of(examples), [losses_of([example]) for example in examples]
        assert loss_sum(together).item() == pytest.approx(sum(loss_sum(losses).item() for losses in alone), rel=1e-5)
        accuracy = sum(losses["accuracy"].sum.item() for losses in alone)
        assert together["accuracy"].sum.item() == accuracy > 0

    def test_of_equal_lengths_needs_none(self, make_examples: MakeExamples) -> None:
        batch = CONFIG.make_collate(GEOMETRY, seed=0)(make_examples((1000, 1000)))
        assert batch.audio.lengths is None
        objective, given = make_objective(), make_given((49, 49))
        without = objective(replace(given, frames=replace(given.frames, lengths=None)), batch, step=0)
        assert loss_sum(without).item() == pytest.approx(loss_sum(objective(given, batch, step=0)).item(), rel=1e-6)

    def test_targets_and_distractors_learn_and_padding_does_not(self, batch: Wav2vecBatch) -> None:
        given = make_given()
        loss_sum(make_objective()(given, batch, step=0)).backward()
        learns = given.frames.values.grad.any(dim=2)
        for row, length, wrong in zip(learns, NUM_FRAMES, batch.distractors, strict=True):
            compared = {*range(2, length), *(wrong[2:length].flatten().tolist())}
            assert row.nonzero().flatten().tolist() == sorted(compared)
        assert given.context.grad.any(dim=2).sum(dim=1).tolist() == [max(length - 2, 0) for length in NUM_FRAMES]

    def test_reaches_every_parameter_of_a_model(self, batch: Wav2vecBatch) -> None:
        encoder, objective = SpeechEncoder(ENCODER), make_objective()
        loss_sum(objective(encoder, batch, step=0)).backward()
        for name, parameter in [*encoder.named_parameters(), *objective.named_parameters()]:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name

    def test_of_utterances_too_short_to_predict_is_0_and_leaves_no_parameter_out(
        self, make_examples: MakeExamples
    ) -> None:
        assert CONFIG.min_frames(GEOMETRY) == 3
        batch = CONFIG.make_collate(GEOMETRY, seed=0)(make_examples((25, 45)))
        objective, given = make_objective(), make_given((1, 2))
        losses = objective(given, batch, step=0)
        loss_sum(losses).backward()
        assert (loss_sum(losses).item(), batch.counts["pairs"]) == (0, 0)
        assert not objective.weight.grad.any()
        assert CONFIG.make_collate(GEOMETRY, seed=0)(make_examples((65,))).counts["pairs"] == 1

    def test_is_float32_under_autocast(self, batch: Wav2vecBatch) -> None:
        objective, given = make_objective(), make_given()
        expected = objective(given, batch, step=0)
        with torch.autocast("cpu", torch.bfloat16):
            found = objective(given, batch, step=0)
        assert loss_sum(found).dtype == torch.float32
        assert loss_sum(found).item() == pytest.approx(loss_sum(expected).item(), rel=0.02)


def plant(gain: float) -> tuple[Losses, int]:
    """An utterance of 12 different frames, predicted with this gain, and its number of pairs."""
    config = Wav2vecConfig(num_steps=1, num_distractors=10)
    objective = Wav2vecObjective(config, GEOMETRY, frame_dim=12, context_dim=12)
    nn.init.eye_(objective.weight[0].data)
    nn.init.zeros_(objective.bias)
    values = torch.eye(12)[None]
    waveform = torch.zeros(GEOMETRY.num_samples(12)).numpy()
    batch = config.make_collate(GEOMETRY, seed=0)([Example(0, 0, waveform, None)])
    given = Given(Frames(values, None, torch.zeros_like(values)), gain * values.roll(-2, dims=1))
    return objective(given, batch, step=0), 10


class TestPlantedAnswers:
    @pytest.mark.parametrize(("gain", "accuracy"), [(30.0, 1), (0.0, 0), (-30.0, 0)])
    def test_loss_and_accuracy(self, gain: float, accuracy: int) -> None:
        losses, pairs = plant(gain)
        assert losses["prediction"].count == losses["accuracy"].count == "pairs"
        expected = math.log1p(math.exp(-gain)) + 10 * math.log(2)  # the distractors all score 0
        assert loss_sum(losses).item() / pairs == pytest.approx(expected, rel=1e-5)
        assert losses["accuracy"].sum.item() / pairs == accuracy
        assert losses["accuracy"].weight == 0


class TestInitialization:
    def test_is_that_of_a_transposed_convolution(self) -> None:
        torch.manual_seed(0)
        objective = Wav2vecObjective(Wav2vecConfig(), GEOMETRY, frame_dim=64, context_dim=48)
        published = nn.ConvTranspose2d(48, 64, (1, 12))
        assert objective.weight.numel() == published.weight.numel()
        assert objective.bias.numel() == published.bias.numel()
        assert objective.weight.abs().max().item() == pytest.approx(published.weight.abs().max().item(), rel=1e-3)
        assert objective.weight.std().item() == pytest.approx(published.weight.std().item(), rel=0.02)
        assert objective.bias.abs().max().item() == pytest.approx(published.bias.abs().max().item(), rel=0.1)


@pytest.mark.parametrize(
    ("name", "wide_kernels", "num_layers", "context_taps", "seen"),
    [("wav2vec_base", 8 + 4 + 4 + 4, 5, 9 * 3, 19), ("wav2vec_large", 8 + 4 + 4 + 4 + 1 + 1, 7, sum(range(2, 14)), 79)],
)
def test_the_published_models_are_configured(
    name: str, wide_kernels: int, num_layers: int, context_taps: int, seen: int
) -> None:
    file = Path(__file__).parents[2] / "recipes" / "models" / f"{name}.toml"
    config = PretrainConfig.load([file], ["data.train=a.tsv", "data.dev=b.tsv", "data.license=none"])
    geometry, context = config.encoder.feature_encoder.geometry, config.encoder.context
    assert (geometry.hop_samples, geometry.receptive_field_samples) == (160, 465)
    assert prediction_offset(geometry) == 3
    assert config.objective.min_frames(geometry) == 4
    assert isinstance(context, CausalConfig)
    assert 1 + sum(kernel - 1 for kernel in context.kernels) == seen

    with torch.device("meta"):
        encoder, objective = SpeechEncoder(config.encoder), config.objective.build(config.encoder)
    convolutions = 10 * 512 + wide_kernels * 512**2 + num_layers * 2 * 512
    causal = context_taps * 512**2 + context.num_layers * 3 * 512
    assert sum(parameter.numel() for parameter in encoder.parameters()) == convolutions + causal
    assert sum(parameter.numel() for parameter in objective.parameters()) == 12 * 512**2 + 512


def test_the_nearest_predicted_frame_is_the_first_without_a_common_sample() -> None:
    for kernel in range(1, 30):
        geometry = FrameGeometry((kernel,), (4,))
        shared = [frame for frame in range(20) if geometry.span_samples(frame, frame)[0] < kernel]
        assert prediction_offset(geometry) == len(shared)
