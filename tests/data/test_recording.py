"""Recordings are read exactly, whole, in spans and in blocks, and what is wrong with them is one line."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from sound_files import tone, write_noise, write_with_av

from speechssl.data import decoder
from speechssl.data.recording import AudioInfo, Recording, audio_info, read_audio, read_span
from speechssl.errors import AudioError


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_BLOCK_SECONDS", 1)


FORMATS: dict[str, tuple[str, dict[str, Any], float]] = {
    "wav of 16 bits": ("a.wav", {"subtype": "PCM_16"}, 1e-4),
    "wav of 24 bits": ("a.wav", {"subtype": "PCM_24"}, 1e-6),
    "wav of floats": ("a.wav", {"subtype": "FLOAT"}, 1e-7),
    "flac": ("a.flac", {}, 1e-4),
    "vorbis": ("a.ogg", {}, 0.05),
    "opus": ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.05),
    "mp3": ("a.mp3", {"format": "MP3"}, 0.05),
}


@pytest.mark.parametrize("name", FORMATS)
def test_reads_what_was_written(tmp_path: Path, name: str) -> None:
    file, arguments, tolerance = FORMATS[name]
    path = tmp_path / file
    expected = tone()
    soundfile.write(path, expected, 16_000, **arguments)
    assert audio_info(path) == AudioInfo(8000, 16_000, 1)
    waveform = read_audio(path)
    assert waveform.dtype == np.float32
    assert len(waveform) == 8000
    # libsndfile's Opus encoder loses the last milliseconds.
    np.testing.assert_allclose(waveform[:7900], expected[:7900], atol=tolerance)
    np.testing.assert_allclose(read_audio(path, start=3001, num_samples=2000), waveform[3001:5001], atol=0.01)
    with path.open("rb") as file_object:
        np.testing.assert_array_equal(read_audio(file_object), waveform)


@pytest.mark.parametrize("rate", [16_000, 44_100, 11_025])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_blocks_join_to_the_recording(tmp_path: Path, suffix: str, rate: int) -> None:
    path = write_noise(tmp_path / f"a.{suffix}", rate)
    blocks = list(Recording(path))
    assert len(blocks) > 3
    assert np.array_equal(np.concatenate(blocks), read_audio(path))
    part = Recording(path, channel=2, start=0.7, end=2.3)
    start, stop = round(0.7 * rate), round(2.3 * rate)
    expected = read_audio(path, channel=2, start=start, num_samples=stop - start)
    for _ in range(2):
        assert np.array_equal(np.concatenate(list(part)), expected)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(), tone(hertz=1000.0)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    assert audio_info(path).num_channels == 2
    np.testing.assert_allclose(read_audio(path), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("file", ["a.wav", "a.mp3", "a.m4a"])
def test_one_channel_is_chosen_by_its_number_from_1(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    channels = np.stack([tone(), 0.005 * tone()], axis=1)
    if file == "a.m4a":
        write_with_av(str(path), channels, 16_000, "ipod", "aac")
    else:
        soundfile.write(path, channels, 16_000)
    first, second, mean = (read_audio(path, channel=channel) for channel in (1, 2, None))
    assert np.abs(first).max() > 0.4
    assert np.abs(second).max() < 0.01
    np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)
    np.testing.assert_allclose(read_audio(path, start=3001, num_samples=2000, channel=1), first[3001:5001], atol=1e-6)
    for channel in 0, 3:
        with pytest.raises(AudioError, match=f"expected a channel from 1 to 2, found {channel}"):
            read_audio(path, channel=channel)


def test_a_recording_of_many_blocks_is_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (5000, 3)).astype(np.float32)
    soundfile.write(path, channels, 1000, subtype="FLOAT")
    np.testing.assert_array_equal(read_span(path)[0], channels.mean(axis=1))
    np.testing.assert_array_equal(read_span(path, start=7, num_samples=4000, channel=2)[0], channels[7:4007, 1])


def test_a_span_decodes_no_more_than_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(5.0), 16_000)
    asked = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames, **rest: asked.append(frames) or original(self, frames, **rest)
    )
    read_audio(path, start=60_000, num_samples=1000)
    assert asked == [1000]


def test_no_more_is_decoded_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An m4a of hours must not be in memory as a whole, nor be decoded behind its end."""
    path = write_noise(tmp_path / "a.m4a", 16_000, 20.0)
    longest = num_decoded = 0
    original = decoder.Decoder.decode

    def watched(*arguments: Any) -> Iterator[Any]:
        nonlocal longest, num_decoded
        for position, block in original(*arguments):
            longest, num_decoded = max(longest, len(block)), num_decoded + len(block)
            yield position, block

    monkeypatch.setattr(decoder.Decoder, "decode", watched)
    assert sum(map(len, Recording(path, end=4.0))) == 64_000
    assert longest <= 2048
    assert num_decoded < 70_000


