"""MP3, Ogg and FLAC are read to their end, whatever the header states: a tag is a hint, the stream is the truth."""

import io
import warnings

import numpy as np
import pytest
import soundfile

from speechssl.data.recording import Recording, audio_info, read_audio, read_span
from speechssl.errors import AudioError

NOISE = 0.2 * np.random.default_rng(0).standard_normal(80_000)
ID3 = b"ID3\4\0\0\0\0\1\0" + bytes(128)
ID3_AT_END = b"TAG" + b"x" * 125


def written(
    file_format: str, subtype: str | None = None, first: int = 0, stop: int = 48_000, rate: int = 16_000
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, NOISE[first:stop], rate, format=file_format, subtype=subtype)
    return file.getvalue()


def heard(content: bytes) -> np.ndarray:
    """The samples at the recording's own rate, of which all ways of reading find as many."""
    samples, levels = read_span(io.BytesIO(content))
    assert audio_info(io.BytesIO(content)).num_samples == len(samples)
    num_resampled = -(-len(samples) * 16_000 // levels.sample_rate)
    assert len(read_audio(io.BytesIO(content))) == sum(map(len, Recording(io.BytesIO(content)))) == num_resampled
    return samples


def place_of(part: np.ndarray, samples: np.ndarray) -> int:
    """Where a part begins in samples that have it, lossy codecs aside."""
    return int(np.argmax(np.correlate(samples, part, "valid")))


def mp3_tag(content: bytes) -> int:
    return max(content.find(b"Xing"), content.find(b"Info"))


@pytest.mark.parametrize("num_bytes", [0, None])
@pytest.mark.parametrize("num_frames", [0, 1, 40, 84, 88, 200, 1_000_000])
def test_an_mp3_tag_with_the_wrong_number_of_frames(num_frames: int, num_bytes: int | None) -> None:
    content = bytearray(written("MP3"))
    expected, at = heard(bytes(content)), mp3_tag(content)
    assert int.from_bytes(content[at + 8 : at + 12], "big") == 86
    content[at + 8 : at + 12] = num_frames.to_bytes(4, "big")
    if num_bytes is not None:
        content[at + 12 : at + 16] = num_bytes.to_bytes(4, "big")
    if num_frames > 86 and num_bytes == 0:
        with pytest.raises(AudioError, match=f"^stream: expected {num_frames} frames, found 86: the file is cut off$"):
            heard(bytes(content))
    else:
        for whole in (content, ID3 + content, content + ID3_AT_END):
            assert np.array_equal(heard(bytes(whole)), expected)


def test_an_mp3_tag_is_believed_if_it_is_true_whatever_stands_around_the_stream() -> None:
    content = written("MP3")
    expected = heard(content)
    assert len(expected) == 48_000
    art = np.random.default_rng(1).bytes(50_000)
    for whole in (ID3 + content, content + ID3_AT_END, content + b"APETAGEX" + art + ID3_AT_END, content + bytes(5000)):
        assert np.array_equal(heard(whole), expected)
    for size in (len(content) - 1, len(content) * 9 // 10):
        for read in read_audio, audio_info:
            with pytest.raises(AudioError, match=r"^stream: expected 86 frames, found \d+: the file is cut off$"):
                read(io.BytesIO(content[:size]))
    assert len(read_span(io.BytesIO(content[: len(content) // 2]), num_samples=8000)[0]) == 8000


@pytest.mark.parametrize("between", [b"", ID3_AT_END + ID3, bytes(700)])
def test_joined_mp3_is_read_as_a_whole(between: bytes) -> None:
    one, two = written("MP3"), written("MP3", first=48_000, stop=80_000)
    first, second = heard(one), heard(two)
    samples = heard(one + between + two)
    np.testing.assert_allclose(samples[:47_000], first[:47_000], atol=1e-5)
    place = place_of(second[2000:6000], samples) - 2000
    assert 48_000 <= place < 48_000 + 2 * 1152  # what the encoder adds to each end
    assert len(samples) >= place + len(second)
    np.testing.assert_allclose(samples[place : place + 32_000], second, atol=0.01)
    for other in (written("MP3", rate=44_100), written("MP3", rate=24_000)):
        with pytest.raises(AudioError, match=r"^stream: expected \d+ samples, found"):
            read_audio(io.BytesIO(one + other))


def test_a_tag_of_another_kind_is_no_length() -> None:
    """VBRI: libsndfile does not know it and guesses by the size of the file."""
    pytest.importorskip("av")
    content = bytearray(written("MP3"))
    at = mp3_tag(content)
    content[at : at + 4] = b"VBRI"
    assert 48_000 <= len(heard(bytes(content))) <= 52_000


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_read_as_a_whole(subtype: str) -> None:
    pytest.importorskip("av")
    one, two = written("OGG", subtype), written("OGG", subtype, 48_000, 80_000)
    factor = 3 if subtype == "OPUS" else 1  # FFmpeg decodes it at 48 kHz
    samples = heard(one + two)
    assert len(samples) == pytest.approx(80_000 * factor, abs=1000 * factor)
    first, second = heard(one), heard(two)
    for part, after in ((first, 0), (second, 48_000)):
        place = place_of(part[2000:6000], samples[::factor]) - 2000
        assert after - 400 <= place <= after + 1000
    for read in read_audio, audio_info:  # with the number of the first one again, which no writer may give
        with pytest.raises(
            AudioError, match=f"^stream: expected one recording, found another one from byte {len(one)} on"
        ):
            read(io.BytesIO(one + one))


def test_the_end_mark_of_ogg_is_missing() -> None:
    content = written("OGG", "VORBIS")
    last = content.rfind(b"OggS")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(heard(content)) == 48_000
    with pytest.warns(UserWarning, match=r"^stream: the end mark is missing, so the recording may have been longer$"):
        assert 40_000 < len(heard(content[:last])) < 48_000


def with_flac_total(content: bytes, total: int) -> bytes:
    field = int.from_bytes(content[18:26], "big") >> 36 << 36 | total
    return content[:18] + field.to_bytes(8, "big") + content[26:]


@pytest.mark.parametrize("total", [0, 1, 20_000, 47_999])
def test_flac_with_the_wrong_number_of_samples(total: int) -> None:
    pytest.importorskip("av")
    content = written("FLAC")
    expected = heard(content)
    for whole in (content, content + ID3_AT_END):
        np.testing.assert_allclose(heard(with_flac_total(whole, total)), expected, atol=1e-6)
    with pytest.raises(AudioError, match=r"^stream: expected 48001 samples, found"):
        read_audio(io.BytesIO(with_flac_total(content, 48_001)))


def test_of_joined_flac_nothing_is_lost_silently() -> None:
    one, two = written("FLAC"), written("FLAC", first=48_000, stop=78_000)
    for content in (one + two, one + one):
        for read in read_audio, audio_info:
            with pytest.raises(
                AudioError, match=r"^stream: expected one recording, found another one from byte \d+ on$"
            ):
                read(io.BytesIO(content))
    pytest.importorskip("av")
    assert len(heard(two + one)) == 78_000


@pytest.mark.parametrize("num_samples", [1, 100, 4095, 4096, 4097, 40_000, 80_000])
def test_any_whole_flac_is_left_to_libsndfile(num_samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechssl.data.decoder.open_with_av", None)
    assert len(heard(written("FLAC", stop=num_samples))) == num_samples
