import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.augment import change_speed


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1, 1.25])
def test_a_faster_recording_is_shorter_and_higher(speed: float) -> None:
    waveform = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    changed = change_speed(waveform, speed)
    assert changed.dtype == np.float32
    assert abs(len(changed) - 16_000 / speed) <= 1
    spectrum = np.abs(np.fft.rfft(changed * np.hanning(len(changed))))
    assert np.argmax(spectrum) * 16_000 / len(changed) == pytest.approx(1000 * speed, abs=1)
    assert np.abs(changed[1000:-1000]).max() == pytest.approx(1, abs=0.01)


def test_speed_one_changes_nothing() -> None:
    waveform = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    assert change_speed(waveform, 1.0) is waveform


@given(st.integers(50, 200), st.one_of(st.integers(1, 3000), st.integers(1, 200_000)))
def test_every_sample_is_the_one_of_librosa(percent: int, num_samples: int) -> None:
    speed = percent / 100
    waveform = np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)
    expected = librosa.resample(waveform, orig_sr=16_000 * speed, target_sr=16_000, res_type="soxr_mq")
    np.testing.assert_array_equal(change_speed(waveform, speed), expected)
