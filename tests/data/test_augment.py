import numpy as np
import pytest

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
