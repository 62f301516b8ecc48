"""What data2vec, DinoSR and SpidR share: the teacher, its decay, its layers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from losses import loss_sum
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.errors import ConfigError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.data2vec import Data2VecConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.transformer import TransformerConfig
from speechssl.model.wavlm import WavLMConfig
from speechssl.objective.data2vec import Data2VecObjectiveConfig
from speechssl.objective.dinosr import DinoSRConfig
from speechssl.objective.objective import Objective
from speechssl.objective.self_distillation import (
    ContextTeacher,
    ExponentialDecay,
    LinearDecay,
    SelfDistillationConfig,
    normalize_over_time,
)
from speechssl.objective.spidr import SpidRConfig
from speechssl.train.pretrain import PretrainConfig

SIZES = {"num_layers": 3, "model_dim": 16, "num_heads": 2, "ffn_dim": 24, "position_kernel": 4, "position_groups": 2}
KINDS = {
    "transformer": TransformerConfig(**SIZES),
    "norm_first": TransformerConfig(**SIZES, norm_first=True),
    "wavlm": WavLMConfig(**SIZES, num_buckets=8, max_distance=20),
    "data2vec": Data2VecConfig(**SIZES, position_layers=2),
}
MASK = MaskConfig(start_prob=0.1, span_frames=3)
CONFIGS = {
    "data2vec": Data2VecObjectiveConfig(mask=MASK, num_target_layers=2, decay=LinearDecay(start=0.75, end=0.75)),
    "dinosr": DinoSRConfig(mask=MASK, num_target_layers=2, decay=LinearDecay(start=0.75, end=0.75), codebook_size=8),
    "spidr": SpidRConfig(mask=MASK, num_target_layers=2, decay=ExponentialDecay(start=0.75), codebook_size=8),
}
every_context = pytest.mark.parametrize("context", KINDS.values(), ids=KINDS)
every_objective = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

Make = Callable[..., tuple[SpeechEncoder, Objective]]


@pytest.fixture
def make(make_encoder: Any) -> Make:
    """Make an encoder with this context network, and a prepared objective, both in training."""

    def make(config: SelfDistillationConfig, context: Any = KINDS["transformer"]) -> tuple[SpeechEncoder, Objective]:
        encoder = SpeechEncoder(make_encoder(norm="layer").config.model_copy(update={"context": context}))
        objective = config.build(encoder.config)
        objective.prepare(encoder, [], 0)
        return encoder.train(), objective.train()

    return make


def shift(network: nn.Module) -> None:
    """Change every weight, as an update does."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in network.named_parameters()}


class TestDecay:
    def test_linear_is_that_of_data2vec(self) -> None:
        decay = LinearDecay()
        expected = {0: 0.999, 15_000: 0.99945, 20_000: 0.9996, 30_000: 0.9999, 200_000: 0.9999}
        assert {step: decay.at(step) for step in expected} == pytest.approx(expected, abs=1e-12)

    def test_exponential_is_that_of_spidr(self) -> None:
        decay = ExponentialDecay()
        expected = {0: 0.999, 20_000: 1 - 0.001 * 0.36787944117, 100_000: 1 - 0.001 * 0.00673794699}
        assert {step: decay.at(step) for step in expected} == pytest.approx(expected, abs=1e-12)
        assert decay.at(184_000) == pytest.approx(1 - 1.0104e-7, abs=1e-11)
        assert decay.at(184_300) == decay.at(200_000) == 1

    def test_dinosr_lets_its_teacher_rest_when_it_freezes(self) -> None:
        config = DinoSRConfig()
        assert [config.decay_at(step) for step in (0, 199_999, 200_000)] == pytest.approx([0.999, 0.9999, 1.0])
        assert DinoSRConfig(freeze_step=None).decay_at(10**6) == pytest.approx(0.9999)
        assert SpidRConfig().decay_at(20_000) == ExponentialDecay().at(20_000)


