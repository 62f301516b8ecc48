"""Recordings that sound the same: found by a short fingerprint of each, without a second look at the audio.

A copy keeps its fingerprint nearly, whatever its gain, offset, rate, encoding, and silence before and after it: the
fingerprint says which of two neighboring bands is louder, than on average, at 32 moments between which equal shares of
the loudness pass. Comparing signs of differences between bands is from Haitsma and Kalker, "A highly robust audio
fingerprinting system" (ISMIR 2002).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from speechssl.data.audio import Waveform
from speechssl.data.levels import SILENCE_PEAK

MAX_DIFFERENCE = 0.15
"""The share of the bits in which copies differ at most."""
MAX_SPREAD_RATIO = 1.04
"""Between the spreads of copies."""

_NUM_MOMENTS, _NUM_BANDS = 32, 16
_BAND_HERTZ = (300.0, 3400.0)  # what a telephone leaves
_WINDOW_SECONDS, _HOP_SECONDS = 0.064, 0.016
_FLOOR = 1e-3  # below the loudest moment of a band, all is as quiet
_MIN_AMPLITUDE = 0.03  # of the loudest moment; less does not count as sound
_MAX_NEIGHBORS = 64
_NUM_ONES = np.array([value.bit_count() for value in range(256)], np.uint16)
_Floats = npt.NDArray[np.floating[Any]]

NUM_BYTES = _NUM_MOMENTS * (_NUM_BANDS - 1) // 8


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is the same in copies, or nearly."""

    bits: bytes
    spread: float  # seconds in which nearly all of the loudness passes


def fingerprint(samples: Waveform, sample_rate: int) -> Fingerprint | None:
    """Return the fingerprint of (T,) samples; None if there is nothing but silence in them."""
    samples = samples - samples.mean()
    if float(np.abs(samples).max()) < SILENCE_PEAK:
        return None
    powers = _band_powers(samples, sample_rate)
    amplitudes = np.sqrt(powers.sum(axis=1))
    amplitudes = np.maximum(amplitudes - _MIN_AMPLITUDE * amplitudes.max(), 0)
    passed = np.concatenate([[0.0], amplitudes.cumsum()])
    if not passed[-1]:
        return None  # all of it outside of the bands
    moments = np.interp((np.arange(_NUM_MOMENTS) + 0.5) / _NUM_MOMENTS * passed[-1], passed, np.arange(len(passed)))
    levels = np.log(powers + _FLOOR * powers.max(axis=0) + np.finfo(np.float64).tiny)
    times = np.arange(len(levels)) + 0.5
    at_moments = np.stack([np.interp(moments, times, band) for band in levels.T], axis=1)
    slopes = np.diff(at_moments, axis=1)
    bits = np.packbits(slopes > slopes.mean(axis=0))
    tenth = _NUM_MOMENTS // 10
    return Fingerprint(bits.tobytes(), float(moments[-1 - tenth] - moments[tenth]) * _HOP_SECONDS)


def similar_pairs(bits: npt.NDArray[np.uint8], spreads: _Floats) -> Iterator[tuple[int, int]]:
    """Find pairs of fingerprints that differ little, each pair once or several times.

    Only those are compared of which two bytes in the same place are equal. Of more than 64 copies of one recording,
    each is found to be a copy of some of them.

    Args:
        bits: (N, NUM_BYTES).
        spreads: (N,) in seconds.

    Yields:
        Two rows, the smaller first.
    """
    # Within a bin of the one or the other division lie all pairs whose spreads are half a bin apart.
    log_spreads = np.log(spreads + 2 * _HOP_SECONDS)
    scale = log_spreads / (2 * math.log(MAX_SPREAD_RATIO))
    bins = [np.floor(scale + shift).astype(np.int64) << 16 for shift in (0.0, 0.5)]
    for words in np.ascontiguousarray(bits).view(np.uint16).T:
        for spread_bin in bins:
            keys = spread_bin + words
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            at = np.arange(len(keys))
            for distance in range(1, _MAX_NEIGHBORS):
                at = at[at + distance < len(keys)]
                at = at[keys[at] == keys[at + distance]]
                if not len(at):
                    break
                yield from _near(bits, log_spreads, order[at], order[at + distance])


def _near(
    bits: npt.NDArray[np.uint8], log_spreads: _Floats, first: npt.NDArray[np.intp], second: npt.NDArray[np.intp]
) -> Iterator[tuple[int, int]]:
    is_near = np.abs(log_spreads[first] - log_spreads[second]) <= math.log(MAX_SPREAD_RATIO)
    first, second = first[is_near], second[is_near]
    num_different = _NUM_ONES[bits[first] ^ bits[second]].sum(axis=1)
    is_copy = num_different <= MAX_DIFFERENCE * 8 * NUM_BYTES
    yield from zip(first[is_copy].tolist(), second[is_copy].tolist(), strict=True)


def _band_powers(samples: Waveform, sample_rate: int) -> npt.NDArray[np.float64]:
    """Return the power in each band at each moment, (moments, bands)."""
    size, hop = round(_WINDOW_SECONDS * sample_rate), round(_HOP_SECONDS * sample_rate)
    padded = np.pad(samples, (size // 2, size // 2 + hop))
    window = np.hanning(size).astype(np.float32)
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)
    edges = np.searchsorted(frequencies, np.geomspace(*_BAND_HERTZ, _NUM_BANDS + 1))
    views = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    parts = []
    for at in range(0, len(views), 1000):  # not all of a long recording at once
        spectrum = np.abs(np.fft.rfft(views[at : at + 1000] * window)) ** 2
        summed = np.pad(spectrum.cumsum(axis=1, dtype=np.float64), ((0, 0), (1, 0)))
        parts.append(np.diff(summed[:, edges.clip(max=summed.shape[1] - 1)], axis=1))
    return np.concatenate(parts)
