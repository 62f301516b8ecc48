"""Recordings of any length in constant memory: overlapping windows, of which the inner frames are kept.

Frames out of the feature encoder are those of the whole recording, but for rounding: a window starts on a multiple of
the hop, and where the model normalises over time (the waveform, each channel of the group norm), it does so by
statistics that a first pass over the recording has gathered. The context network sees its window alone; only frames
with enough context on both sides, or at an end of the recording, are kept.

Models that normalise over an utterance in every layer (wav2vec's norm "utterance", and its causal context) have no such
statistics: there each window is an utterance of its own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from speechssl.data.audio import SAMPLE_RATE, Waveform
from speechssl.frames import FrameGeometry

WINDOW_SECONDS = 60.0
CONTEXT_SECONDS = 5.0


@dataclass(frozen=True)
class Window:
    """A part of a recording.

    Attributes:
        samples: (T,).
        first_kept: First frame to keep, counted in the window.
        stop_kept: The frame after the last to keep.
    """

    samples: Waveform
    first_kept: int
    stop_kept: int


def cut_windows(
    blocks: Iterable[Waveform],
    geometry: FrameGeometry,
    window_seconds: float = WINDOW_SECONDS,
    context_seconds: float = CONTEXT_SECONDS,
) -> Iterator[Window]:
    """Cut a recording into windows whose kept frames are all of its frames, each once and in order.

    Args:
        blocks: The recording, part by part; in all at least a frame.
        geometry: Samples to frames.
        window_seconds: Length of a window; the last one is shorter, and a shorter recording is a single window.
        context_seconds: At each inner end of a window, what is heard but not kept.
    """
    hop = geometry.hop_samples
    context = max(1, round(context_seconds * SAMPLE_RATE / hop))
    num_frames = max(2 * context + 1, round(window_seconds * SAMPLE_RATE / hop))
    step = (num_frames - 2 * context) * hop
    # A frame more than the window has, or it would be the last.
    num_needed = geometry.num_samples(num_frames + 1)
    pending: list[Waveform] = []
    first_kept = 0
    for block in blocks:
        pending.append(block)
        if sum(map(len, pending)) < num_needed:
            continue
        samples = np.concatenate(pending)
        while len(samples) >= num_needed:
            yield Window(samples[: geometry.num_samples(num_frames)], first_kept, num_frames - context)
            samples = samples[step:]
            first_kept = context
        pending = [samples]
    if pending:
        samples = np.concatenate(pending)
        yield Window(samples, first_kept, geometry.num_frames(len(samples)))
