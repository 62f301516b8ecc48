"""What a person should mend in a recording: its level, clipping, an offset, channels that cancel each other."""

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SILENCE_PEAK = 1e-4
"""A recording that never moves by more than this from its offset (-80 dBFS, three steps of 16 bits) is silence."""
QUIET_DECIBELS, LOUD_DECIBELS = -45.0, -8.0
"""Bounds of the power of the loudest half second, below full scale."""
MAX_OFFSET = 0.005
MAX_CLIPPED_SHARE = 5e-4
MIN_REMAINING_POWER = 0.1
"""Of two channels in their mean: all if they are the same, half if they have nothing in common, none if opposite."""

_SPAN_SECONDS = 0.5
_FULL_SCALE = 0.999
_MIN_CLIPPED_PEAK = 0.1  # what is quieter has flat tops in 8 bits


class AudioWarning(UserWarning):
    """Something is wrong with a recording that can be read."""


@dataclass(frozen=True)
class Fault:
    """What is wrong, in a few fixed words, and what was found and expected."""

    kind: str
    detail: str


class Levels:
    """The levels of a recording, or of one of its channels, taken block by block in constant memory."""

    def __init__(self, sample_rate: int, num_channels: int) -> None:
        self.sample_rate, self.num_channels = sample_rate, num_channels
        self.num_samples = 0
        self.sums = np.zeros(num_channels)
        self.products = np.zeros((num_channels, num_channels))
        self.loudest_power = np.zeros(num_channels)
        # The largest sample upwards and downwards, and how often three in a row are as large.
        self.peaks = np.full((num_channels, 2), -np.inf)
        self.num_flat = np.zeros((num_channels, 2), np.int64)

    def add(self, block: npt.NDArray[np.float32]) -> None:
        """Take (n, channels) samples; a block of less than half a second counts for the level only if it is the first.

        So do not take less, except at the end.
        """
        channels = np.ascontiguousarray(block.T)
        self.sums += channels.sum(axis=1)
        self.products += channels @ channels.T
        span = round(_SPAN_SECONDS * self.sample_rate)
        if len(block) >= span or not self.num_samples:
            span = min(span, len(block))
            spans = channels[:, : len(block) // span * span].reshape(self.num_channels, -1, span)
            powers = np.einsum("cns,cns->cn", spans, spans) / span - spans.mean(axis=2) ** 2
            self.loudest_power = np.maximum(self.loudest_power, powers.max(axis=1))
        self.num_samples += len(block)
        for number, samples in enumerate(channels):
            for side, (sign, peak) in enumerate(((1, samples.max()), (-1, -samples.min()))):
                peak = min(peak, _FULL_SCALE)
                if peak > self.peaks[number, side]:
                    self.peaks[number, side], self.num_flat[number, side] = peak, 0
                if peak == self.peaks[number, side]:
                    at_peak = np.flatnonzero(sign * samples >= peak)
                    self.num_flat[number, side] += np.count_nonzero(at_peak[2:] - at_peak[:-2] == 2)

    def faults(self) -> list[Fault]:
        """Return what is wrong."""
        if (self.peaks.sum(axis=1) < 2 * SILENCE_PEAK).all():  # at any offset
            return [Fault("silence", f"nothing moves by more than {SILENCE_PEAK} of full scale")]
        faults = []
        decibels = 10 * np.log10(np.maximum(self.loudest_power, 1e-20))
        level = f"the loudest half second is at {decibels.max():.0f} dB"
        if decibels.max() < QUIET_DECIBELS:
            faults.append(Fault("quiet", f"{level}, expected {QUIET_DECIBELS:.0f} or more"))
        if (is_loud := decibels > LOUD_DECIBELS).any():
            faults.append(Fault("loud", f"{level}{self._channels(is_loud)}, expected {LOUD_DECIBELS:.0f} or less"))
        flat = np.where(self.peaks < _MIN_CLIPPED_PEAK, 0, self.num_flat).sum(axis=1) / self.num_samples
        if (is_clipped := flat > MAX_CLIPPED_SHARE).any():
            where = self._channels(is_clipped)
            faults.append(Fault("clipped", f"{100 * flat.max():.2g} % of the samples are flat tops{where}"))
        means = self.sums / self.num_samples
        if (is_offset := np.abs(means) > MAX_OFFSET).any():
            worst = means[np.abs(means).argmax()]
            faults.append(Fault("offset", f"the mean is {worst:.3f} of full scale{self._channels(is_offset)}"))
        covariances = self.products / self.num_samples - np.outer(means, means)
        sums = covariances.diagonal()[:, None] + covariances.diagonal()
        is_opposite = sums + 2 * covariances < 2 * MIN_REMAINING_POWER * sums
        for one, two in (np.argwhere(np.triu(is_opposite, 1)) + 1).tolist():
            detail = f"channels {one} and {two} cancel each other in their mean; use one of them alone"
            faults.append(Fault("opposite phase", detail))
        return faults

    def warn(self, name: str) -> None:
        """Warn once of all that is wrong with the recording of that name."""
        if faults := self.faults():
            found = "; ".join(f"{fault.kind}: {fault.detail}" for fault in faults)
            warnings.warn(f"{name}: {found}", AudioWarning, stacklevel=3)

    def _channels(self, which: npt.NDArray[np.bool_]) -> str:
        if self.num_channels == 1:
            return ""
        numbers = [str(number) for number in np.flatnonzero(which) + 1]
        return f" in channel{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
