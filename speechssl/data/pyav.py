"""Decode with PyAV what libsndfile does not read: m4a, G.722, video, files that state no length."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from speechssl.errors import AudioError

_Block = npt.NDArray[np.float32]  # (n, channels)

_MIN_GAP_SECONDS = 0.1  # what codecs delay, and times that are rounded, is less
_MAX_GAP_SECONDS = 3600.0  # more is a time stamp that is wrong


@dataclass(frozen=True)
class AVStream:
    """A recording that is decoded once."""

    sample_rate: int
    num_channels: int
    blocks: Iterator[_Block]
    remark: str | None  # what of it is not heard


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
        start = (container.start_time or 0) / 1e6 if container.streams.video else None
        blocks = _blocks(chain((first,), frames), num_channels, start)
        yield AVStream(first.sample_rate, num_channels, blocks, _other_tracks(container))


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


def _blocks(frames: Iterable[Any], num_channels: int, start: float | None) -> Iterator[_Block]:
    """Yield samples; with a start, also silence wherever nothing is heard, so that times are those of the video."""
    position = 0
    for frame in frames:
        rate = frame.sample_rate
        gap = 0.0 if start is None or frame.time is None else frame.time - start - position / rate
        if _MIN_GAP_SECONDS <= gap <= _MAX_GAP_SECONDS:
            silent = round(gap * rate)
            position += silent
            yield from (np.zeros((min(rate, silent - at), num_channels), np.float32) for at in range(0, silent, rate))
        block = frame.to_ndarray()[0].reshape(-1, num_channels)
        position += len(block)
        yield block


def _other_tracks(container: Any) -> str | None:
    tracks = container.streams.audio
    if len(tracks) == 1:
        return None
    tags = [[track.metadata.get(tag) for tag in ("language", "title")] for track in tracks]
    names = "; ".join(f"{i}: {', '.join(filter(None, tag)) or 'no name'}" for i, tag in enumerate(tags, start=1))
    return f"{len(tracks)} sound tracks ({names}), only the first is heard"


@contextmanager
def _translated(name: str) -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{name}: expected audio, found what neither libsndfile nor FFmpeg reads ({reason})") from None
