from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from losses import loss_sum
from torch.nn import functional as F

from speechssl.data.batches import Example
from speechssl.frames import FrameGeometry
from speechssl.model.causal_transformer import CausalTransformerConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.quantizer import QuantizerConfig
from speechssl.objective.apc import ApcConfig

CONFIG = ApcConfig(num_ahead=3, num_bands=6)
VQ = QuantizerConfig(num_codebooks=1, codebook_size=9, code_dim=10, temperature_start=0.5)
CONTEXT = CausalTransformerConfig(
    num_layers=2, model_dim=32, num_heads=4, ffn_dim=48, position_kernel=4, position_groups=4
)


@pytest.fixture
def encoder(geometry: FrameGeometry) -> SpeechEncoder:
    torch.manual_seed(0)
    convolutions = FeatureEncoderConfig(
        dims=(12, 16), kernels=geometry.kernels, strides=geometry.strides, norm="layer", bias=True
    )
    return SpeechEncoder(EncoderConfig(feature_encoder=convolutions, context=CONTEXT)).eval()


@pytest.mark.parametrize("quantizer", [None, VQ])
def test_it_is_the_distance_of_spectra_ahead(
    encoder: SpeechEncoder, make_examples: Any, quantizer: QuantizerConfig | None
) -> None:
    config = CONFIG.model_copy(update={"quantizer": quantizer})
    objective = config.build(encoder.config).eval()
    batch = config.make_collate(encoder.geometry, 0)(make_examples())
    losses = objective(encoder, batch, 0)
    errors, of_last, of_mean, codes = [], [], [], []
    for example in make_examples():
        waveform = torch.from_numpy(example.waveform)[None]
        context = encoder.contextualize(encoder.extract_frames(waveform))[0]
        spectra = objective.spectrum(waveform)[0]
        if quantizer:
            codes += objective.quantizer.projection(context[:-3]).argmax(dim=1).tolist()
            context = objective.quantizer.codebooks[0][objective.quantizer.projection(context).argmax(dim=1)]
        predictions = objective.head(context)
        pairs = [(predictions[t], spectra[t], spectra[t + 3]) for t in range(len(spectra) - 3)]
        if pairs:
            errors.append([(guess - target).abs().mean().item() for guess, _, target in pairs])
            of_last.append([(now - target).abs().mean().item() for _, now, target in pairs])
            of_mean.append([target.abs().mean().item() for _, _, target in pairs])
    count = sum(map(len, errors))
    assert batch.counts == {"frames": count}
    assert len(errors) == 5, "one recording is too short to predict anything"
    assert losses["prediction"].weight == 1
    assert loss_sum(losses).item() == pytest.approx(sum(map(sum, errors)), rel=1e-4)
    for name, baseline in (("skill_over_last", of_last), ("skill", of_mean)):
        expected = sum(len(own) * (1 - sum(own) / sum(other)) for own, other in zip(errors, baseline, strict=True))
        assert losses[name].sum.item() == pytest.approx(expected, rel=1e-3)
    assert ("code_perplexity" in losses) == (quantizer is not None)
    if quantizer:
        shares = torch.bincount(torch.tensor(codes)) / count
        perplexity = torch.special.entr(shares).sum().exp().item()
        assert losses["code_perplexity"].sum.item() / count == pytest.approx(perplexity, rel=1e-3)


def test_knowing_the_answer_gains_everything(encoder: SpeechEncoder, make_examples: Any) -> None:
    objective = CONFIG.build(encoder.config).eval()
    spectrum, batch = objective.spectrum, CONFIG.make_collate(encoder.geometry, 0)(make_examples((1000, 400)))
    spectra = spectrum(batch.audio.waveforms, batch.audio.lengths)
    objective.head = torch.nn.Identity()  # type: ignore[assignment]
    encoder.contextualize = lambda frames: F.pad(spectra[:, 3:], (0, 0, 0, 3))  # type: ignore[method-assign]
    losses = objective(encoder, batch, 0)
    measured = {name: term.sum.item() / batch.counts["frames"] for name, term in losses.items()}
    assert measured == pytest.approx({"prediction": 0, "skill_over_last": 1, "skill": 1})
    encoder.contextualize = lambda frames: torch.zeros_like(spectra)  # type: ignore[method-assign]
    assert objective(encoder, batch, 0)["skill"].sum.item() == pytest.approx(0)
    encoder.contextualize = lambda frames: spectra  # type: ignore[method-assign]
    assert objective(encoder, batch, 0)["skill_over_last"].sum.item() == pytest.approx(0)


def test_the_last_ten_milliseconds_go_on_in_the_baseline() -> None:
    """Of a frame with several spectra, not the whole frame."""
    features = FeatureEncoderConfig(dims=(8,), kernels=(800,), strides=(640,), norm="layer")
    encoder = SpeechEncoder(EncoderConfig(feature_encoder=features, context=CONTEXT)).eval()
    objective = CONFIG.build(encoder.config).eval()
    batch = CONFIG.make_collate(encoder.geometry, 0)(
        [Example(0, 0, np.random.default_rng(0).random(8000, np.float32), None)]
    )
    spectra = objective.spectrum(batch.audio.waveforms)[0].view(-1, 4, 6)
    of_last = (spectra[:-3, -1:] - spectra[3:]).abs().mean()
    losses = objective(encoder, batch, 0)
    error = losses["prediction"].sum.item() / batch.counts["frames"]
    assert losses["skill_over_last"].sum.item() / batch.counts["frames"] == pytest.approx(
        1 - error / of_last.item(), rel=1e-4
    )


def test_of_silence_no_gain_is_infinite(encoder: SpeechEncoder, make_examples: Any) -> None:
    objective, examples = CONFIG.build(encoder.config).eval(), make_examples()
    for example in examples:
        example.waveform[:] = 0
    losses = objective(encoder, CONFIG.make_collate(encoder.geometry, 0)(examples), 0)
    assert all(abs(term.sum.item()) < 1e4 for term in losses.values())


def test_targets_are_of_the_recording_without_what_was_added(encoder: SpeechEncoder, make_examples: Any) -> None:
    objective = CONFIG.build(encoder.config).eval()
    batch = CONFIG.make_collate(encoder.geometry, 0)(make_examples((1000,)))
    clean = torch.randn(1, 1000)
    mixed = replace(batch, audio=replace(batch.audio, clean=clean))
    spectra = objective.spectrum(clean)[0]
    context = encoder.contextualize(encoder.extract_frames(batch.audio.waveforms))[0]
    expected = (objective.head(context)[:-3] - spectra[3:]).abs().mean(dim=1).sum()
    assert objective(encoder, mixed, 0)["prediction"].sum.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_gumbel_temperature_is_that_of_the_step(encoder: SpeechEncoder, make_examples: Any) -> None:
    quantizer = VQ.model_copy(update={"temperature_start": 7.0, "temperature_decay": 0.9})
    objective = CONFIG.model_copy(update={"quantizer": quantizer}).build(encoder.config).eval()
    seen: list[float] = []
    objective.quantizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2].item()))
    batch = CONFIG.make_collate(encoder.geometry, 0)(make_examples())
    for step in (0, 5):
        objective(encoder, batch, step)
    assert seen == pytest.approx([7.0, 7 * 0.9**5])
