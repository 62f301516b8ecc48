"""Views of a recording: changes of channel, level and noise that keep the words and their times.

A view adds noise, passes everything through a random equalizer, as another microphone would, and lets the level drift.
The level drifts because encoders that normalize waveforms would not notice one gain for the whole recording. Nothing
moves in time, so frame t of one view sounds when frame t of the other does.

Shapes: B batch, T samples, N taps of the equalizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from speechssl.config import Config
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import Batch, Example
from speechssl.rng import keyed_generator

_NUM_TAPS = 255  # of the equalizer: 16 ms, with the present sample in the middle
_NUM_BANDS = 8  # in which the equalizer has a gain of its own, from 0 to 8 kHz
_FFT_STEP = 4096  # lengths of transforms are multiples, which have small factors


class ViewsConfig(Config):
    """How far two views of a recording may differ.

    Attributes:
        drift_db: The level moves evenly from one gain to another, both drawn within plus and minus this.
        equalizer_db: The equalizer's gain in each of 8 bands is drawn within plus and minus this.
        noise_db: How far the noise, white before the equalizer, is below the recording: the least and the most.
    """

    drift_db: float = Field(6.0, ge=0)
    equalizer_db: float = Field(10.0, ge=0)
    noise_db: tuple[float, float] = (10.0, 40.0)


@dataclass(frozen=True)
class Views(Batch):
    """What makes a view of each row of a batch."""

    gains_db: Tensor  # (B, 2) at the beginning and at the end
    taps: Tensor  # (B, N) of the equalizer
    noise: Tensor  # (B, T) relative to the root mean square of the recording, zeros behind its end


def draw_views(
    examples: Sequence[Example], num_samples: int, config: ViewsConfig, seed: int, purposes: Sequence[int]
) -> Views:
    """Draw a view of each utterance, in ``num_samples`` places, for each purpose: first those of the first purpose.

    They depend on (seed, epoch, utterance, purpose) alone, and on the utterance's length.
    """
    num_rows = len(purposes) * len(examples)
    gains = torch.zeros(num_rows, 2)
    taps = torch.zeros(num_rows, _NUM_TAPS)
    noise = torch.zeros(num_rows, num_samples)
    rows = [(purpose, example) for purpose in purposes for example in examples]
    for row, (purpose, example) in enumerate(rows):
        generator = keyed_generator(seed, example.epoch, example.index, purpose)
        gains[row] = torch.from_numpy(generator.uniform(-config.drift_db, config.drift_db, 2))
        bands = generator.uniform(-config.equalizer_db, config.equalizer_db, _NUM_BANDS)
        taps[row] = torch.from_numpy(equalizer_taps(bands))
        level = 10 ** (-generator.uniform(*config.noise_db) / 20)
        own = torch.from_numpy(level * generator.standard_normal(len(example.waveform), np.float32))[:num_samples]
        noise[row, : len(own)] = own
    return Views(gains, taps, noise)


def equalizer_taps(bands_db: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Design a filter that delays nothing, whose gain in dB is linear between bands spaced evenly on the mel scale."""
    hertz = np.linspace(0, SAMPLE_RATE / 2, _NUM_TAPS // 2 + 1)
    mel = np.log10(1 + hertz / 700)
    gains_db = np.interp(mel, np.linspace(0, mel[-1], len(bands_db)), bands_db)
    response = np.fft.irfft(10 ** (gains_db / 20), _NUM_TAPS)
    return np.roll(response, _NUM_TAPS // 2) * np.hanning(_NUM_TAPS + 2)[1:-1]


def apply_views(views: Views, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the views of (B, T) waveforms; padding, which ``lengths`` (B,) tells, is zero.

    A row of a batch becomes what it would alone. Values can exceed [-1, 1].
    """
    num_samples = waveforms.shape[1]
    positions = torch.arange(num_samples, device=waveforms.device)
    ends = torch.full_like(positions[:1], num_samples) if lengths is None else lengths
    ends = ends[:, None].clamp(min=1)
    with torch.autocast(waveforms.device.type, enabled=False):
        loudness = (waveforms.square().sum(dim=1, keepdim=True) / ends).sqrt()
        size = -(-(num_samples + _NUM_TAPS - 1) // _FFT_STEP) * _FFT_STEP
        spectra = torch.fft.rfft(waveforms + loudness * views.noise, size) * torch.fft.rfft(views.taps, size)
        equalized = torch.fft.irfft(spectra, size)[:, _NUM_TAPS // 2 :][:, :num_samples]
        first, last = views.gains_db[:, :1], views.gains_db[:, 1:]
        gains = 10 ** ((first + (last - first) * positions / ends) / 20)
        changed: Tensor = equalized * gains * (positions < ends)
        return changed
