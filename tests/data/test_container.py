"""Files that are cut off are told from whole ones by what they say of their own length."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_files import write_with_av

from speechssl.data.container import expected_bytes
from speechssl.data.recording import Recording, audio_info, read_audio
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
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
}
AV: dict[str, tuple[str, str, dict[str, str]]] = {
    "m4a": ("ipod", "aac", {"movflags": "faststart"}),
    "mp4 in fragments": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}),
    "mov": ("mov", "pcm_s16le", {"movflags": "faststart"}),
    "mkv": ("matroska", "aac", {}),
    "webm": ("webm", "libopus", {}),
}


def written_by_soundfile(name: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, 48_000, **SOUNDFILE[name])
    return file.getvalue()


def written_by_av(name: str, tmp_path: Any) -> bytes:
    path = tmp_path / "file"
    write_with_av(str(path), SAMPLES, 48_000, *AV[name])
    return path.read_bytes()


@pytest.mark.parametrize("name", [*SOUNDFILE, *AV])
def test_a_file_is_whole_until_it_is_cut(tmp_path: Any, name: str) -> None:
    content = written_by_soundfile(name) if name in SOUNDFILE else written_by_av(name, tmp_path)
    assert len(read_audio(io.BytesIO(content))) == pytest.approx(16_000, abs=1000)
    for trailing in (b"\0", b"\xff" * 100, b"TAG" + bytes(125)):
        whole = content + trailing
        assert expected_bytes(io.BytesIO(whole)) <= len(whole)
    assert expected_bytes(io.BytesIO(content)) >= len(content) - 8 or name in ("caf with alac", "mp4 in fragments")
    for size in (len(content) * 8 // 10, len(content) * 9 // 10):
        cut = content[:size]
        for read in read_audio, audio_info, lambda file: list(Recording(file)):
            with pytest.raises(AudioError, match=r"^stream: expected \d+ bytes, found \d+: the file is cut off$"):
                read(io.BytesIO(cut))
        with pytest.raises(AudioError, match=r"^stream: expected .*, found"):  # some say it is damaged
            list(Recording(io.BytesIO(cut), end=9))
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
    assert expected_bytes(io.BytesIO(pipe.content)) <= len(pipe.content)


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


@settings(max_examples=500)
@given(
    st.sampled_from([b"RIFF", b"FORM", b"RF64\xff\xff\xff\xffWAVEds64", b"riff", b".snd", b"caff", b"OggS"])
    | st.sampled_from([b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67", b"\0\0\0\x08ftyp"]),
    st.binary(max_size=100),
)
def test_any_bytes_have_an_expected_size(head: bytes, rest: bytes) -> None:
    for content in head, head + rest, head + bytes(4) + rest, head[:3]:
        assert expected_bytes(io.BytesIO(content)) >= -7
