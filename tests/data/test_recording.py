"""Reading in blocks gives what reading at once gives."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.data import recording
from speechssl.data.audio import read_audio
from speechssl.data.recording import Recording
from speechssl.errors import AudioError


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_BLOCK_SECONDS", 1)


def write(path: Path, rate: int, seconds: float = 3.01) -> Path:
    samples = 0.1 * np.random.default_rng(rate).standard_normal((round(seconds * rate), 2))
    if path.suffix == ".m4a":
        av = pytest.importorskip("av")
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=rate, layout="stereo")
            planes = np.ascontiguousarray(samples.T, np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="stereo")
            frame.sample_rate = rate
            resampler = av.AudioResampler("fltp", "stereo", rate, frame_size=1024)
            for part in (*resampler.resample(frame), *resampler.resample(None), None):
                container.mux(stream.encode(part))
    else:
        soundfile.write(path, samples, rate)
    return path


@pytest.mark.parametrize("rate", [16_000, 44_100, 11_025])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_blocks_join_to_the_recording(tmp_path: Path, suffix: str, rate: int) -> None:
    path = write(tmp_path / f"a.{suffix}", rate)
    blocks = list(Recording(path))
    assert len(blocks) > 3
    assert np.array_equal(np.concatenate(blocks), read_audio(path))
    part = Recording(path, channel=2, start=0.7, end=2.3)
    start, stop = round(0.7 * rate), round(2.3 * rate)
    expected = read_audio(path, channel=2, start=start, num_samples=stop - start)
    for _ in range(2):
        assert np.array_equal(np.concatenate(list(part)), expected)


def test_a_file_object_is_read_again_from_where_it_stood(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 16_000)
    expected = read_audio(path)
    stream = io.BytesIO(b"head" + path.read_bytes())
    stream.seek(4)
    reader, writer = os.pipe()
    os.write(writer, path.read_bytes()[:40_000])
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        for source in (Recording(stream), Recording(pipe)):
            if source.source is stream:
                assert np.array_equal(np.concatenate(list(source)), expected)
                assert np.array_equal(np.concatenate(list(source)), expected)
            else:
                with pytest.raises(AudioError, match="cut off"):
                    list(source)
                with pytest.raises(AudioError, match="cut off"):  # not: empty
                    list(source)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 16_000)
    for file in (path, write(tmp_path / "a.m4a", 16_000)):
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
    flac = write(tmp_path / "a.flac", 16_000)
    flac.write_bytes(flac.read_bytes()[:-20_000])
    with pytest.raises(AudioError):
        list(Recording(flac))
    samples = np.zeros(40_000, np.float32)
    samples[30_000] = np.inf
    soundfile.write(tmp_path / "inf.wav", samples, 16_000, "FLOAT")
    blocks = iter(Recording(tmp_path / "inf.wav"))
    next(blocks)
    with pytest.raises(AudioError, match="finite"):
        next(blocks)


def test_silence_is_a_warning(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(20_000), 16_000)
    with pytest.warns(UserWarning, match="silence"):
        assert sum(map(len, Recording(tmp_path / "a.wav"))) == 20_000


def test_no_more_is_decoded_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An m4a of hours must not be in memory as a whole, nor be decoded behind its end."""
    path = write(tmp_path / "a.m4a", 16_000, 20.0)
    longest = num_decoded = 0
    original = recording._cut

    def watched(blocks, start, stop):
        def counted():
            nonlocal longest, num_decoded
            for block in blocks:
                longest, num_decoded = max(longest, len(block)), num_decoded + len(block)
                yield block

        return original(counted(), start, stop)

    monkeypatch.setattr(recording, "_cut", watched)
    assert sum(map(len, Recording(path, end=4.0))) == 64_000
    assert longest <= 2048
    assert num_decoded < 70_000
