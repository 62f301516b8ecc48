import builtins
import io
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.audio import AudioInfo, as_waveform, audio_info, read_audio, read_span, resampled_length
from speechssl.errors import AudioError

av = pytest.importorskip("av")


def tone(seconds: float = 0.5, sample_rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    """A tone whose loudness grows, so that a shifted span is told from the right one."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * time / seconds * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def write_with_av(path: Path, samples: np.ndarray, codec: str, sample_rate: int, container_format: str) -> None:
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=sample_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = sample_rate
        resampler = av.AudioResampler(stream.codec_context.format, "mono", sample_rate, frame_size=1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


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


@given(st.integers(1, 10**9), st.integers(1, 384_000))
def test_resampled_length_is_the_quotient_rounded_up(num_samples: int, sample_rate: int) -> None:
    length = resampled_length(num_samples, sample_rate)
    assert (length - 1) * sample_rate < num_samples * 16_000 <= length * sample_rate


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
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16_000, layout="stereo")
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels.T), format="fltp", layout="stereo")
            frame.sample_rate = 16_000
            container.mux([*stream.encode(frame), *stream.encode(None)])
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


def test_many_channels_in_what_only_pyav_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 10)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", channels, 16_000, subtype="FLOAT")
    monkeypatch.setattr("speechssl.data.sources._open_with_libsndfile", lambda _: None)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), channels.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", channel=10), channels[:, 9], atol=1e-6)


def test_a_rate_that_cannot_be_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), 1)
    for read in audio_info, read_audio:
        with pytest.raises(AudioError, match=r"a\.wav: expected 1000 samples a second or more, found 1"):
            read(tmp_path / "a.wav")


def test_a_recording_of_many_blocks_is_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (5000, 3)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", channels, 16_000, subtype="FLOAT")
    monkeypatch.setattr("speechssl.data.audio._BLOCK_SAMPLES", 999)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), channels.mean(axis=1))
    np.testing.assert_array_equal(
        read_audio(tmp_path / "a.wav", start=7, num_samples=4000, channel=2), channels[7:4007, 1]
    )


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


def test_formats_of_pyav(tmp_path: Path) -> None:
    g722, m4a = tmp_path / "a.g722", tmp_path / "a.m4a"
    write_with_av(g722, tone(), "g722", 16_000, "g722")
    write_with_av(m4a, tone(0.5, 44_100), "aac", 44_100, "ipod")
    assert abs(audio_info(g722).num_samples - 8000) < 1024
    waveform = read_audio(g722)
    np.testing.assert_allclose(waveform[1000:7000], tone()[978:6978], atol=0.03)  # the codec delays by 22 samples
    np.testing.assert_array_equal(read_audio(g722, start=500, num_samples=900), waveform[500:1400])
    info = audio_info(m4a)
    assert info.sample_rate == 44_100
    assert len(read_audio(m4a)) == resampled_length(info.num_samples, 44_100)
    with pytest.raises(AudioError, match=r"a.g722: expected 9000 samples from sample 500 on, found \d+$"):
        read_audio(g722, start=500, num_samples=9000)


def test_without_pyav_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.g722"
    path.write_bytes(bytes(100))
    original = builtins.__import__

    def refuse_av(name: str, *rest: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse_av)
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert str(caught.value) == (
        f"{path}: expected audio that libsndfile reads, found something else "
        "(m4a, G.722, video and files that do not state their length need PyAV: pip install 'speechssl[av]')"
    )


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


def test_files_inside_an_archive(tmp_path: Path) -> None:
    flac, archive = tmp_path / "a.flac", tmp_path / "a.zip"
    soundfile.write(flac, tone(), 16_000)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("padding.txt", "x" * 1000)
        file.write(flac, "a.flac")
        offset = file.getinfo("a.flac").header_offset + 30 + len("a.flac")
    size = flac.stat().st_size
    inside = f"{archive}:{offset}:{size}"
    assert audio_info(inside) == AudioInfo(8000, 16_000, 1)
    np.testing.assert_array_equal(read_audio(inside), read_audio(flac))
    np.testing.assert_array_equal(read_audio(Path(inside), start=10, num_samples=20), read_audio(flac)[10:30])
    with pytest.raises(AudioError, match=r"a.zip:\d+:99999: expected 99999 bytes from byte \d+ on, found \d+$"):
        read_audio(f"{archive}:{offset}:99999")
    with pytest.raises(AudioError, match=r"b.zip:0:10: expected an audio file, found none$"):
        read_audio(tmp_path / "b.zip:0:10")


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
        ("zero\0byte.wav", "expected an audio file: embedded null byte"),
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
    for start, num_samples, found in [(0, 8001, 8000), (7000, 1001, 1000), (9000, 10, 0)]:
        at = f" from sample {start} on" if start else ""
        with pytest.raises(AudioError) as caught:
            read_audio(path, start=start, num_samples=num_samples)
        assert str(caught.value) == f"{path}: expected {num_samples} samples{at}, found {found}"
    for start, num_samples in [(-1, 10), (0, 0), (8000, None)]:
        with pytest.raises(AudioError, match=r"a.wav: expected"):
            read_audio(path, start=start, num_samples=num_samples)
    with pytest.raises(AudioError, match=r"a.wav: expected 8000 samples a second, found 16000$"):
        read_audio(path, sample_rate=8000)


def test_silence_is_a_warning_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.zeros(1000), 16_000)
    with pytest.warns(UserWarning, match=r"silent.wav: silence$"):
        assert len(read_audio(path)) == 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples, rate = read_span(path)
    assert (len(samples), rate) == (1000, 16_000)


def test_file_objects_in_text_mode_or_empty() -> None:
    with pytest.raises(AudioError, match=r"stream: expected a file opened in binary mode, found str$"):
        read_audio(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(AudioError, match=r"stream: expected audio, found an empty file$"):
        read_audio(io.BytesIO())


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
    ],
)
def test_bad_arrays(samples: Any, sample_rate: int | None, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        as_waveform(samples, sample_rate)
    assert str(caught.value).startswith(message)


def test_a_silent_array_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"array: silence$"):
        as_waveform(np.zeros(100, np.float32), 16_000)
