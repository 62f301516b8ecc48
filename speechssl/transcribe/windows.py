"""Recordings of any length in constant memory: overlapping windows, of which the inner frames are kept.

Frames out of the feature encoder are those of the whole recording, but for rounding: a window starts on a multiple of
the hop, and where the model normalizes over time (the waveform, each channel of the group norm), it does so by
statistics that a first pass over the recording has gathered. The context network sees its window alone; only frames
with enough context on both sides, or at an end of the recording, are kept.

Models that normalize over an utterance in every layer (wav2vec's norm "utterance", and its causal context) have no such
statistics: there each window is an utterance of its own.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from speechssl.data.audio import SAMPLE_RATE, Waveform
from speechssl.data.recording import Recording
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig
from speechssl.model.moments import WaveformMoments, measure_recording

WINDOW_SECONDS = 60.0
CONTEXT_SECONDS = 5.0
_BLOCK_SECONDS = 10

Blocks = Iterable[Waveform]  # a long recording, which can be gone through again


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


class CountedBlocks:
    """Blocks of a recording, and how many samples passed when they were last gone through."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.num_samples = 0

    def __iter__(self) -> Iterator[Waveform]:
        self.num_samples = 0
        for block in self.blocks:
            self.num_samples += len(block)
            yield block


def whole_or_blocks(recording: Waveform | Recording) -> Waveform | Blocks:
    """The waveform of a recording if it fits into a window, else the recording in blocks."""
    window_samples = int(WINDOW_SECONDS * SAMPLE_RATE)
    if not isinstance(recording, Recording):
        if len(recording) <= window_samples:
            return recording
        step = _BLOCK_SECONDS * SAMPLE_RATE
        return [recording[first : first + step] for first in range(0, len(recording), step)]
    blocks: list[Waveform] = []
    for block in recording:
        blocks.append(block)
        if sum(map(len, blocks)) > window_samples:
            return recording
    return np.concatenate(blocks)


def window_moments(config: EncoderConfig, blocks: Blocks) -> WaveformMoments | None:
    """The statistics by which an encoder normalizes the windows of a recording; None if it needs none."""
    if config.feature_encoder.norm == "group" or config.normalize_waveforms:
        return measure_recording(map(torch.from_numpy, blocks), config.feature_encoder.geometry)
    return None


def length_of(recording: Waveform | Blocks) -> float:
    """In samples at 16 kHz; infinite for a long recording, which is alone in its batch and of which one is enough."""
    return len(recording) if isinstance(recording, np.ndarray) else math.inf
