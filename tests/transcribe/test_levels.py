"""What is heard does not depend on the level or the offset of a recording."""

import numpy as np
import pytest
import torch

from speechssl.checkpoint.saved_model import CTCCheckpoint, ModelDescription
from speechssl.data.audio import Waveform
from speechssl.data.units import Letters
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.transcribe import windows
from speechssl.transcribe.transcriber import Transcriber


def make_transcriber(norm: str, normalize: bool | float) -> Transcriber:
    torch.manual_seed(0)
    config = EncoderConfig(
        feature_encoder=FeatureEncoderConfig(dims=(12, 12), kernels=(40, 8), strides=(40, 8), norm=norm),
        context=TransformerConfig(
            num_layers=1, model_dim=16, num_heads=2, ffn_dim=16, position_kernel=4, position_groups=2
        ),
        normalize_waveforms=normalize,
    )
    vocabulary = Letters.from_texts(["abcdefg"])
    model = CTCModel(config, len(vocabulary)).eval()
    torch.nn.init.normal_(model.head.weight, std=3.0)
    return Transcriber(CTCCheckpoint(model, vocabulary, ModelDescription(kind="ctc", step=1, encoder=config)))


def babble(seconds: float) -> Waveform:
    """Sounds of a quarter of a second each, without an offset, and a pause of a second in each four."""
    generator = np.random.default_rng(0)
    levels = generator.uniform(0.02, 0.2, round(seconds * 4)) * (np.arange(round(seconds * 4)) % 16 < 12)
    samples = np.repeat(levels, 4000) * generator.standard_normal(4000 * len(levels))
    return (samples - samples.mean()).astype(np.float32)


def say(transcriber: Transcriber, wave: Waveform, way: str) -> str:
    if way == "as a stream":
        results = transcriber.stream(np.split(wave, len(wave) // 1600), 16_000)
        return " ".join(word.text for result in results for word in result.words)
    return transcriber.transcribe(wave, 16_000, split_at_pauses=way == "split at pauses").text


@pytest.mark.parametrize("way", ["in windows", "split at pauses", "as a stream"])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_the_text_is_the_same_at_any_level_and_offset(norm: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows.cut_windows, "__defaults__", (5.0, 1.0))
    transcriber, wave = make_transcriber(norm, 1e-12), babble(20)
    text = say(transcriber, wave, way)
    assert len(text) > 100
    for gain, offset in ((0.01, 0.0), (1.0, 0.1), (2.0, -0.02)):
        assert say(transcriber, gain * wave + np.float32(offset), way) == text


def test_the_epsilon_of_the_recipes_leaves_the_text_at_40_decibels_less() -> None:
    wave = babble(20)
    text = say(make_transcriber("layer", 1e-8), wave, "in windows")
    assert say(make_transcriber("layer", 1e-8), np.float32(0.01) * wave, "in windows") == text
    # The tests can fail: what is not normalized, or by the published rule, hears something else.
    for normalize in (False, True):
        quiet = say(make_transcriber("layer", normalize), np.float32(0.01) * wave, "in windows")
        assert quiet != say(make_transcriber("layer", normalize), wave, "in windows")


@pytest.mark.filterwarnings("ignore:array. silence")
@pytest.mark.parametrize("way", ["in windows", "split at pauses", "as a stream"])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_silence_sounds_the_same_at_any_offset_and_with_the_noise_of_16_bits(norm: str, way: str) -> None:
    transcriber = make_transcriber(norm, 1e-8)
    silence = np.zeros(160_000, np.float32)
    steps = np.random.default_rng(0).integers(-2, 3, len(silence)).astype(np.float32) / 32768
    for changed in (silence + np.float32(0.1), steps, steps + np.float32(0.1)):
        assert say(transcriber, changed, way) == say(transcriber, silence, way)
