"""Our models at every size with weights at random, what they read, and how they are compared with a peer.

A peer gets our weights by name (`speechssl.checkpoint.transformers_names`).
"""

import gc
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechssl.checkpoint.transformers_config import to_transformers_config
from speechssl.data.batches import Example
from speechssl.frames import MaskConfig
from speechssl.model.attention import SelfAttention
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import ChannelNorm, FeatureEncoderConfig, FrameNorm
from speechssl.model.quantizer import QuantizerConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.objective.contrastive import ContrastiveBatch, ContrastiveConfig, ContrastiveObjective
from speechssl.objective.objective import Losses

NUM_SYMBOLS = 11
QUIET = {"input_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0}


@dataclass(frozen=True)
class Case:
    """One size of model and one batch for it.

    Attributes:
        encoder: Ours, in evaluation mode, every weight at random and no dropout.
        objective: The same.
        batch: What it reads, what is hidden of it and what is compared.
        num_samples: (B,) valid samples of each row, which ``batch`` leaves out when nothing is padding.
    """

    encoder: SpeechEncoder
    objective: ContrastiveObjective
    batch: ContrastiveBatch
    num_samples: Tensor

    @property
    def waveforms(self) -> Tensor:
        """(B, T)."""
        return self.batch.audio.waveforms

    @property
    def lengths(self) -> Tensor | None:
        """(B,) valid samples, or None where nothing is padding."""
        return self.batch.audio.lengths

    @property
    def valid(self) -> Tensor:
        """(B, S) bool, True where a frame is not padding."""
        return torch.arange(self.batch.mask.shape[1]) < self.encoder.geometry.num_frames(self.num_samples)[:, None]

    def layers(self, mask: Tensor | None) -> list[Tensor]:
        """What goes into the first layer of the transformer, what comes out of each, and the context: (B, S, D)."""
        layers, states = self.encoder.context.layers, []
        hooks = [layers[0].register_forward_pre_hook(lambda _, arguments: states.append(arguments[0]))]
        hooks += [
            layer.register_forward_hook(lambda _, arguments, output: states.append(output[0])) for layer in layers
        ]
        frames = self.encoder.extract_frames(self.waveforms, self.lengths)
        context = self.encoder.contextualize(frames, mask)
        for hook in hooks:
            hook.remove()
        for layer in (0, 1, len(layers)):
            assert torch.equal(self.encoder.contextualize(frames, mask, layer=layer), states[layer])
        return [*states, context]

    def losses(self, step: int = 0) -> Losses:
        """What our objective says of the batch."""
        losses: Losses = self.objective(self.encoder, self.batch, step)
        return losses

    def ctc(self) -> CTCModel:
        """Our encoder with a head for letters."""
        model = CTCModel(self.encoder.config, NUM_SYMBOLS).eval()
        model.encoder = self.encoder
        randomize(model.head)
        return model


def tiny_encoder(norm: str, norm_first: bool, position_kernel: int = 8) -> EncoderConfig:
    """20 samples a frame, no two widths the same."""
    return EncoderConfig(
        feature_encoder=FeatureEncoderConfig(
            dims=(12, 16, 24),
            kernels=(10, 4, 2),
            strides=(5, 2, 2),
            norm=norm,
            bias=norm == "layer",
            gradient_scale=1.0,
        ),
        context=TransformerConfig(
            num_layers=3,
            model_dim=32,
            num_heads=4,
            ffn_dim=48,
            norm_first=norm_first,
            position_kernel=position_kernel,
            position_groups=4,
            **QUIET,
        ),
    )


# Few entries, so that distractors often equal the target.
TINY = ContrastiveConfig(
    quantizer=QuantizerConfig(num_codebooks=2, codebook_size=5, code_dim=12),
    comparison_dim=10,
    num_distractors=9,
    target_dropout=0.0,
)
BASE = (
    EncoderConfig(feature_encoder=FeatureEncoderConfig(gradient_scale=1.0), context=TransformerConfig(**QUIET)),
    ContrastiveConfig(target_dropout=0.0),
)
LARGE = (
    EncoderConfig(
        feature_encoder=FeatureEncoderConfig(norm="layer", bias=True, gradient_scale=1.0),
        context=TransformerConfig(num_layers=24, model_dim=1024, num_heads=16, ffn_dim=4096, norm_first=True, **QUIET),
    ),
    ContrastiveConfig(
        quantizer=QuantizerConfig(code_dim=768, temperature_end=0.1), comparison_dim=768, target_dropout=0.0
    ),
)
# The published base model is group-post, the published large one layer-pre. Group norm is compared on rows of equal
# length alone: on padding the peers are not what they are without it.
CASES = {
    "tiny-group-post": (tiny_encoder("group", False), TINY, False),
    "tiny-group-pre": (tiny_encoder("group", True, position_kernel=7), TINY, False),
    "tiny-layer-post": (tiny_encoder("layer", False), TINY, False),
    "tiny-layer-post-padded": (tiny_encoder("layer", False), TINY, True),
    "tiny-layer-pre": (tiny_encoder("layer", True), TINY, False),
    "tiny-layer-pre-padded": (tiny_encoder("layer", True, position_kernel=7), TINY, True),
    "base": (*BASE, False),
    "large": (*LARGE, False),
    "large-padded": (*LARGE, True),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if "tiny" in name else pytest.mark.slow) for name in CASES],
)
def case(request: pytest.FixtureRequest) -> Case:
    """A model of every size and kind, with a batch."""
    gc.collect()  # the last one, which its peer may hold in a cycle: large ones do not fit beside each other
    return build_case(*CASES[request.param])