class TestTeacher:
    @every_context
    def test_its_layers_move_by_the_rest_of_the_decay_and_the_rest_is_the_students(
        self, make: Make, context: Any
    ) -> None:
        encoder, objective = make(CONFIGS["data2vec"], context)
        before = weights_of(objective.teacher.network)
        shift(encoder)
        objective.after_update(encoder, 1, lambda tensor: None)
        student = dict(encoder.context.named_parameters())
        assert before.keys() == student.keys()
        for name, weight in objective.teacher.network.named_parameters():
            expected = student[name]
            if not name.startswith(("position.", "projection.")):
                expected = before[name] + 0.25 * (student[name] - before[name])
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6, msg=name)

    def test_it_rests_at_1_but_for_the_projection(self, make: Make) -> None:
        encoder, objective = make(CONFIGS["data2vec"])
        before = weights_of(objective.teacher.network)
        shift(encoder)
        objective.teacher.follow(encoder.context, 1.0)
        for name, weight in objective.teacher.network.named_parameters():
            is_shared = name.startswith("projection.")
            assert torch.equal(weight, encoder.context.get_parameter(name) if is_shared else before[name]), name

    @pytest.mark.parametrize(("name", "copies"), [("data2vec", True), ("dinosr", True), ("spidr", False)])
    def test_it_begins_as_a_copy_or_with_layers_of_its_own(self, make: Make, name: str, copies: bool) -> None:
        encoder, objective = make(CONFIGS[name])
        for weight_name, weight in objective.teacher.network.named_parameters():
            is_random = weight.dim() > 1 and weight_name.startswith("layers.")
            is_same = copies or not is_random
            if weight_name != "mask_embedding":
                assert torch.equal(weight, encoder.context.get_parameter(weight_name)) is is_same, weight_name

    @every_objective
    def test_no_gradient_reaches_it_and_all_others_that_learn_have_one(
        self, make: Make, make_examples: Any, geometry: FrameGeometry, config: SelfDistillationConfig
    ) -> None:
        encoder, objective = make(config)
        batch = config.make_collate(geometry, 0)(make_examples())
        loss_sum(objective(encoder, batch, 0)).backward()
        assert not any(parameter.requires_grad for parameter in objective.teacher.parameters())
        frozen = {id(parameter) for module in objective.frozen(encoder, 0) for parameter in module.parameters()}
        for network in (encoder, objective):
            for name, parameter in network.named_parameters():
                learns = parameter.requires_grad and id(parameter) not in frozen
                assert (parameter.grad is not None) is learns, name

    @every_context
    @pytest.mark.parametrize("padded", [False, True])
    def test_targets_are_what_feed_forward_parts_add_normalized(
        self, make: Make, make_examples: Any, geometry: FrameGeometry, context: Any, padded: bool
    ) -> None:
        encoder, objective = make(CONFIGS["data2vec"], context)
        shift(objective.teacher.network)
        outputs: list[Tensor] = []
        for layer in objective.teacher.network.layers:
            layer.feed_forward.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
        batch = CONFIGS["data2vec"].make_collate(geometry, 0)(make_examples((620, 437) if padded else (620, 620)))
        frames = encoder.extract_frames(batch.audio.waveforms, batch.audio.lengths)
        assert (frames.lengths is not None) is padded
        found = objective.teacher(frames)
        lengths = [geometry.num_frames(length) for length in ((620, 437) if padded else (620, 620))]
        for layer, output in zip(found, outputs[1:], strict=True):
            for row, length in enumerate(lengths):
                expected = F.instance_norm(output[row, :length].double().T[None])[0].T.float()
                torch.testing.assert_close(layer[row, :length], expected, rtol=1e-3, atol=1e-3)

    def test_targets_have_no_noise_and_are_of_the_clean_recording(
        self, make: Make, make_examples: Any, geometry: FrameGeometry
    ) -> None:
        config = CONFIGS["data2vec"]
        encoder, objective = make(config)  # with dropout and layer drop
        collate = config.make_collate(geometry, 0)
        batch = collate(make_examples())
        targets: list[Tensor] = []
        objective.teacher.register_forward_hook(lambda *arguments: targets.append(arguments[2]))
        objective(encoder, batch, 0)
        loud = replace(batch.audio, waveforms=torch.randn_like(batch.audio.waveforms), clean=batch.audio.waveforms)
        objective(encoder, replace(batch, audio=loud), 0)
        torch.testing.assert_close(targets[0], targets[1])

    @every_objective
    def test_a_batch_is_the_sum_of_its_utterances(
        self, make: Make, make_examples: Any, geometry: FrameGeometry, config: SelfDistillationConfig
    ) -> None:
        encoder, objective = make(config)
        encoder.eval(), objective.eval()
        collate = config.make_collate(geometry, 0)
        together = loss_sum(objective(encoder, collate(make_examples()), 0))
        apart = sum(loss_sum(objective(encoder, collate([example]), 0)) for example in make_examples())
        assert together.item() == pytest.approx(apart.item(), rel=1e-5)


def test_normalization_is_instance_norm() -> None:
    x = 5 + 3 * torch.randn(2, 3, 40, 8)
    expected = F.instance_norm(x.flatten(0, 1).mT).mT.unflatten(0, (2, 3))
    torch.testing.assert_close(normalize_over_time(x, None), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalize_over_time(x, torch.full((3,), 40)), expected, rtol=1e-4, atol=1e-4)
    lengths = torch.tensor([40, 17, 3])
    found = normalize_over_time(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = normalize_over_time(x[:, row : row + 1, :length], None)
        torch.testing.assert_close(found[:, row : row + 1, :length], alone, rtol=1e-4, atol=1e-4)


class TestEncoder:
    def load(self, *overrides: str) -> PretrainConfig:
        return PretrainConfig.load([], ["data.train=a", "data.dev=a", "data.license=a", *overrides])

    @every_objective
    def test_one_without_layers_to_follow_is_refused(self, config: SelfDistillationConfig) -> None:
        kind = f"objective.kind={config.kind}"
        with pytest.raises(ConfigError, match=r"needs a transformer, found encoder\.context\.kind 'causal'$"):
            self.load(kind, "encoder.context.kind=causal")
        with pytest.raises(ConfigError, match=r"num_target_layers must be at most the 7 of .*num_layers, found 8$"):
            self.load(kind, "encoder.context.num_layers=7")

    def test_what_a_model_to_start_from_has_is_not_known_yet(self) -> None:
        self.load("objective.kind=data2vec", "objective.num_target_layers=16", "init=a")
        with pytest.raises(ConfigError, match="at most the 12"):
            self.load("objective.kind=data2vec", "objective.num_target_layers=16")


def test_a_teacher_of_all_layers_has_as_many(make_encoder: Any) -> None:
    encoder: EncoderConfig = make_encoder().config
    frames = SpeechEncoder(encoder).extract_frames(torch.randn(1, 620))
    assert ContextTeacher(encoder, 2)(frames).shape == (2, 1, 30, 32)
