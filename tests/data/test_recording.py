"""Reading in blocks gives what reading at once gives."""

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.data import recording
from speechssl.data import sources as source
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


@pytest.mark.parametrize("suffix", ["wav", "m4a"])
@pytest.mark.parametrize("kind", ["path", "object"])
def test_a_pipe_is_read_once_and_heard_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str
) -> None:
    monkeypatch.setattr(source, "_SPOOL_BYTES", 10_000)  # less than the recording
    path = write(tmp_path / f"a.{suffix}", 16_000)
    expected, content = read_audio(path), path.read_bytes()
    reader, writer = os.pipe()

    def fill() -> None:
        with os.fdopen(writer, "wb") as file:
            file.write(content)

    threading.Thread(target=fill, daemon=True).start()
    with os.fdopen(reader, "rb") as pipe:
        part = Recording(f"/dev/fd/{reader}" if kind == "path" else pipe)
        for _ in range(3):
            assert np.array_equal(np.concatenate(list(part)), expected)


class Watched(io.BytesIO):
    """Remembers how much was asked for at once."""

    def __init__(self, content: bytes, seeks: bool) -> None:
        super().__init__(content)
        self.seeks, self.largest = seeks, 0

    def seekable(self) -> bool:
        return self.seeks

    def read(self, size: int | None = -1) -> bytes:
        self.largest = max(self.largest, 1 << 40 if size is None or size < 0 else size)
        return super().read(size)


@pytest.mark.parametrize("seeks", [True, False])
@pytest.mark.parametrize("suffix", ["wav", "flac", "m4a"])
def test_a_file_object_is_never_in_memory_as_a_whole(tmp_path: Path, suffix: str, seeks: bool) -> None:
    content = write(tmp_path / f"a.{suffix}", 16_000, 20.0).read_bytes()
    for read in read_audio, lambda file: np.concatenate(list(Recording(file))):
        file = Watched(content, seeks)
        assert len(read(file)) == pytest.approx(320_000, abs=2000)
        assert 0 < file.largest <= 1 << 16
        assert file.tell() == len(content)


def test_a_file_object_is_heard_twice_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", 16_000)
    with path.open("rb") as file:
        part = Recording(file)
        pairs = list(zip(part, part, strict=True))
    assert np.array_equal(np.concatenate([first for first, _ in pairs]), read_audio(path))
    assert all(np.array_equal(first, second) for first, second in pairs)


def test_an_object_that_only_reads(tmp_path: Path) -> None:
    content = write(tmp_path / "a.wav", 16_000).read_bytes()

    class Reads:
        def __init__(self) -> None:
            self.read = io.BytesIO(content).read

    expected = read_audio(tmp_path / "a.wav")
    part = Recording(Reads())  # type: ignore[arg-type]
    for samples in (read_audio(Reads()), *(np.concatenate(list(part)) for _ in range(2))):  # type: ignore[arg-type]
        assert np.array_equal(samples, expected)

    class ReadsAll:
        def read(self) -> bytes:
            return content

    class Fails(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 20_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    closed = io.BytesIO(content)
    closed.close()
    text: Any = io.StringIO("text")
    objects = [
        (ReadsAll, "takes 1 positional argument"),
        (lambda: Fails(content), "Input/output error"),
        (lambda: closed, "closed"),
        (lambda: text, "a file opened in binary mode, found str"),
    ]
    for make, message in objects:
        for read in read_audio, lambda file: list(Recording(file)):
            with pytest.raises(AudioError, match=rf"^stream: expected .*{message}") as caught:
                read(make())
            assert "\n" not in str(caught.value)


def test_a_read_that_fails_is_not_the_end(tmp_path: Path) -> None:
    """Where the format does not state its length, the recording would seem whole."""
    content = write(tmp_path / "a.mp3", 16_000).read_bytes()
    content = content[content.index(content[:2], content.index(b"Xing")) :]

    class Fails(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() + (size or 0) > len(content) - 5000:
                raise OSError(5, "Input/output error")
            return super().read(min(size or 0, 1000))

    for read in read_audio, lambda file: list(Recording(file)):
        with pytest.raises(AudioError, match=r"^stream: expected an audio file: Input/output error$"):
            read(Fails(content))


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
    silent = Recording(tmp_path / "a.wav")
    with pytest.warns(UserWarning, match="silence") as warned:
        assert [sum(map(len, silent)) for _ in range(2)] == [20_000, 20_000]
    assert len(warned) == 1, "long recordings are read twice"


def test_no_more_is_decoded_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An m4a of hours must not be in memory as a whole, nor be decoded behind its end."""
    path = write(tmp_path / "a.m4a", 16_000, 20.0)
    longest = num_decoded = 0
    original = recording.cut

    def watched(blocks, start, stop):
        def counted():
            nonlocal longest, num_decoded
            for block in blocks:
                longest, num_decoded = max(longest, len(block)), num_decoded + len(block)
                yield block

        return original(counted(), start, stop)

    monkeypatch.setattr(recording, "cut", watched)
    assert sum(map(len, Recording(path, end=4.0))) == 64_000
    assert longest <= 2048
    assert num_decoded < 70_000
