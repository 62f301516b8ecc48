"""Damaged files that PyAV decodes: whatever is wrong with them, the outcome is samples or an `AudioError`."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.data.audio import audio_info, read_audio
from speechssl.data.recording import Recording
from speechssl.errors import AudioError

av = pytest.importorskip("av")

SAMPLES = 0.3 * np.sin(np.arange(16_000) / 7)


def with_av(container_format: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray((SAMPLES * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        resampler = av.AudioResampler(stream.codec_context.format, "mono", 16_000, frame_size=320)
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(part))
    return file.getvalue()


def mp3_without_its_length() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, 16_000, format="MP3")
    content = file.getvalue()
    return content[content.index(content[:2], content.index(b"Xing")) :]


WHOLE: dict[str, Callable[[], bytes]] = {
    "m4a": lambda: with_av("ipod", "aac"),
    "mov": lambda: with_av("mov", "pcm_s16le"),
    "mkv": lambda: with_av("matroska", "pcm_s16le"),
    "webm": lambda: with_av("webm", "libopus"),
    "flv": lambda: with_av("flv", "aac"),
    "mp3": mp3_without_its_length,
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
