"""The normalization of a waveform whose end is not known yet."""

import numpy as np

from speechssl.data.audio import SAMPLE_RATE, Waveform
from speechssl.transcribe.windows import WINDOW_SECONDS

_ASSUMED_SECONDS, _ASSUMED_POWER = 0.3, 1e-3  # -30 dB


class RunningNorm:
    """Bring samples to zero mean and unit variance, as `normalize_waveforms` does, by what was heard so far.

    Each sample is normalized by mean and variance of the minute that ends with it, so the result does not depend on how
    the samples are divided. Level and offset may change, as from one window of a long recording to the next. So that a
    stream may begin with faint noise, a third of a second at -30 dB is taken to come before. It takes 4 MB.

    Args:
        epsilon: What is added to the variance.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon
        self.num_samples = 0
        self.minute = np.zeros(round(WINDOW_SECONDS * SAMPLE_RATE), np.float32)  # the last one, in a circle
        self.num_assumed = _ASSUMED_SECONDS * SAMPLE_RATE
        self.sums = np.array([[0.0], [self.num_assumed * _ASSUMED_POWER]])  # of samples, and of their squares

    def __call__(self, samples: Waveform) -> Waveform:
        """Normalize the next samples, (T,)."""
        longest = len(self.minute)
        pieces = [samples[at : at + longest] for at in range(0, len(samples), longest)]
        return np.concatenate([np.empty(0, np.float32), *map(self._normalize, pieces)])

    def _normalize(self, samples: Waveform) -> Waveform:
        numbers = self.num_samples + np.arange(len(samples))
        places = numbers % len(self.minute)
        coming, leaving = samples.astype(np.float64), self.minute[places].astype(np.float64)
        changes = np.stack((coming - leaving, coming**2 - leaving**2))
        sums = np.cumsum(np.concatenate((self.sums, changes), axis=1), axis=1)[:, 1:]
        mean, square = sums / (np.minimum(numbers + 1, len(self.minute)) + self.num_assumed)
        self.minute[places] = samples
        self.num_samples += len(samples)
        self.sums = sums[:, -1:]
        variance = np.maximum(square - mean**2, 0)
        normalized: Waveform = ((coming - mean) / np.sqrt(variance + self.epsilon)).astype(np.float32)
        return normalized
