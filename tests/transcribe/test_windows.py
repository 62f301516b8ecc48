"""Long recordings in windows: each frame once, and the frames of the whole."""

import difflib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.checkpoint.saved_model import CTCCheckpoint, ModelDescription
from speechssl.data.audio import Waveform
from speechssl.data.units import Letters
from speechssl.frames import FrameGeometry
from speechssl.model.causal import CausalConfig
from speechssl.model.ctc import CTCModel
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig
from speechssl.transcribe import windows
from speechssl.transcribe.transcriber import Transcriber

GEOMETRY = FrameGeometry((10, 8), (10, 4))  # hop 40, receptive field 80


def blocks_of(samples: Waveform, size: int) -> list[Waveform]:
    return [samples[first : first + size] for first in range(0, len(samples), size)]


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of a second, of which the middle 0.6 s are kept."""
    monkeypatch.setattr(windows.cut_windows, "__defaults__", (1.0, 0.2))


@given(st.integers(80, 3000), st.integers(1, 900), st.integers(1, 40), st.integers(0, 8))
def test_every_frame_is_kept_once_in_order_with_its_context(
    num_samples: int, block: int, window_frames: int, context_frames: int
) -> None:
    samples = np.arange(num_samples, dtype=np.float32)
    hop_seconds = GEOMETRY.hop_samples / 16_000
    cut = windows.cut_windows(
        blocks_of(samples, block), GEOMETRY, window_frames * hop_seconds, context_frames * hop_seconds
    )
    num_frames, last = GEOMETRY.num_frames(num_samples), 0
    for window in cut:
        start = int(window.samples[0])
        assert start % GEOMETRY.hop_samples == 0
        assert np.array_equal(window.samples, samples[start : start + len(window.samples)])
        offset = start // GEOMETRY.hop_samples
        assert offset + window.first_kept == last
        assert window.start == start
        in_window = GEOMETRY.num_frames(len(window.samples))
        stop_kept = in_window if window.stop_kept is None else window.stop_kept
        last = offset + stop_kept
        assert window.first_kept >= max(1, context_frames) or offset == 0
        assert in_window - stop_kept >= max(1, context_frames) or last == num_frames
        assert in_window <= max(window_frames, 2 * max(1, context_frames) + 1)
    assert last == num_frames


def test_windows_are_given_before_the_recording_ends() -> None:
    num_read = 0

    def blocks() -> Iterator[Waveform]:
        nonlocal num_read
        for _ in range(100):
            num_read += 1
            yield np.zeros(4000, np.float32)

    cut = windows.cut_windows(blocks(), GEOMETRY, 1.0, 0.2)
    for number in range(1, 10):
        next(cut)
        assert num_read <= 5 + number * 3


def make_transcriber(norm: str, normalize: bool = False) -> Transcriber:
    """A model without attention to speak of: its frames see little more than what is theirs."""
    torch.manual_seed(0)
    context: TransformerConfig | CausalConfig = TransformerConfig(
        num_layers=1, model_dim=16, num_heads=2, ffn_dim=16, position_kernel=4, position_groups=2
    )
    if norm == "utterance":
        context = CausalConfig(model_dim=16, kernels=(2, 3))
    config = EncoderConfig(
        feature_encoder=FeatureEncoderConfig(dims=(12, 12), kernels=(10, 8), strides=(10, 4), norm=norm),
        context=context,
        normalize_waveforms=normalize,
    )
    vocabulary = Letters.from_texts(["abcdefg"])
    model = CTCModel(config, len(vocabulary)).eval()
    if norm != "utterance":
        torch.nn.init.zeros_(model.encoder.context.layers[0].attention.output.weight)
    torch.nn.init.normal_(model.head.weight)
    return Transcriber(CTCCheckpoint(model, vocabulary, ModelDescription(kind="ctc", step=1, encoder=config)))


def babble(seconds: float) -> Waveform:
    generator = np.random.default_rng(0)
    levels = np.repeat(generator.uniform(0.01, 0.3, round(seconds * 4)), 4000)
    return (levels * generator.standard_normal(len(levels))).astype(np.float32)


def test_a_model_of_short_sight_says_the_same_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    transcriber, wave = make_transcriber("layer"), babble(5.3)
    whole = transcriber.transcribe(wave, 16_000)
    assert len(whole.words) > 20
    monkeypatch.setattr(windows.cut_windows, "__defaults__", (1.0, 0.2))
    parts = transcriber.transcribe(wave, 16_000)
    assert parts.text == whole.text
    assert parts.seconds == whole.seconds
    for found, expected in zip(parts.words, whole.words, strict=True):
        assert (found.start, found.end) == (expected.start, expected.end)
        assert found.confidence == pytest.approx(expected.confidence, rel=1e-4)


@pytest.mark.parametrize(("norm", "normalize"), [("group", False), ("layer", True), ("utterance", False)])
def test_a_model_that_normalizes_over_time_takes_windows_for_recordings(
    norm: str, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of it is equally loud, it says nearly what it says of the whole."""
    wave = (0.1 * np.random.default_rng(0).standard_normal(53_000)).astype(np.float32)
    transcriber = make_transcriber(norm, normalize)
    whole = transcriber.transcribe(wave, 16_000)
    monkeypatch.setattr(windows.cut_windows, "__defaults__", (1.0, 0.2))
    parts = transcriber.transcribe(wave, 16_000)
    assert difflib.SequenceMatcher(None, parts.text, whole.text, autojunk=False).ratio() > 0.85
    assert parts.words[-1].end <= parts.seconds == whole.seconds


@pytest.mark.usefixtures("short_windows")
def test_long_recordings_are_read_in_windows_from_files_and_arrays(checkpoint, plant, planted_waveform) -> None:
    text = "hello где абвгд " * 30
    wave, transcriber = planted_waveform(text), Transcriber(checkpoint)
    for transcript in (transcriber.transcribe(plant(text)), transcriber.transcribe(wave, 16_000)):
        assert transcript.text == text.strip()
        assert transcript.seconds == len(wave) / 16_000
        assert len(transcript.words) == 90
        assert transcript.words[3].start == pytest.approx(transcript.words[0].start + len(wave) / 16_000 / 30, abs=0.02)
    assert max(length for _, length in checkpoint.model.batch_shapes) <= 16_000
