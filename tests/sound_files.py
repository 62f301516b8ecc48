"""Recordings for tests, in any format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile


def tone(seconds: float = 0.5, sample_rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    """A tone whose loudness grows, so that a shifted span is told from the right one."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * time / seconds * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def write_noise(path: Path, rate: int, seconds: float = 3.01) -> Path:
    """Write noise in stereo."""
    samples = 0.1 * np.random.default_rng(rate).standard_normal((round(seconds * rate), 2))
    if path.suffix == ".m4a":
        write_with_av(str(path), samples, rate, "ipod", "aac")
    else:
        soundfile.write(path, samples, rate)
    return path


def write_with_av(
    file: Any, samples: np.ndarray, rate: int, container_format: str, codec: str, options: dict[str, str] | None = None
) -> None:
    """Write (T,) or (T, 2) samples to a path or a file object."""
    av = pytest.importorskip("av")
    layout = "mono" if samples.ndim == 1 else "stereo"
    with av.open(file, "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        planes = np.ascontiguousarray(np.atleast_2d(samples.T), np.float32)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate = rate
        frame_size = stream.codec_context.frame_size or 320
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, frame_size=frame_size)
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(part))


def write_video(
    path: Path, tracks: dict[str, np.ndarray], *, start: float = 0.0, gap: tuple[float, float] | None = None
) -> None:
    """Write pictures with (T,) samples at 16 kHz in tracks named by language, which begin later and may pause.

    Args:
        path: Its suffix is the format.
        tracks: All of one length.
        start: Seconds at which the sound begins.
        gap: Seconds of sound before a pause in which nothing is stored, and how long it is.
    """
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 64
        sounds = [container.add_stream("aac", rate=16_000, layout="mono") for _ in tracks]
        for stream, language in zip(sounds, tracks, strict=True):
            stream.metadata["language"] = language
        for _ in range(60):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        for stream, samples in zip(sounds, tracks.values(), strict=True):
            for at in range(0, len(samples), 1024):
                part = np.ascontiguousarray(samples[None, at : at + 1024], np.float32)
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                paused = gap[1] if gap is not None and at >= gap[0] * 16_000 else 0.0
                frame.sample_rate, frame.pts = 16_000, at + round((start + paused) * 16_000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
