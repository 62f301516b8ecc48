"""Pieces of a long recording: overlapping windows, of which the inner frames are kept.

A window starts on a multiple of the hop, so its frames are frames of the whole recording. The model sees a window as a
recording of its own: the context network has it alone, and what normalizes over time does so within it. Only frames
with enough context on both sides, or at an end of the recording, are kept.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from speechssl.data.audio import SAMPLE_RATE, Waveform
from speechssl.frames import FrameGeometry

WINDOW_SECONDS = 60.0
CONTEXT_SECONDS = 5.0


@dataclass(frozen=True)
class Piece:
    """A part of a recording, which the model sees by itself."""

    start: int  # its first sample, counted in the recording
    samples: Waveform
    first_kept: int = 0  # of its frames, counted in the piece
    stop_kept: int | None = None  # the frame after the last to keep; None keeps all


def cut_windows(
    blocks: Iterable[Waveform],
    geometry: FrameGeometry,
    window_seconds: float = WINDOW_SECONDS,
    context_seconds: float = CONTEXT_SECONDS,
) -> Iterator[Piece]:
    """Cut a recording into windows whose kept frames are all of its frames, each once and in order.

    Args:
        blocks: The recording, part by part.
        geometry: Samples to frames.
        window_seconds: Length of a window; the last one is shorter, and a shorter recording is a single window.
        context_seconds: At each inner end of a window, what is processed but not kept.
    """
    hop = geometry.hop_samples
    context = max(1, round(context_seconds * SAMPLE_RATE / hop))
    num_frames = max(2 * context + 1, round(window_seconds * SAMPLE_RATE / hop))
    step = (num_frames - 2 * context) * hop
    # A frame more than the window has, or it would be the last.
    num_needed = geometry.num_samples(num_frames + 1)
    pending: list[Waveform] = []
    start = first_kept = 0
    for block in blocks:
        pending.append(block)
        if sum(map(len, pending)) < num_needed:
            continue
        samples = np.concatenate(pending)
        while len(samples) >= num_needed:
            yield Piece(start, samples[: geometry.num_samples(num_frames)], first_kept, num_frames - context)
            samples = samples[step:]
            start += step
            first_kept = context
        pending = [samples]
    if pending:
        yield Piece(start, np.concatenate(pending), first_kept)
