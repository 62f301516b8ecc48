"""Means and covariances of waveforms, from which the statistics of their first layer follow without computing it.

The first convolution is linear in the samples that it sees, so mean and variance of its output over all frames follow
from mean and covariance of those samples: 55 numbers for a kernel of 10, instead of 512 channels over 3,200 frames a
second. They add up over the blocks of a recording that is never in memory as a whole.

Shapes: B batch, T samples, K width of the first convolution, C its channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.frames import FrameGeometry

_EPSILON = 1e-5  # of the waveforms' normalization
_BLOCK_WINDOWS = 1 << 16  # measured at once


@dataclass(frozen=True)
class WaveformMoments:
    """What is known of whole recordings, each of which may be longer than what a batch holds of it.

    All of it is float64, on a device that has it; that of the model can be another.

    Attributes:
        mean: (B,) of the samples.
        variance: (B,) of the samples.
        window_mean: (B, K) of the samples that the first convolution's output frames see.
        window_covariance: (B, K, K) of the same.
    """

    mean: Tensor
    variance: Tensor
    window_mean: Tensor
    window_covariance: Tensor

    def normalize(self, waveforms: Tensor) -> Tensor:
        """Bring (B, T) samples to their recordings' zero mean and unit variance."""
        scale = torch.rsqrt(self.variance + _EPSILON)
        return (waveforms - self.mean[:, None].to(waveforms)) * scale[:, None].to(waveforms)

    def normalized(self) -> "WaveformMoments":
        """The moments of the recordings after `normalize`."""
        scale = torch.rsqrt(self.variance + _EPSILON)
        return WaveformMoments(
            torch.zeros_like(self.mean),
            self.variance * scale**2,
            (self.window_mean - self.mean[:, None]) * scale[:, None],
            self.window_covariance * scale[:, None, None] ** 2,
        )

    def after_convolution(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance of the first convolution's output: (B, C) each, from (C, 1, K) and (C,)."""
        exact = weight[:, 0].to(self.mean)
        mean = self.window_mean @ exact.T
        variance = torch.einsum("ck,bkj,cj->bc", exact, self.window_covariance, exact).clamp(min=0)
        return (mean if bias is None else mean + bias.to(mean)).to(weight), variance.to(weight)


def measure_waveforms(waveforms: Tensor, lengths: Tensor | None, geometry: FrameGeometry) -> WaveformMoments:
    """The moments of the rows of a batch.

    Args:
        waveforms: (B, T).
        lengths: (B,) valid samples of each row; None if every row is valid throughout.
        geometry: Of the convolutions, of which the first matters.
    """
    batch, length = waveforms.shape
    if lengths is None:
        lengths = torch.full((batch,), length, device=waveforms.device)
    sums = _Sums(geometry, batch, waveforms.device)
    sums.add(waveforms, lengths)
    return sums.moments()


def measure_recording(blocks: Iterable[Tensor], geometry: FrameGeometry) -> WaveformMoments:
    """The moments of one recording, B = 1.

    Args:
        blocks: (T,) each on the CPU, one after another; one block is in memory at a time.
        geometry: Of the convolutions, of which the first matters.
    """
    running = RunningMoments(geometry)
    for block in blocks:
        running.add(block)
    return running.moments()


class RunningMoments:
    """The moments of one recording, B = 1, while it is read.

    Args:
        geometry: Of the convolutions, of which the first matters.
    """

    def __init__(self, geometry: FrameGeometry) -> None:
        self.stride = geometry.strides[0]
        self._sums = _Sums(geometry, 1, torch.device("cpu"))
        self._rest = torch.empty(0)

    def add(self, block: Tensor) -> None:
        """Count what comes next: (T,) on the CPU."""
        samples = torch.cat((self._rest, block))
        num_windows = self._sums.add(samples[None], torch.tensor([len(samples)]), num_seen=len(self._rest))
        self._rest = samples[int(num_windows) * self.stride :]

    def moments(self) -> WaveformMoments:
        """Those of all blocks so far."""
        return self._sums.moments()


class _Sums:
    def __init__(self, geometry: FrameGeometry, batch: int, device: torch.device) -> None:
        self.kernel, self.stride = geometry.kernels[0], geometry.strides[0]
        self.num_samples = torch.zeros(batch, dtype=torch.int64, device=device)
        self.num_windows = self.num_samples.clone()
        self.sample_sum, self.sample_square = torch.zeros(2, batch, dtype=torch.float64, device=device)
        self.window_sum = self.sample_sum.new_zeros(batch, self.kernel)
        self.window_products = self.sample_sum.new_zeros(batch, self.kernel, self.kernel)

    def add(self, waveforms: Tensor, lengths: Tensor, num_seen: int = 0) -> Tensor:
        """Count (B, T) samples with their windows, (B,) of them; of the samples, the first were counted before."""
        valid = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
        samples = waveforms.double() * valid
        self.num_samples += lengths - num_seen
        self.sample_sum += samples[:, num_seen:].sum(dim=1)
        self.sample_square += samples[:, num_seen:].square().sum(dim=1)
        num_windows = ((lengths - self.kernel) // self.stride + 1).clamp(min=0)
        self.num_windows += num_windows
        if samples.shape[1] < self.kernel:
            return num_windows
        windows = samples.unfold(1, self.kernel, self.stride)
        for first in range(0, windows.shape[1], _BLOCK_WINDOWS):
            some = windows[:, first : first + _BLOCK_WINDOWS]
            numbers = torch.arange(first, first + some.shape[1], device=some.device)
            some = some * (numbers < num_windows[:, None])[:, :, None]
            self.window_sum += some.sum(dim=1)
            self.window_products += some.mT @ some
        return num_windows

    def moments(self) -> WaveformMoments:
        """Those of everything counted so far."""
        count, num_windows = self.num_samples.clamp(min=1), self.num_windows.clamp(min=1)[:, None]
        mean, window_mean = self.sample_sum / count, self.window_sum / num_windows
        return WaveformMoments(
            mean,
            (self.sample_square / count - mean.square()).clamp(min=0),
            window_mean,
            self.window_products / num_windows[:, :, None] - window_mean[:, :, None] * window_mean[:, None, :],
        )
