"""Geometry of the convolutional stack (samples to frames) and the spans of frames to hide; no networks.

Masks follow wav2vec 2.0 (Baevski et al., 2020, https://arxiv.org/abs/2006.11477, section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from speechssl.config import Config

Mask = npt.NDArray[np.bool_]
Count = TypeVar("Count")  # an int, an integer array or an integer tensor


@dataclass(frozen=True)
class FrameGeometry:
    """How a stack of unpadded convolutions turns samples into frames."""

    kernels: tuple[int, ...]  # each in its own input's units, as the strides
    strides: tuple[int, ...]

    @property
    def hop_samples(self) -> int:
        """Return the samples between the starts of neighboring frames."""
        return prod(self.strides)

    @property
    def receptive_field_samples(self) -> int:
        """Return the samples that one frame sees."""
        return self.num_samples(1)

    def num_frames(self, num_samples: Count) -> Count:
        """Count the frames that come out of ``num_samples`` samples: 0 if they are fewer than the receptive field.

        Works elementwise on integer arrays and tensors.
        """
        return self.layer_lengths(num_samples)[-1]

    def layer_lengths(self, num_samples: Count) -> list[Count]:
        """Count the frames after each convolution."""
        lengths: list[Count] = []
        length = num_samples
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            # The product keeps an impossible length at 0 for ints, arrays and tensors alike.
            length = ((length - kernel) // stride + 1) * (length >= kernel)  # type: ignore[assignment,operator]
            lengths.append(length)
        return lengths

    def num_samples(self, num_frames: int) -> int:
        """Count the fewest samples that give ``num_frames`` frames."""
        length = num_frames
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            length = (length - 1) * stride + kernel
        return length

    def span_samples(self, first_frame: int, last_frame: int) -> tuple[int, int]:
        """Return the samples [start, stop) that the frames first..last (inclusive) see."""
        return first_frame * self.hop_samples, last_frame * self.hop_samples + self.receptive_field_samples


class MaskConfig(Config):
    """Which frames are hidden: overlapping spans of equal length with random starts.

    Spans stay whole, as the paper describes them. fairseq cuts them: it unhides frames at random, one at a time, until
    every row of a batch has as many hidden frames as the row with the fewest. On utterances as long as LibriSpeech's
    that leaves 45 % of the frames hidden instead of 49 %, in blocks of 7.6 frames instead of 14.7 on average.

    Attributes:
        start_prob: Share of the frames at which a span starts (0.065; fairseq writes it times the span, 0.65).
        span_frames: Frames in a span.
        min_spans: Spans in even the shortest utterance.
        equal_counts: Whether to cut spans as fairseq does.
    """

    start_prob: float = Field(0.065, ge=0, le=1)
    span_frames: int = Field(10, ge=1)
    min_spans: int = Field(2, ge=0)
    equal_counts: bool = False


def draw_mask(num_frames: int, config: MaskConfig, generator: np.random.Generator) -> Mask:
    """Draw the frames of one utterance to hide.

    The number of spans is ``start_prob * num_frames``, rounded up or down at random so that it is right on average.
    Their starts are distinct and leave room for a whole span. The last frame stays visible.

    Args:
        num_frames: Frames of the utterance (or channels, for a mask over channels).
    """
    mask = np.zeros(num_frames, dtype=np.bool_)
    num_spans = max(int(config.start_prob * num_frames + generator.random()), config.min_spans)
    span = min(config.span_frames, num_frames - 1)
    if span < 1 or num_spans < 1:
        return mask
    # Starts 0..num_frames-span-1, as fairseq draws them: the very last frame is never hidden.
    num_starts = num_frames - span
    starts = generator.choice(num_starts, size=min(num_spans, num_starts), replace=False)
    mask[(starts[:, None] + np.arange(span)).ravel()] = True
    return mask


def most_hidden(num_frames: int, config: MaskConfig) -> int:
    """The most frames of an utterance that `draw_mask` hides, whatever it draws."""
    num_spans = max(int(config.start_prob * num_frames) + 1, config.min_spans)
    return max(min(num_spans * config.span_frames, num_frames - 1), 0)


def draw_masks(lengths: Sequence[int], config: MaskConfig, generators: Sequence[np.random.Generator]) -> list[Mask]:
    """Draw the masks of a batch, a generator an utterance.

    With ``equal_counts`` an utterance's mask depends on the batch that it is in; otherwise on its own generator alone.
    """
    masks = [draw_mask(length, config, generator) for length, generator in zip(lengths, generators, strict=True)]
    if config.equal_counts:
        fewest = min(int(mask.sum()) for mask in masks)
        for mask, generator in zip(masks, generators, strict=True):
            hidden = np.flatnonzero(mask)
            mask[generator.choice(hidden, size=len(hidden) - fewest, replace=False)] = False
    return masks
