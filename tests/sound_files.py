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
