"""What PyAV decodes: whatever is wrong with a file, the outcome is samples or an `AudioError`."""

import builtins
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_files import tone, write_video, write_with_av

from speechssl.data.audio import resampled_length
from speechssl.data.recording import Recording, audio_info, read_audio
from speechssl.errors import AudioError

pytest.importorskip("av")

SAMPLES = 0.3 * np.sin(np.arange(16_000) / 7)


def with_av(container_format: str, codec: str) -> bytes:
    file = io.BytesIO()
    write_with_av(file, SAMPLES, 16_000, container_format, codec)
    return file.getvalue()


def mp3_without_its_length() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, 16_000, format="MP3")
    content = file.getvalue()
    return content[content.index(content[:2], content.index(b"Xing")) :]


def video() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mkv"
        write_video(path, {"eng": SAMPLES})
        return path.read_bytes()


WHOLE: dict[str, Callable[[], bytes]] = {
    "m4a": lambda: with_av("ipod", "aac"),
    "mov": lambda: with_av("mov", "pcm_s16le"),
    "mkv": lambda: with_av("matroska", "pcm_s16le"),
    "webm": lambda: with_av("webm", "libopus"),
    "flv": lambda: with_av("flv", "aac"),
    "mp3": mp3_without_its_length,
    "video": video,
}
READ: list[Callable[[Any], Any]] = [read_audio, audio_info, lambda file: list(Recording(file, start=0.3, end=0.7))]


@pytest.fixture(scope="module", params=WHOLE)
def whole(request: pytest.FixtureRequest) -> bytes:
    content = WHOLE[request.param]()
    assert 15_000 <= len(read_audio(io.BytesIO(content))) <= 18_000
    return content


@settings(max_examples=60)
@given(data=st.data())
def test_damage_gives_samples_or_an_audio_error(whole: bytes, data: st.DataObject) -> None:
    content = bytearray(whole)
    # Most of what can go wrong is in the first bytes and the last.
    places = st.one_of(
        st.integers(0, len(whole) - 1), st.integers(0, 400), st.integers(len(whole) - 800, len(whole) - 1)
    )
    for at, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        content[at] = byte
    del content[data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content)))) :]
    messages = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # silence
        for read in READ:
            try:
                read(io.BytesIO(content))
            except AudioError as error:
                messages.append(str(error))
    assert "\n" not in "".join(messages)


def test_many_channels_in_what_only_pyav_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 10)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", channels, 16_000, subtype="FLOAT")
    monkeypatch.setattr("speechssl.data.decoder._open_with_libsndfile", lambda *_: None)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), channels.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", channel=10), channels[:, 9], atol=1e-6)


def test_formats_of_pyav(tmp_path: Path) -> None:
    g722, m4a = tmp_path / "a.g722", tmp_path / "a.m4a"
    write_with_av(str(g722), tone(), 16_000, "g722", "g722")
    write_with_av(str(m4a), tone(0.5, 44_100), 44_100, "ipod", "aac")
    assert abs(audio_info(g722).num_samples - 8000) < 1024
    waveform = read_audio(g722)
    np.testing.assert_allclose(waveform[1000:7000], tone()[978:6978], atol=0.03)  # the codec delays by 22 samples
    np.testing.assert_array_equal(read_audio(g722, start=500, num_samples=900), waveform[500:1400])
    info = audio_info(m4a)
    assert info.sample_rate == 44_100
    assert len(read_audio(m4a)) == resampled_length(info.num_samples, 44_100)
    with pytest.raises(AudioError, match=r"a.g722: expected 9000 samples from sample 500 on, found \d+$"):
        read_audio(g722, start=500, num_samples=9000)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_times_are_those_of_the_video(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    sound = 0.3 * np.sin(np.arange(2 * 16_384) / 7)
    write_video(path, {"eng": sound}, start=1.5, gap=(1.024, 2.0))
    waveform = read_audio(path)
    heard = np.flatnonzero(np.convolve(np.abs(waveform), np.ones(200) / 200, "same") > 0.05) / 16_000
    begins = heard[np.flatnonzero(np.diff(heard, prepend=-1.0) > 0.5)]
    np.testing.assert_allclose(begins, [1.5, 1.5 + 1.024 + 2.0], atol=0.1)  # the codec delays by 0.064
    assert audio_info(path).num_samples == len(waveform)
    np.testing.assert_array_equal(read_audio(path, start=20_000, num_samples=30_000), waveform[20_000:50_000])


def test_a_sound_track_that_is_not_heard_costs_a_warning(tmp_path: Path) -> None:
    write_video(tmp_path / "two.mkv", {"fra": SAMPLES, "eng": SAMPLES})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_audio(tmp_path / "two.mkv")
    [warning] = caught
    assert str(warning.message) == f"{tmp_path / 'two.mkv'}: 2 sound tracks (1: fra; 2: eng), only the first is heard"
    write_video(tmp_path / "one.mkv", {"eng": SAMPLES})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_audio(tmp_path / "one.mkv")


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
