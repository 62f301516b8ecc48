"""Decode with PyAV what libsndfile does not read: m4a, G.722, video, files that state no length."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from speechssl.errors import AudioError


@dataclass(frozen=True)
class AVStream:
    """A recording that is decoded once."""

    sample_rate: int
    num_channels: int
    blocks: Iterator[npt.NDArray[np.float32]]  # (n, channels) each


@contextmanager
def open_with_av(name: str, file: str | BinaryIO) -> Iterator[AVStream]:
    """Open a recording with PyAV; G.722 has no header and is known by the suffix of the name.

    Raises:
        AudioError: PyAV is missing, or neither it nor libsndfile reads the recording, now or while it is decoded.
    """
    try:
        import av
    except ImportError:
        advice = "m4a, G.722, video and files that do not state their length need PyAV: pip install 'speechssl[av]'"
        raise AudioError(f"{name}: expected audio that libsndfile reads, found something else ({advice})") from None
    with _translated(name):
        container = av.open(file, "r", format="g722" if name.lower().endswith(".g722") else None)
    with container:
        if not container.streams.audio:
            raise AudioError(f"{name}: expected audio, found a file without any")
        frames = _decode(name, container)
        first = next(frames, None)
        if first is None:
            raise AudioError(f"{name}: expected audio, found 0 samples")
        num_channels = first.layout.nb_channels
        blocks = (frame.to_ndarray()[0].reshape(-1, num_channels) for frame in chain((first,), frames))
        yield AVStream(first.sample_rate, num_channels, blocks)


def _decode(name: str, container: Any) -> Iterator[Any]:
    import av

    # Samples of all channels one after another: PyAV crashes on frames of eight or more planes.
    resampler = av.AudioResampler(format="flt")
    frame = None
    with _translated(name):
        for frame in container.decode(audio=0):
            yield from resampler.resample(frame)
        if frame is not None:
            yield from resampler.resample(None)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{name}: expected audio, found what neither libsndfile nor FFmpeg reads ({reason})") from None
