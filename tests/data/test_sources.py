"""The same recording from paths, archives, file objects and pipes."""

import io
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from sound_files import tone, write_noise

from speechssl.data import sources
from speechssl.data.audio import as_waveform
from speechssl.data.recording import AudioInfo, Recording, audio_info, read_audio
from speechssl.errors import AudioError


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


def test_file_objects_in_text_mode_or_empty() -> None:
    with pytest.raises(AudioError, match=r"stream: expected a file opened in binary mode, found str$"):
        read_audio(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(AudioError, match=r"stream: expected audio, found an empty file$"):
        read_audio(io.BytesIO())


def test_a_file_object_is_read_again_from_where_it_stood(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "a.wav", 16_000)
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
    monkeypatch.setattr(sources, "_SPOOL_BYTES", 10_000)  # less than the recording
    path = write_noise(tmp_path / f"a.{suffix}", 16_000)
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
    content = write_noise(tmp_path / f"a.{suffix}", 16_000, 20.0).read_bytes()
    for read in read_audio, lambda file: np.concatenate(list(Recording(file))):
        file = Watched(content, seeks)
        assert len(read(file)) == pytest.approx(320_000, abs=2000)
        assert 0 < file.largest <= 1 << 16
        assert file.tell() == len(content)


def test_a_file_object_is_heard_twice_at_a_time(tmp_path: Path) -> None:
    path = write_noise(tmp_path / "a.flac", 16_000)
    with path.open("rb") as file:
        part = Recording(file)
        pairs = list(zip(part, part, strict=True))
    assert np.array_equal(np.concatenate([first for first, _ in pairs]), read_audio(path))
    assert all(np.array_equal(first, second) for first, second in pairs)


def test_an_object_that_only_reads(tmp_path: Path) -> None:
    content = write_noise(tmp_path / "a.wav", 16_000).read_bytes()

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
    content = write_noise(tmp_path / "a.mp3", 16_000, 10.0).read_bytes()
    content = content[content.index(content[:2], content.index(b"Xing")) :]

    class Fails(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() + (size or 0) > len(content) - 5000:
                raise OSError(5, "Input/output error")
            return super().read(min(size or 0, 1000))

    for read in read_audio, lambda file: list(Recording(file)):
        with pytest.raises(AudioError, match=r"^stream: expected an audio file: Input/output error$"):
            read(Fails(content))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a"])
def test_the_bytes_of_a_file_are_read_as_the_file(tmp_path: Path, suffix: str, kind: type) -> None:
    path = write_noise(tmp_path / f"a.{suffix}", 16_000)
    content, expected = kind(path.read_bytes()), read_audio(path)
    assert audio_info(content) == audio_info(path)
    assert np.array_equal(read_audio(content), expected)
    part = Recording(content)
    for _ in range(2):
        assert np.array_equal(np.concatenate(list(part)), expected)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_samples_without_a_header_are_no_file(kind: type) -> None:
    noise = (3000 * np.random.default_rng(0).standard_normal(8000)).astype("<i2")
    for content in (noise.tobytes(), bytes(1000), b"text", b""):
        for read in read_audio, audio_info, Recording:
            with pytest.raises(
                AudioError, match=r"^buffer: .* write numpy.frombuffer\(data, numpy.int16\) and their sam"
            ):
                read(kind(content))
        with pytest.raises(
            AudioError, match=r"^array: expected samples, found bytes; numpy.frombuffer\(data, numpy.int16"
        ):
            as_waveform(kind(content), 16_000)
    typed = memoryview(np.float32(noise) / 32_768)
    assert len(as_waveform(typed, 16_000)) == 8000


def test_names_stay_in_their_line(tmp_path: Path) -> None:
    name = "a\tb\nc\r\x1b\u2028ä.wav"
    with pytest.raises(AudioError) as caught:
        read_audio(tmp_path / name)
    assert str(caught.value) == rf"{tmp_path}/a\tb\nc\r\x1b\u2028ä.wav: expected an audio file, found none"


class Named:
    """A path that is neither a string nor a Path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return os.fspath(self.path)


@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_a_name_need_not_be_utf_8(tmp_path: Path, suffix: str) -> None:
    path = write_noise(tmp_path / f"a.{suffix}", 16_000)
    expected = read_audio(path)
    named = path.rename(tmp_path / os.fsdecode(f"a\udcff.{suffix}"))
    archive = tmp_path / "\udcff.tar"
    archive.write_bytes(b"head" + named.read_bytes())
    for source in (named, str(named), Named(named), f"{archive}:4:{named.stat().st_size}"):
        assert audio_info(source) == AudioInfo(len(expected), 16_000, 2)
        np.testing.assert_array_equal(read_audio(source), expected)
        np.testing.assert_array_equal(np.concatenate(list(Recording(source))), expected)
    with pytest.raises(AudioError, match="expected an audio file, found none"):
        read_audio(tmp_path / "b\udcff.wav")
