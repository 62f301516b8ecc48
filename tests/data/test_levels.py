import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.audio import as_waveform
from speechssl.data.levels import AudioWarning, Levels
from speechssl.data.manifest import Utterance, read_utterance
from speechssl.data.recording import Recording, read_audio

RATE = 16_000
BURSTS = np.repeat([0.0, 1.0, 0.0, 0.3], RATE // 2)
SPEECH = 0.12 * BURSTS * np.random.default_rng(0).standard_normal(len(BURSTS))  # -18 dB where it is loudest


def kinds(*channels: np.ndarray, block: int = 10 * RATE) -> list[str]:
    samples = np.stack(channels, axis=1).astype(np.float32)
    levels = Levels(RATE, len(channels))
    for at in range(0, len(samples), block):
        levels.add(samples[at : at + block])
    return [fault.kind for fault in levels.faults()]


def test_good_recordings_have_no_faults() -> None:
    assert kinds(SPEECH) == []
    assert kinds(SPEECH, SPEECH) == []
    assert kinds(SPEECH, 0 * SPEECH) == []  # a microphone that is off
    assert kinds(SPEECH, np.random.default_rng(1).permutation(SPEECH)) == []
    once = SPEECH.copy()
    once[100:102] = 1  # a click
    assert kinds(once) == []


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (SPEECH * 0, ["silence"]),
        (SPEECH * 0 + 0.1, ["silence"]),
        (SPEECH * 0.01, ["quiet"]),
        (SPEECH * 0.01 + 0.4 * np.eye(1, len(SPEECH), 7)[0], ["quiet"]),  # a loud click in it
        (np.clip(SPEECH * 20, -0.9, 0.9) * 0.3, ["clipped"]),
        (np.clip(SPEECH * 20, -1, 1), ["loud", "clipped"]),
        (SPEECH + 0.02, ["offset"]),
        (SPEECH * 0.01 - 0.02, ["quiet", "offset"]),
    ],
)
def test_planted_faults(samples: np.ndarray, expected: list[str]) -> None:
    assert kinds(samples) == expected
    assert kinds(samples, block=RATE) == expected


def test_channels_that_cancel_each_other_are_named() -> None:
    other = np.random.default_rng(2).permutation(SPEECH)
    levels = Levels(RATE, 3)
    levels.add(np.stack([SPEECH + 0.1, other, 0.05 * other - 0.8 * SPEECH], axis=1).astype(np.float32))
    assert [(fault.kind, fault.detail) for fault in levels.faults()] == [
        ("offset", "the mean is 0.100 of full scale in channel 1"),
        ("opposite phase", "channels 1 and 3 cancel each other in their mean; use one of them alone"),
    ]
    assert kinds(SPEECH, -0.1 * SPEECH) == []  # the mean is loud enough


@given(st.lists(st.sampled_from([RATE // 2, RATE]), min_size=1, max_size=3), st.sampled_from([0.001, 1.0, 30.0]))
def test_blocks_do_not_matter(cuts: list[int], gain: float) -> None:
    samples = np.clip(SPEECH * gain + 0.01, -1, 1)[:, None].astype(np.float32)
    whole, parts = Levels(RATE, 1), Levels(RATE, 1)
    whole.add(samples)
    for part in np.split(samples, np.cumsum(cuts)):
        if len(part):
            parts.add(part)
    assert {fault.kind for fault in parts.faults()} == {fault.kind for fault in whole.faults()}
    assert parts.products == pytest.approx(whole.products, rel=1e-4)


def test_each_reader_says_it_in_a_line_and_training_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([SPEECH, -SPEECH], axis=1), RATE)
    line = "a.wav: opposite phase: channels 1 and 2 cancel each other in their mean; use one of them alone"
    for read in (lambda: read_audio(path), lambda: list(Recording(path)), lambda: list(Recording(path, start=0.4))):
        with pytest.warns(AudioWarning, match=line):
            read()
    with pytest.warns(AudioWarning, match="array: opposite phase"):
        as_waveform(np.stack([SPEECH, -SPEECH], axis=1), RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(Recording(path, channel=2))
        read_utterance(Utterance(str(path), len(SPEECH)))


def test_channels_are_named_if_none_was_chosen(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([SPEECH, SPEECH + 0.1, SPEECH], axis=1), RATE)
    with pytest.warns(AudioWarning, match=r"a.wav: offset: the mean is 0.100 of full scale in channel 2$"):
        read_audio(tmp_path / "a.wav")
    with pytest.warns(AudioWarning, match=r"a.wav: offset: the mean is 0.100 of full scale$"):
        read_audio(tmp_path / "a.wav", channel=2)
