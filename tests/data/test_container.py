"""Files that are cut off, joined or have wrong sizes are told from whole ones, and read if nothing is missing."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_files import write_with_av

from speechssl.data.container import inspect
from speechssl.data.packets import Contents
from speechssl.data.recording import Recording, audio_info, read_audio, read_span
from speechssl.errors import AudioError

pytest.importorskip("av")

SAMPLES = 0.3 * np.sin(np.arange(48_000) / 7)
SOUNDFILE: dict[str, dict[str, Any]] = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "wav, big-endian": {"format": "WAV", "subtype": "PCM_16", "endian": "BIG"},
    "rf64": {"format": "RF64", "subtype": "PCM_16"},
    "w64": {"format": "W64", "subtype": "PCM_16"},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"},
    "aifc": {"format": "AIFF", "subtype": "FLOAT"},
    "au": {"format": "AU", "subtype": "PCM_16"},
    "au, little-endian": {"format": "AU", "subtype": "ULAW", "endian": "LITTLE"},
    "caf": {"format": "CAF", "subtype": "PCM_16"},
    "caf with alac": {"format": "CAF", "subtype": "ALAC_16"},
    "sphere": {"format": "NIST", "subtype": "PCM_16"},
    "voc": {"format": "VOC", "subtype": "PCM_16"},
    "svx": {"format": "SVX", "subtype": "PCM_16"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
}
AV: dict[str, tuple[str, str, dict[str, str]]] = {
    "m4a": ("ipod", "aac", {"movflags": "faststart"}),
    "m4a, index at the end": ("ipod", "aac", {}),
    "mp4 in fragments": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}),
    "mov": ("mov", "pcm_s16le", {"movflags": "faststart"}),
    "mkv": ("matroska", "aac", {}),
    "webm": ("webm", "libopus", {}),
    "wma": ("asf", "mp3", {}),
    "flv": ("flv", "mp3", {}),
}


def written_by_soundfile(name: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, 48_000, **SOUNDFILE[name])
    return file.getvalue()


def written_by_av(name: str, tmp_path: Any) -> bytes:
    path = tmp_path / "file"
    samples, rate = (SAMPLES[:44_100], 44_100) if "mp3" in AV[name] else (SAMPLES, 48_000)
    write_with_av(str(path), samples, rate, *AV[name])
    return path.read_bytes()


@pytest.mark.parametrize("name", [*SOUNDFILE, *AV])
def test_a_file_is_whole_until_it_is_cut(tmp_path: Any, name: str) -> None:
    content = written_by_soundfile(name) if name in SOUNDFILE else written_by_av(name, tmp_path)
    assert len(read_audio(io.BytesIO(content))) == pytest.approx(16_000, abs=1000)
    for trailing in (b"", b"\0", b"\xff" * 100, b"TAG" + bytes(125), bytes(5000)):
        assert inspect(io.BytesIO(content + trailing)) == Contents()
    for size in (len(content) * 8 // 10, len(content) * 9 // 10):
        cut = content[:size]
        for read in read_audio, audio_info, lambda file: list(Recording(file)):
            with pytest.raises(AudioError, match=r"^stream: expected \d+ bytes, found \d+: the file is cut off$"):
                read(io.BytesIO(cut))
        with pytest.raises(AudioError, match=r"^stream: expected .*, found"):  # some say it is damaged
            list(Recording(io.BytesIO(cut), end=9))
    if name in ("m4a, index at the end", "wma", "flv"):  # without an index, of another rate
        return
    if name != "ogg":
        assert len(read_audio(io.BytesIO(content[: len(content) * 3 // 4]), num_samples=9600)) == 3200


class Pipe:
    def __init__(self) -> None:
        self.content = b""

    def write(self, block: bytes) -> int:
        self.content += block
        return len(block)


@pytest.mark.parametrize(
    ("container_format", "codec", "options"),
    [
        ("wav", "pcm_s16le", {}),
        ("wav", "pcm_s16le", {"rf64": "always"}),
        ("w64", "pcm_s16le", {}),
        ("aiff", "pcm_s16be", {}),
        ("au", "pcm_s16be", {}),
        ("caf", "pcm_s16be", {}),
        ("ogg", "libopus", {}),
        ("matroska", "aac", {}),
        ("webm", "libopus", {}),
        ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_what_was_written_to_a_pipe_is_whole(container_format: str, codec: str, options: dict[str, str]) -> None:
    pipe = Pipe()
    write_with_av(pipe, SAMPLES, 48_000, container_format, codec, options)
    assert inspect(io.BytesIO(pipe.content)).problem is None


@pytest.mark.parametrize(
    ("name", "at", "unknown"),
    [
        ("aiff", 4, b"\xff\xff\xff\xff"),
        ("aiff", 4, b"\x7f\0\0\x2e"),  # SoX
        ("au", 8, b"\xff\xff\xff\xff"),
        ("rf64", 20, bytes(8)),
        ("rf64", 20, b"\xff" * 8),
        ("w64", 16, b"\xff" * 8),
    ],
)
def test_a_length_may_be_unknown(name: str, at: int, unknown: bytes) -> None:
    content = bytearray(written_by_soundfile(name))
    content[at : at + len(unknown)] = unknown
    assert len(read_audio(io.BytesIO(content))) == 16_000


def heard(content: bytes) -> int:
    """How many samples all ways of reading find, at the recording's own rate."""
    num_samples = audio_info(io.BytesIO(content)).num_samples
    samples, rate = read_span(io.BytesIO(content))
    assert len(samples) == num_samples
    assert sum(map(len, Recording(io.BytesIO(content)))) == -(-num_samples * 16_000 // rate)
    return num_samples


SIZES = {  # where the size of the samples stands, in how many bytes, and how much it is more than their own
    "wav": (40, 4, 0),
    "wav, big-endian": (40, 4, 0),
    "rf64": (28, 8, 0),
    "w64": (96, 8, 24),
    "aiff": (42, 4, 8),
    "au": (8, 4, 0),
    "au, little-endian": (8, 4, 0),
    "caf": (4084, 8, 4),
    "svx": (96, 4, 0),
}


@pytest.mark.parametrize("name", SIZES)
def test_samples_behind_a_size_that_nobody_corrected_are_read(name: str) -> None:
    """A recorder that lost power leaves the size 0, or that of what it had written by then."""
    content = written_by_soundfile(name)
    at, num_bytes, more = SIZES[name]
    order: Any = "big" if name in ("wav, big-endian", "aiff", "au", "caf", "svx") else "little"
    num_sample_bytes = 48_000 * (1 if name == "au, little-endian" else 2)
    assert content[at : at + num_bytes] == (num_sample_bytes + more).to_bytes(num_bytes, order)
    expected, _ = read_span(io.BytesIO(content))
    for size in (0, 20_000):
        stale = content[:at] + size.to_bytes(num_bytes, order) + content[at + num_bytes :]
        with pytest.warns(
            UserWarning, match=r"^stream: the header states \d+ bytes of samples, \d+ are there and read$"
        ):
            assert heard(stale) == 48_000
        with pytest.warns(UserWarning, match="states"):
            assert np.array_equal(read_span(io.BytesIO(stale))[0], expected)
    larger = content[:at] + (num_sample_bytes + more + 100).to_bytes(num_bytes, order) + content[at + num_bytes :]
    if name != "w64":  # whose samples end where the file does, as its last chunk may be padded
        with pytest.raises(AudioError, match="cut off"):
            heard(larger)


def test_only_the_samples_decide_about_wav() -> None:
    content = written_by_soundfile("wav")
    software = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf60.3.100\0\0"
    for size in (0, 10, len(content), len(content) + 16, 1 << 31):
        for rest in (b"", software, software[:20], software + software):
            whole = content[:4] + struct.pack("<I", size) + content[8:] + rest
            assert inspect(io.BytesIO(whole)) == Contents()
            assert heard(whole) == 48_000
    empty = content[:40] + bytes(4)
    for rest in (b"", software, bytes(5000)):
        with pytest.raises(AudioError, match=r"^stream: expected audio, found 0 samples$"):
            heard(empty + rest)


@pytest.mark.parametrize("name", [*SOUNDFILE, *AV])
def test_of_two_files_in_one_nothing_is_lost_silently(tmp_path: Any, name: str) -> None:
    content = written_by_soundfile(name) if name in SOUNDFILE else written_by_av(name, tmp_path)
    num_samples = heard(content)
    if name in ("mkv", "webm"):
        assert heard(content + content) == pytest.approx(2 * num_samples, abs=2000)
        return
    for read in read_audio, audio_info, lambda file: list(Recording(file)):
        with pytest.raises(AudioError, match=r"^stream: expected one recording, found another one from byte \d+ on$"):
            read(io.BytesIO(content + content))
    assert len(read_span(io.BytesIO(content + content), num_samples=1000)[0]) == 1000


def test_voc_of_several_blocks_is_read_to_its_end() -> None:
    head = b"Creative Voice File\x1a\x1a\0\x0a\x01\x29\x11"
    pcm = (128 + 100 * np.sin(np.arange(16_000) / 7)).astype(np.uint8).tobytes()
    first = b"\x01" + (8002).to_bytes(3, "little") + bytes((256 - 125, 0)) + pcm[:8000]
    second = b"\x02" + (8000).to_bytes(3, "little") + pcm[8000:]
    for content, num_samples in ((first + b"\0", 8000), (first, 8000), (first + second + b"\0", 16_000)):
        assert heard(head + content) == num_samples
    with pytest.raises(AudioError, match=r"expected \d+ bytes, found \d+: the file is cut off$"):
        heard(head + first + second[:4000])


def test_a_recording_that_was_not_finished_says_so(tmp_path: Any) -> None:
    content = written_by_av("mov", tmp_path)
    index = content.index(b"moov") - 4
    unfinished = content[:index] + content[index + int.from_bytes(content[index : index + 4], "big") :]
    with pytest.raises(
        AudioError, match=r"^stream: expected an index \(moov\), found none: the recording was not fini"
    ):
        heard(unfinished)


@settings(max_examples=500)
@given(
    st.sampled_from([b"RIFF", b"FORM", b"RF64\xff\xff\xff\xffWAVEds64", b"riff", b".snd", b"caff", b"OggS"])
    | st.sampled_from([b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67", b"\0\0\0\x08ftyp"]),
    st.binary(max_size=100),
)
def test_any_bytes_have_an_expected_size(head: bytes, rest: bytes) -> None:
    for content in head, head + rest, head + bytes(4) + rest, head[:3]:
        assert isinstance(inspect(io.BytesIO(content)), Contents)