def write_variable_mp3(path: Path) -> np.ndarray:
    """Noise and silence by turns: frames of very different sizes, in which libsndfile seeks to wrong places."""
    time = np.arange(96_000) / 16_000
    noise = 0.2 * np.random.default_rng(0).standard_normal(96_000)
    samples = (np.sin(2 * np.pi * 1.3 * time) > 0) * noise.clip(-1, 1)
    soundfile.write(path, samples, 16_000, format="MP3", bitrate_mode="VARIABLE")
    return samples


def test_spans_of_mp3_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    write_variable_mp3(path)
    waveform = read_audio(path)
    for start in (8000, 30_000, 50_000, 90_000):
        samples, _ = read_span(path, start=start, num_samples=500)
        np.testing.assert_allclose(samples, waveform[start : start + 500], atol=1e-6)


def test_mp3_without_a_stated_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    samples = write_variable_mp3(path)
    content = path.read_bytes()
    second_frame = content.index(content[:2], content.index(b"Xing"))
    path.write_bytes(b"ID3\4\0\0\0\0\1\0" + bytes(128) + content[second_frame:])
    for source in (path, io.BytesIO(path.read_bytes())):
        waveform = read_audio(source)  # without the tag, the encoder's delay and padding are not cut off
        assert 96_000 <= len(waveform) <= 100_000
        loud = [np.abs(part).max() > 0.1 for part in np.array_split(waveform[1105:97_105], 960)]
        expected = [np.abs(part).max() > 0.1 for part in np.array_split(samples, 960)]
        assert np.mean(np.array(loud) == np.array(expected)) > 0.95
    assert 96_000 <= audio_info(path).num_samples <= 100_000


def test_flac_without_a_stated_length(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(), 16_000)
    expected = read_audio(path)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert audio_info(path) == AudioInfo(8000, 16_000, 1)
    np.testing.assert_allclose(read_audio(path), expected, atol=1e-6)


@pytest.mark.parametrize("container_format", ["WAV", "AIFF"])
def test_gsm_which_cannot_be_sought(tmp_path: Path, container_format: str) -> None:
    samples = 0.3 * np.sin(np.arange(24_000) / 10)
    soundfile.write(tmp_path / "a", samples, 8000, format=container_format, subtype="GSM610")
    whole = np.concatenate(list(Recording(tmp_path / "a")))
    assert np.array_equal(whole, read_audio(tmp_path / "a"))
    assert np.abs(whole[:48_000:2] - samples).mean() < 0.02  # the last block is filled up
    part = np.concatenate(list(Recording(tmp_path / "a", start=1, end=2.5)))
    assert np.array_equal(part, read_audio(tmp_path / "a", start=8000, num_samples=12_000))
    np.testing.assert_allclose(part[100:-100], whole[16_100:39_900], atol=0.01)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    file, arguments, _ = FORMATS[name]
    path = tmp_path / file
    soundfile.write(path, tone(3.0), 16_000, **arguments)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(AudioError, match=f"{file}: expected .*, found") as caught:
        read_audio(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(AudioError, match=f"{file}: expected .*, found"):
        read_audio(path, start=0, num_samples=48_000)
    if file.endswith((".wav", ".ogg", ".opus")):
        with pytest.raises(AudioError, match=r"expected \d+ bytes, found \d+: the file is cut off$"):
            audio_info(path)


@pytest.mark.parametrize("size", [0, 0x7FFFF024, 0xFFFFFFFF])
def test_wav_files_written_to_a_pipe_are_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(), 16_000)
    content = bytearray(path.read_bytes())
    content[4:8] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(read_audio(path)) == 8000


def test_a_rate_that_cannot_be_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), 1)
    for read in audio_info, read_audio:
        with pytest.raises(AudioError, match=r"a\.wav: expected 1000 samples a second or more, found 1"):
            read(tmp_path / "a.wav")