@pytest.fixture(scope="module", params=["tiny-group-post", pytest.param("base", marks=pytest.mark.slow)])
def padded_group_case(request: pytest.FixtureRequest) -> Case:
    """A model with group norm and a padded batch, which no peer reads as we do."""
    encoder, objective, _ = CASES[request.param]
    return build_case(encoder, objective, True)


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """Build a case other than the usual ones: ``make_case(name, is_padded)``."""
    return lambda name, is_padded: build_case(*CASES[name][:2], is_padded)


def build_case(encoder_config: EncoderConfig, objective_config: ContrastiveConfig, is_padded: bool) -> Case:
    """Models and a batch, the same at every call; behind each row's length there is noise."""
    torch.manual_seed(0)
    encoder = SpeechEncoder(encoder_config).eval()
    geometry = encoder.geometry
    objective = objective_config.build(encoder_config).eval()
    randomize(encoder)
    randomize(objective)
    longest = geometry.num_samples(48) + geometry.hop_samples // 3
    lengths = [int(longest * share) for share in ((0.61, 1.0, 0.37) if is_padded else (1.0, 1.0, 1.0))]
    waveforms = torch.randn(len(lengths), longest) * torch.tensor([0.1, 0.03, 0.3])[:, None] + 0.01
    collate = objective_config.model_copy(update={"mask": MaskConfig(start_prob=0.1, span_frames=5)}).make_collate(
        geometry, seed=0
    )
    batch = collate(
        [
            Example(index, 0, waveform[:length].numpy(), None)
            for index, (waveform, length) in enumerate(zip(waveforms, lengths, strict=True))
        ]
    )
    batch = replace(batch, audio=replace(batch.audio, waveforms=waveforms))
    return Case(encoder, objective, batch, torch.tensor(lengths))


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Fill every parameter so that each part has an effect of its own and nothing is at its initial value."""
    norms = (nn.LayerNorm, ChannelNorm, FrameNorm)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, norms) and name == "weight":
                parameter.uniform_(0.5, 1.5)
            elif name in ("bias", "mask_embedding", "codebooks"):
                parameter.normal_(0, 0.2 if name == "bias" else 1.0)
            elif name == "original0":  # the norms of the positional convolution's taps, not all the same
                dim, _, kernel = module.original1.shape
                parameter.uniform_(0.5, 1.5).mul_((dim / kernel) ** 0.5)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    for module in model.modules():
        # Sharp and not too strong, or all frames of the upper layers would be alike.
        if isinstance(module, SelfAttention):
            module.query.weight.mul_(2)
            module.key.weight.mul_(2)
            module.output.weight.mul_(0.3)


@pytest.fixture(scope="session")
def transformers_settings() -> Callable[[EncoderConfig], dict[str, Any]]:
    """What a Wav2Vec2Config must say for the peer of an encoder, without any noise."""

    noise = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
    quiet = dict.fromkeys((*noise, "feat_quantizer_dropout"), 0.0)
    return lambda config: to_transformers_config(config) | quiet


@pytest.fixture(scope="session")
def peer() -> Callable[[str], ModuleType]:
    """Import a peer's module, or skip the test where the peer is missing or does not load beside this torch."""

    def load(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            pytest.skip(f"{name} does not load: {error}")

    return load


Close = Callable[..., None]


@pytest.fixture(scope="session")
def assert_close() -> Close:
    """``assert_close(found, expected, tolerance=1e-5)``: norm of the difference over norm of what is expected."""

    def check(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
        assert found.shape == expected.shape
        norm = expected.double().norm().item()
        assert 0 < norm < math.inf
        error = (found.double() - expected.double()).norm().item() / norm
        assert error <= tolerance, f"differs by {error:.1e}"

    return check


@pytest.fixture
def gumbel_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is the same for every frame, whatever the order in which frames are quantized."""

    def draw(tensor: Tensor) -> Tensor:
        return tensor.copy_((torch.arange(tensor.shape[-1]) * 0.37 % 1 + 0.05).expand_as(tensor))

    # Both sides make their Gumbel noise as -log of exponential draws.
    monkeypatch.setattr(Tensor, "exponential_", draw)


@pytest.fixture(scope="session")
def assert_gradients() -> Callable[..., None]:
    """Compare the gradients that two losses give two models.

    ``assert_gradients(ours, our_loss, theirs, their_loss, rename)``: one gradient after the other, and all together.
    """

    tolerance = 3e-5  # CTC's gradient alone is 2.2e-5 away on one thread

    def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
        model.zero_grad()
        return found

    def check(
        ours: nn.Module,
        our_loss: Tensor,
        theirs: nn.Module,
        their_loss: Tensor,
        rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    ) -> None:
        found, expected = rename(gradients(ours, our_loss)), gradients(theirs, their_loss)
        assert found.keys() == expected.keys()
        norms = {name: gradient.norm().item() for name, gradient in expected.items()}
        errors = {name: (found[name] - gradient).norm().item() for name, gradient in expected.items()}
        whole = math.hypot(*norms.values())
        assert 0 < whole < math.inf
        assert math.hypot(*errors.values()) <= tolerance * whole
        for name, error in errors.items():
            # Or one part in ten million of the whole, where much cancels: float32 knows no better. The gradient of a
            # key's bias, which adds the same to every score, is rounding alone.
            limit = max(tolerance * norms[name], 1e-7 * whole)
            assert error <= limit, f"the gradient of {name} differs by {error:.1e}, more than {limit:.1e}"

    return check
