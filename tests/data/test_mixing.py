"""Mixing: what is added, how loudly and where, measured on planted signals."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch

from speechssl.data.batches import Example, TaskBatch, collate_audio
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.data.mixing import Color, MixingCollate, MixingConfig, make_noise, mix_in, scaled_below

ALWAYS = MixingConfig(probability=1.0)
NUM_SAMPLES = 1_000
LEVELS = (0.5, 0.01, 0.1, 0.03)  # of the voices


def collate(examples: list[Example]) -> TaskBatch:
    return TaskBatch(collate_audio(examples), {})


def voices(epoch: int = 0, indices: tuple[int, ...] = (0, 1, 2, 3), num_samples: int = NUM_SAMPLES) -> list[Example]:
    """Signals that differ in every piece, at levels of their own, loud first: no part has the power of the whole."""
    fading = np.where(np.arange(num_samples) < num_samples / 2, 1.0, 0.1)
    signals = [fading * np.random.default_rng(index).standard_normal(num_samples) for index in indices]
    return [
        Example(index, epoch, (LEVELS[index] * (signal - signal.mean())).astype(np.float32), None)
        for index, signal in zip(indices, signals, strict=True)
    ]


def added(config: MixingConfig, examples: list[Example], noise: Color | None = None) -> list[npt.NDArray[np.float64]]:
    """What was added to each recording."""
    audio = MixingCollate(collate, config, noise, 0)(examples).audio
    for row, example in zip(audio.clean_waveforms, examples, strict=True):
        assert torch.equal(row[: len(example.waveform)], torch.from_numpy(example.waveform)), "the target has changed"
    difference = (audio.waveforms.double() - audio.clean_waveforms.double()).numpy()
    return [row[: len(example.waveform)] for row, example in zip(difference, examples, strict=True)]


def measure(piece: npt.NDArray[np.float64], other: npt.NDArray[np.float32]) -> tuple[int, int, float] | None:
    """Find the length, the place and the gain with which a piece of this recording was added; None if it was not."""
    places = np.flatnonzero(piece)
    here, length = places[0], places[-1] + 1 - places[0]
    windows = np.lib.stride_tricks.sliding_window_view(other.astype(np.float64), length)
    wanted = piece[here : here + length]
    gains = windows @ wanted / (windows**2).sum(axis=1)
    there = np.argmin(((wanted - gains[:, None] * windows) ** 2).sum(axis=1))
    is_found = np.allclose(wanted, gains[there] * windows[there], rtol=0, atol=1e-2 * abs(wanted).max())
    return (length, here, gains[there]) if is_found else None


def power(waveform: npt.NDArray[np.floating]) -> float:
    return float(np.mean(np.square(waveform, dtype=np.float64)))


def test_another_voice_is_added_at_the_ratio_of_whole_powers() -> None:
    """Also that it is never the voice itself, and the voice as it was read, not what was already mixed."""
    lengths, places, decibels, partners = [], [], [], Counter[tuple[int, int]]()
    for epoch in range(60):
        examples = voices(epoch)
        for row, piece in enumerate(added(ALWAYS, examples)):
            if np.count_nonzero(piece) < 100:  # the shorter, the more places fit
                continue
            found = {number: measure(piece, example.waveform) for number, example in enumerate(examples)}
            [(partner, (length, here, gain))] = [item for item in found.items() if item[1]]
            partners[row, partner] += 1
            powers = [power(examples[one].waveform) for one in (row, partner)]
            decibels.append(10 * np.log10(powers[0] / (gain**2 * powers[1])))
            lengths.append(length)
            places.append(here / (NUM_SAMPLES - length))
    assert set(partners) == {(row, other) for row in range(4) for other in range(4) if row != other}
    assert min(partners.values()) > 3
    assert -5.01 < min(decibels) < -4.5
    assert 4.5 < max(decibels) < 5.01
    assert np.mean(decibels) == pytest.approx(0, abs=0.8)  # U(-5, 5): 2.9 from one to the next
    assert max(lengths) <= NUM_SAMPLES // 2
    assert np.mean(lengths) == pytest.approx((100 + 500) / 2, abs=25)
    assert np.mean(places) == pytest.approx(0.5, abs=0.08)
    assert np.std(places) == pytest.approx(12**-0.5, abs=0.05)


def test_the_length_is_uniform_from_nothing_to_half() -> None:
    waveform, other = np.ones(100, np.float32), np.tile([1.0, -1.0], 50).astype(np.float32)
    waveform[::2] = 0
    lengths = Counter(
        np.count_nonzero(mix_in(waveform, other, 0.0, np.random.default_rng(seed)) != waveform) for seed in range(5_000)
    )
    assert set(lengths) == set(range(51))
    assert min(lengths.values()) > 60  # 98 on average
    assert max(lengths.values()) < 140


def test_both_places_are_drawn_by_themselves() -> None:
    """A piece of a ramp says where it is from."""
    ramp = np.linspace(-1, 1, 1_001, dtype=np.float32)
    found = []
    for seed in range(400):
        piece = mix_in(np.tile([0.5, -0.5], 500).astype("f4"), ramp, 0.0, np.random.default_rng(seed))
        piece -= np.tile([0.5, -0.5], 500).astype("f4")
        if (places := np.flatnonzero(abs(piece) > 1e-4)).size > 100:
            spare = 1_000 - (places[-1] - places[0] + 1)
            start = np.interp(piece[places[0]], ramp * 0.5 / ramp.std(), np.arange(1_001))
            found.append((places[0] / spare, start / spare))
    here, there = np.array(found).T
    for drawn in (here, there):
        assert np.mean(drawn) == pytest.approx(0.5, abs=0.06)
        assert np.std(drawn) == pytest.approx(12**-0.5, abs=0.04)
    assert abs(np.corrcoef(here, there)[0, 1]) < 0.15


@pytest.mark.parametrize("color", ["white", "pink"])
def test_noise_is_added_at_its_own_ratios(color: Color) -> None:
    config = MixingConfig(probability=1.0, noise=color, noise_probability=1.0)
    decibels = []
    for epoch in range(100):
        for example, piece in zip(voices(epoch), added(config, voices(epoch), color), strict=True):
            if (length := np.count_nonzero(piece)) > 250 and color == "white":  # a part is as strong as the whole
                decibels.append(10 * np.log10(power(example.waveform) * length / np.square(piece).sum()))
            assert length <= NUM_SAMPLES // 2
    if color == "white":
        assert -5.5 < min(decibels) < -4
        assert 19 < max(decibels) < 20.5
        assert np.mean(decibels) == pytest.approx(7.5, abs=1.2)


def test_pink_noise_has_as_much_power_in_every_octave() -> None:
    generator = np.random.default_rng(0)
    for color, expected in (("white", 2.0), ("pink", 1.0)):
        spectrum = abs(np.fft.rfft(make_noise(color, 2**16, generator))) ** 2  # type: ignore[arg-type]
        octaves = [spectrum[2**number : 2 ** (number + 1)].sum() for number in range(7, 15)]
        ratios = np.divide(octaves[1:], octaves[:-1])
        np.testing.assert_allclose(ratios, expected, rtol=0.2)


def test_how_often_and_how_often_noise() -> None:
    config = MixingConfig(probability=0.3, noise="white", noise_probability=0.25)
    num_long, num_noise = 0, 0
    for epoch in range(400):
        examples = voices(epoch)
        for piece in added(config, examples, "white"):
            if np.count_nonzero(piece) > 50:
                num_long += 1
                num_noise += not any(measure(piece, example.waveform) for example in examples)
    assert num_long / 1_600 == pytest.approx(0.3 * 0.9, abs=0.03)
    assert num_noise / num_long == pytest.approx(0.25, abs=0.05)
    assert not any(piece.any() for piece in added(MixingConfig(probability=0.0), voices()))


def test_recordings_of_noise_are_read(tmp_path: Path) -> None:
    """A long one and one shorter than what it is added to, at a rate of its own."""
    generator = np.random.default_rng(0)
    names = [("long", 4_000, 16_000), ("short", 200, 8_000)]
    for name, num_samples, rate in names:
        signal = np.diff(generator.uniform(-0.4, 0.4, num_samples + 1))  # no crop has an offset to speak of
        soundfile.write(tmp_path / f"{name}.wav", signal, rate, subtype="FLOAT")
    utterances = [Utterance(str(tmp_path / f"{name}.wav"), length, sample_rate=rate) for name, length, rate in names]
    write_manifest(tmp_path / "noise.tsv", utterances, tmp_path)
    config = MixingConfig(probability=1.0, noise=tmp_path / "noise.tsv", noise_probability=1.0)
    noise = config.read_noise()
    whole, _ = soundfile.read(tmp_path / "long.wav", dtype="float32")
    decibels, num_short = [], 0
    for epoch in range(35):
        examples = voices(epoch)
        mixed = pickle.loads(pickle.dumps(MixingCollate(collate, config, noise, 0)))(examples).audio
        for example, row, clean in zip(examples, mixed.waveforms, mixed.clean_waveforms, strict=True):
            piece = (row.double() - clean.double()).numpy()
            if np.count_nonzero(piece) < 50:
                continue
            if (found := measure(piece, whole)) is None:
                num_short += 1
                assert np.count_nonzero(piece) <= 400  # 200 at twice the rate
                continue
            decibels.append(10 * np.log10(power(example.waveform) / (found[2] ** 2 * power(whole))))
    assert 50 < num_short < 90
    assert len(decibels) > 50
    assert -5.5 < min(decibels) < -3.5
    assert 18 < max(decibels) < 20.5


def test_the_draws_depend_on_the_utterance_and_its_batch_alone() -> None:
    config = MixingConfig(noise="pink")
    make = MixingCollate(collate, config, "pink", 3)
    first = make(voices(0)).audio
    again = pickle.loads(pickle.dumps(make))(voices(0)).audio
    assert torch.equal(first.waveforms, again.waveforms)
    torch.manual_seed(5)
    assert torch.equal(make(voices(0)).audio.waveforms, first.waveforms)
    assert not torch.equal(make(voices(1)).audio.waveforms - first.waveforms, torch.zeros_like(first.waveforms))
    other_seed = MixingCollate(collate, config, "pink", 4)(voices(0)).audio
    assert not torch.equal(other_seed.waveforms, first.waveforms)
    # Whether, how long and where an utterance is mixed do not depend on its place among the others.
    always = MixingCollate(collate, MixingConfig(probability=1.0, noise="white", noise_probability=1.0), "white", 3)
    forwards, backwards = always(voices(0)).audio, always(voices(0, (3, 2, 1, 0))).audio
    assert torch.equal(forwards.waveforms, backwards.waveforms.flip(0))


def test_alone_in_its_batch_a_recording_hears_no_voice_but_noise() -> None:
    [example] = voices(indices=(2,))
    assert not any(added(ALWAYS, [example])[0])
    noisy = MixingConfig(probability=1.0, noise="white", noise_probability=1.0)
    assert any(added(noisy, [example], "white")[0])


def test_padding_is_not_mixed() -> None:
    examples = voices(indices=(0,), num_samples=1_000) + voices(indices=(1,), num_samples=400)
    for epoch in range(20):
        batch = [Example(e.index, epoch, e.waveform, None) for e in examples]
        audio = MixingCollate(collate, ALWAYS, None, 0)(batch).audio
        assert not audio.waveforms[1, 400:].any()
        assert audio.lengths is not None


def test_silence_and_offsets_have_no_power() -> None:
    tone = voices(indices=(0,))[0].waveform
    for constant in (0.0, 0.3):
        silence = np.full(NUM_SAMPLES, constant, np.float32)
        assert not scaled_below(tone, silence, 0.0).any()
        assert not scaled_below(silence, tone, 0.0).any()
    np.testing.assert_allclose(scaled_below(tone + 0.5, tone - 0.4, 0.0), tone, atol=1e-4)


def test_the_recordings_that_were_read_stay_as_they_are() -> None:
    examples = voices()
    before = [example.waveform.copy() for example in examples]
    MixingCollate(collate, ALWAYS, None, 0)(examples)
    for example, waveform in zip(examples, before, strict=True):
        np.testing.assert_array_equal(example.waveform, waveform)