def write_bad_files(folder: Path) -> None:
    (folder / "empty.wav").touch()
    (folder / "folder.wav").mkdir()
    (folder / "text.wav").write_text("this is no audio\n" * 50)
    (folder / "a.raw").write_bytes(bytes(1000))
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    samples = tone()
    samples[123] = np.nan
    soundfile.write(folder / "nan.wav", samples, 16_000, subtype="FLOAT")
    soundfile.write(folder / "loud.wav", tone() * 32_768, 16_000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.wav", "expected an audio file, found none"),
        ("zero\0byte.wav", "expected an audio file"),
        ("empty.wav", "expected audio, found an empty file"),
        ("folder.wav", "expected an audio file, found a folder"),
        (
            "text.wav",
            "expected audio, found what neither libsndfile nor FFmpeg reads (Invalid data found when processing input)",
        ),
        ("a.raw", "expected audio, found"),
        ("none.wav", "expected audio, found 0 samples"),
        ("nan.wav", "expected finite samples, found nan at sample 123"),
        ("loud.wav", "expected samples in [-1, 1], found a peak of"),
    ],
)
def test_bad_files(tmp_path: Path, file: str, message: str) -> None:
    write_bad_files(tmp_path)
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / file)
    assert str(caught.value).startswith(f"{tmp_path / file}: {message}")
    assert "\n" not in str(caught.value)
    if message.startswith(("expected an", "expected audio")):
        with pytest.raises(AudioError):
            audio_info(tmp_path / file)


def test_spans_outside_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(), 16_000)
    for start, num_samples, found in [(0, 8001, 8000), (7000, 1001, 1000)]:
        at = f" from sample {start} on" if start else ""
        with pytest.raises(AudioError) as caught:
            read_audio(path, start=start, num_samples=num_samples)
        assert str(caught.value) == f"{path}: expected {num_samples} samples{at}, found {found}"
    for start, num_samples in [(-1, 10), (0, 0)]:
        with pytest.raises(AudioError, match=rf"a.wav: expected a span inside the recording, found {num_samples} from"):
            read_audio(path, start=start, num_samples=num_samples)
    for start, num_samples in [(9000, 10), (8000, None)]:
        seconds = start / 16_000
        with pytest.raises(AudioError, match=f"a.wav: expected more than {seconds:g} seconds of audio, found 0.500$"):
            read_audio(path, start=start, num_samples=num_samples)
    with pytest.raises(AudioError, match=r"a.wav: expected 8000 samples a second, found 16000$"):
        read_audio(path, sample_rate=8000)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "a.wav", 16_000)
    for file in (path, write_noise(tmp_path / "a.m4a", 16_000)):
        for arguments, message in (
            ({"channel": 3}, "expected a channel from 1 to 2, found 3"),
            ({"start": 4.0}, "expected more than 4 seconds of audio, found 3."),
        ):
            with pytest.raises(AudioError, match=message):
                next(iter(Recording(file, **arguments)))
    with pytest.raises(ValueError, match="start"):
        Recording(path, start=2, end=1)
    with pytest.raises(AudioError, match="nowhere"):
        next(iter(Recording(tmp_path / "nowhere")))
    flac = write_noise(tmp_path / "a.flac", 16_000)
    flac.write_bytes(flac.read_bytes()[:-20_000])
    with pytest.raises(AudioError):
        list(Recording(flac))
    samples = np.zeros(40_000, np.float32)
    samples[30_000] = np.inf
    soundfile.write(tmp_path / "inf.wav", samples, 16_000, "FLOAT")
    blocks = iter(Recording(tmp_path / "inf.wav"))
    next(blocks)
    for read in (lambda: next(blocks), lambda: read_span(tmp_path / "inf.wav", start=20_000)):
        with pytest.raises(AudioError, match=r"inf.wav: expected finite samples, found inf at sample 30000$"):
            read()


def test_silence_is_a_warning_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.zeros(20_000), 16_000)
    with pytest.warns(UserWarning, match=r"silent.wav: silence: nothing moves by more than"):
        assert len(read_audio(path)) == 20_000
    silent = Recording(path)
    with pytest.warns(UserWarning, match=r"silent.wav: silence: nothing moves by more than") as warned:
        assert [sum(map(len, silent)) for _ in range(2)] == [20_000, 20_000]
    assert len(warned) == 1, "long recordings are read twice"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples, levels = read_span(path)
    assert (len(samples), levels.sample_rate) == (20_000, 16_000)
