import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_files import tone

from speechssl.data.audio import as_waveform, join, resample_blocks, resampled_length
from speechssl.data.recording import read_audio
from speechssl.errors import AudioError


@pytest.mark.parametrize("sample_rate", [8000, 11_025, 44_100, 48_000])
def test_resamples_to_an_exact_length(tmp_path: Path, sample_rate: int) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(0.5, sample_rate), sample_rate)
    waveform = read_audio(path)
    length = resampled_length(round(0.5 * sample_rate), sample_rate)
    assert len(waveform) == length
    np.testing.assert_allclose(waveform[100:-100], tone()[100 : length - 100], atol=2e-3)
    for num_samples in (1, 2, 3, 100, 2001):
        span = read_audio(path, start=703, num_samples=num_samples, sample_rate=sample_rate)
        assert len(span) == resampled_length(num_samples, sample_rate)


@settings(max_examples=40)
@given(
    st.sampled_from([8000, 11_025, 16_000, 22_050, 44_100, 48_000, 7351]),
    st.lists(st.one_of(st.integers(1, 300), st.integers(1, 150_000)), min_size=1, max_size=4),
)
def test_blocks_are_resampled_as_one_by_what_librosa_wraps(sample_rate: int, lengths: list[int]) -> None:
    num_samples = sum(lengths)
    samples = np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)
    bounds = itertools.pairwise([0, *itertools.accumulate(lengths)])
    blocks = list(resample_blocks((samples[first:stop] for first, stop in bounds), sample_rate))
    assert all(map(len, blocks))
    expected = librosa.resample(samples, orig_sr=sample_rate, target_sr=16_000, res_type="soxr_hq")
    length = resampled_length(num_samples, sample_rate)
    np.testing.assert_array_equal(join(blocks), expected[:length])
    np.testing.assert_array_equal(join(resample_blocks([samples], sample_rate)), expected[:length])


@given(st.integers(1, 10**9), st.integers(1, 384_000))
def test_resampled_length_is_the_quotient_rounded_up(num_samples: int, sample_rate: int) -> None:
    length = resampled_length(num_samples, sample_rate)
    assert (length - 1) * sample_rate < num_samples * 16_000 <= length * sample_rate


@pytest.mark.parametrize(
    "samples",
    [
        tone(),
        tone().astype(np.float64),
        tone().tolist(),
        np.stack([tone(), tone()]),
        np.stack([tone(), tone()], axis=1),
        np.round(tone() * 32_768).astype(np.int16),
        np.round(tone() * 2.0**31).astype(np.int32),
    ],
    ids=["float32", "float64", "list", "channels first", "channels last", "int16", "int32"],
)
def test_arrays(samples: Any) -> None:
    waveform = as_waveform(samples, 16_000)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, tone(), atol=2e-5)
    assert len(as_waveform(samples, 48_000)) == resampled_length(8000, 48_000)


def test_tensors_of_any_kind() -> None:
    samples = torch.from_numpy(tone())
    np.testing.assert_array_equal(as_waveform(samples.clone().requires_grad_(), 16_000), tone())
    np.testing.assert_array_equal(
        as_waveform((samples * 32_768).round().to(torch.int16), 16_000.0),
        as_waveform(np.round(tone() * 32_768).astype(np.int16), 16_000),
    )
    for dtype in torch.bfloat16, torch.float16, torch.float64:
        np.testing.assert_allclose(as_waveform(samples.to(dtype), 16_000), tone(), atol=4e-3)
    with pytest.raises(
        AudioError, match=r"^array: expected floats in \[-1, 1\], int16, int32 or uint8, found complex64$"
    ):
        as_waveform(samples.to(torch.complex64), 16_000)
    with pytest.raises(AudioError, match=r"^array: expected samples, found Tensor: [^\n]*$"):
        as_waveform(samples.to("meta"), 16_000)


@pytest.mark.parametrize("num_channels", [1, 2, 6, 8])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 9, 100])
def test_a_few_frames_of_channels_are_not_taken_for_channels_of_samples(num_frames: int, num_channels: int) -> None:
    frames = np.random.default_rng(0).uniform(-0.5, 0.5, (num_frames, num_channels)).astype(np.float32)
    np.testing.assert_allclose(as_waveform(frames, 16_000), frames.mean(axis=1), atol=1e-6)
    if num_frames > max(num_channels, 8):
        np.testing.assert_allclose(as_waveform(frames.T, 16_000), frames.mean(axis=1), atol=1e-6)


def test_a_dict_of_the_datasets_library() -> None:
    for rate in (None, 8000):
        found = as_waveform({"path": "a.wav", "array": tone(0.5, 8000), "sampling_rate": 8000}, rate)
        np.testing.assert_array_equal(found, as_waveform(tone(0.5, 8000), 8000))


def test_a_decoder_of_the_datasets_library() -> None:
    samples = np.stack([tone(0.5, 8000), tone(0.5, 8000, 300)])
    decoder = SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(samples), sample_rate=8000))
    np.testing.assert_array_equal(as_waveform(decoder, None), as_waveform(samples, 8000))


def test_unsigned_bytes_are_centered() -> None:
    np.testing.assert_array_equal(
        as_waveform(np.array([0, 128, 192], np.uint8), 16_000), np.array([-1, 0, 0.5], np.float32)
    )


@pytest.mark.parametrize(
    ("samples", "sample_rate", "message"),
    [
        (tone(), None, "array: expected its sample rate (such as sample_rate=16000), found None"),
        (tone(), 0, "array: expected its sample rate (such as sample_rate=16000), found 0"),
        (np.array([0.1, np.inf]), 16_000, "array: expected finite samples, found inf at sample 1"),
        (np.zeros(0, np.float32), 16_000, "array: expected samples (T,) or (T, channels), found none"),
        (np.zeros((0, 2), np.float32), 16_000, "array: expected samples (T,) or (T, channels), found none"),
        (np.float32(0.5), 16_000, "array: expected samples (T,) or (T, channels), found the shape ()"),
        *((tone(), rate, "array: expected its sample rate") for rate in (-1, 0.5, math.nan, math.inf, "16000", [1])),
        (np.zeros((2, 2, 2)), 16_000, "array: expected samples (T,) or (T, channels), found the shape (2, 2, 2)"),
        ([1, 2, 3], 16_000, "array: expected floats in [-1, 1], int16, int32 or uint8, found int64"),
        (tone() * 32_768, 16_000, "array: expected samples in [-1, 1], found a peak of 16363.5"),
        ([[0.1], [0.2, 0.3]], 16_000, "array: expected samples, found list: "),
        (None, 16_000, "array: expected samples, found NoneType"),
        (["a.wav"], 16_000, "array: expected samples, found list"),
        ({"bytes": b"", "path": "a"}, None, 'array: expected a dict with "array" and "sampling_rate", found the keys'),
        ({"array": tone(), "sampling_rate": None}, None, "array: expected its sample rate"),
        (
            {"array": tone(), "sampling_rate": 8000},
            16_000,
            "array: expected sample_rate=16000 as stated, found a sampling_rate of 8000",
        ),
    ],
)
def test_bad_arrays(samples: Any, sample_rate: int | None, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        as_waveform(samples, sample_rate)
    assert str(caught.value).startswith(message)


def test_a_silent_array_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"array: silence: nothing moves by more than"):
        as_waveform(np.zeros(100, np.float32), 16_000)
