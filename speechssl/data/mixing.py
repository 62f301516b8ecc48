"""Another voice or noise in a part of a recording, of which the targets know nothing: WavLM's utterance mixing.

As Chen et al., 2022 (https://arxiv.org/abs/2110.13900, section III-C), with the ranges of their published code. Only
the training data are mixed. `Example.clean` keeps each recording as it was; objectives make their targets from it, so
the model learns to hear the main voice and to overlook the other. Differences: powers are taken around the mean, since
the model removes offsets too; the voice that is mixed in is always as it was read; noise is read from a crop as long as
the recording, and its power is that of the crop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal

import numpy as np
from pydantic import Field

from speechssl.config import Config
from speechssl.data.audio import Waveform
from speechssl.data.batch_reader import read_crop
from speechssl.data.batches import BatchType, Example
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.rng import keyed_generator

_MIX = 30  # the purpose of the generator that mixes
VOICE_DECIBELS = (-5.0, 5.0)
"""How much more power the recording has than another voice."""
NOISE_DECIBELS = (-5.0, 20.0)
"""How much more power the recording has than noise."""

Color = Literal["white", "pink"]


class MixingConfig(Config):
    """What is mixed into training recordings, and how often; the default probabilities are the published ones.

    Attributes:
        probability: Of each recording to have something mixed into it.
        noise: A manifest of recordings of noise, or noise that is computed: as strong at all frequencies (white), or
            weaker by 3 dB an octave (pink). None mixes voices alone.
        noise_probability: That it is noise, if there is any, rather than another voice of the batch.
    """

    probability: float = Field(0.5, ge=0, le=1)
    noise: Color | Path | None = None
    noise_probability: float = Field(0.5, ge=0, le=1)

    def read_noise(self) -> Color | Manifest | None:
        """Return the color of the noise, or the manifest of its recordings; a ManifestError says what is wrong."""
        return read_manifest(self.noise) if isinstance(self.noise, Path) else self.noise


@dataclass(frozen=True)
class MixingCollate(Generic[BatchType]):
    """Mixes the recordings of a batch before an objective makes its batch of them.

    What is mixed into a recording depends on (seed, epoch, utterance) and on which recordings share its batch.
    """

    collate: Callable[[list[Example]], BatchType]
    config: MixingConfig
    noise: Color | Manifest | None
    seed: int

    def __call__(self, examples: list[Example]) -> BatchType:
        """Mix, and collate."""
        mixed = [self._mix(examples, row) for row in range(len(examples))]
        changed = [
            replace(example, waveform=waveform, clean=example.waveform)
            for example, waveform in zip(examples, mixed, strict=True)
        ]
        return self.collate(changed)

    def _mix(self, examples: Sequence[Example], row: int) -> Waveform:
        """A recording with something mixed into a part of it; alone in its batch, it hears no other voice."""
        example, config = examples[row], self.config
        generator = keyed_generator(self.seed, example.epoch, example.index, _MIX)
        if generator.random() >= config.probability:
            return example.waveform
        if self.noise is not None and generator.random() < config.noise_probability:
            other = _read_noise(self.noise, len(example.waveform), generator)
            return mix_in(example.waveform, other, generator.uniform(*NOISE_DECIBELS), generator)
        if len(examples) == 1:
            return example.waveform
        number = int(generator.integers(len(examples) - 1))
        other = examples[number + (number >= row)].waveform
        return mix_in(example.waveform, other, generator.uniform(*VOICE_DECIBELS), generator)


def mix_in(waveform: Waveform, other: Waveform, decibels: float, generator: np.random.Generator) -> Waveform:
    """Add a random piece of another recording at a random place, up to half as long as the recording.

    Args:
        waveform: (T,) float32.
        other: (any,) float32.
        decibels: Of the power of the whole recording over that of the whole other one.
        generator: Draws the piece and the place.
    """
    length = min(int(generator.integers(len(waveform) // 2 + 1)), len(other))
    here = int(generator.integers(len(waveform) - length + 1))
    there = int(generator.integers(len(other) - length + 1))
    mixed = waveform.copy()
    mixed[here : here + length] += scaled_below(waveform, other, decibels)[there : there + length]
    return mixed


def scaled_below(waveform: Waveform, other: Waveform, decibels: float) -> Waveform:
    """Scale another recording, without its offset, so that the first has so many decibels more power.

    A constant has no power and adds nothing.
    """
    power, other_power = np.var(waveform, dtype=np.float64), np.var(other, dtype=np.float64)
    gain = np.sqrt(power / other_power) * 10 ** (-decibels / 20) if other_power else 0.0
    scaled: Waveform = np.float32(gain) * (other - other.mean())
    return scaled


def make_noise(color: Color, num_samples: int, generator: np.random.Generator) -> Waveform:
    """Draw Gaussian noise: (``num_samples``,) float32."""
    noise = generator.standard_normal(num_samples, dtype=np.float32)
    if color == "white":
        return noise
    spectrum = np.fft.rfft(noise)
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return np.fft.irfft(spectrum, num_samples).astype(np.float32)


def _read_noise(noise: Color | Manifest, num_samples: int, generator: np.random.Generator) -> Waveform:
    """Noise for so many samples; a recording that is shorter is taken whole."""
    if not isinstance(noise, Manifest):
        return make_noise(noise, num_samples, generator)
    utterance = noise[int(generator.integers(len(noise)))]
    spare = max(utterance.num_output_samples - num_samples, 0)
    return read_crop(utterance, int(generator.integers(spare + 1)), num_samples)
