"""Samples in memory: checked, mixed down to one channel and brought to 16 kHz."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from speechssl.data.levels import Levels
from speechssl.data.sources import is_buffer
from speechssl.errors import AudioError

SAMPLE_RATE = 16_000

_MAX_PEAK = 10.0  # 20 dB over full scale: not a gain that is too high but integers taken for floats
_MAX_CHANNELS = 8  # more rows than this are samples
_PIECE_SAMPLES = 1 << 16  # soxr takes several times as long for minutes at once
_PCM_SCALES = {"uint8": 128.0, "int16": 32768.0, "int32": 2147483648.0}

Waveform = npt.NDArray[np.float32]


def as_waveform(samples: Any, sample_rate: int | None) -> Waveform:
    """Turn samples that are already in memory into a waveform at 16 kHz; `Levels` says what is a warning.

    Args:
        samples: (T,) or (T, channels), or (channels, T) if T is more than the channels and than 8; floats in [-1, 1],
            or int16, int32 or uint8 at full scale; an array, a tensor or nested lists of floats.
        sample_rate: Samples a second, a whole number.

    Both can come together as ``{"array": ..., "sampling_rate": ...}`` or as a decoder of torchcodec, as the datasets
    library has them up to version 3 and from version 4 on.

    Returns:
        (T,) float32 mono at 16 kHz.

    Raises:
        AudioError: the rate is missing, or the samples have another shape or type, are none, are not finite or are
            far outside [-1, 1].
    """
    if hasattr(samples, "get_all_samples"):
        decoded = samples.get_all_samples()
        samples = {"array": decoded.data, "sampling_rate": decoded.sample_rate}
    if isinstance(samples, Mapping):
        if not {"array", "sampling_rate"} <= samples.keys():
            keys = ", ".join(map(repr, samples)) or "none"
            raise AudioError(f'array: expected a dict with "array" and "sampling_rate", found the keys {keys}')
        if sample_rate not in (None, samples["sampling_rate"]):
            found = samples["sampling_rate"]
            raise AudioError(f"array: expected sample_rate={sample_rate} as stated, found a sampling_rate of {found}")
        samples, sample_rate = samples["array"], samples["sampling_rate"]
    rate = whole_rate(sample_rate)
    channels = _as_channels(samples)
    if not len(channels):
        raise AudioError("array: expected samples (T,) or (T, channels), found none")
    waveform = _mixed(channels)
    levels = Levels(rate, channels.shape[1])
    levels.add(channels)
    levels.warn("array")
    return join(resample_blocks([waveform], rate))


def whole_rate(sample_rate: Any) -> int:
    """Return the rate of samples in memory, of any type of number, as an integer.

    Raises:
        AudioError: it is not a whole number from 1 on.
    """
    with suppress(TypeError, ValueError, OverflowError):  # None, nan and infinity
        if sample_rate >= 1 and sample_rate == int(sample_rate):
            return int(sample_rate)
    raise AudioError(f"array: expected its sample rate (such as sample_rate=16000), found {sample_rate}")


def mono_samples(samples: Any) -> Waveform:
    """Turn samples as for `as_waveform`, of which there may be none, into (T,) float32 at their own rate."""
    return _mixed(_as_channels(samples))


def _as_channels(samples: Any) -> npt.NDArray[np.float32]:
    """Turn samples into (T, channels) float32."""
    if is_buffer(samples):
        raise AudioError(
            "array: expected samples, found bytes; numpy.frombuffer(data, numpy.int16) makes samples of them"
        )
    try:
        array: npt.NDArray[Any] = np.asarray(_without_torch(samples))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise AudioError(f"array: expected samples, found {type(samples).__name__}: {reason}") from None
    if array.dtype.kind in "OSUV":  # no numbers
        raise AudioError(f"array: expected samples, found {type(samples).__name__}")
    scale = _PCM_SCALES.get(array.dtype.name)
    if array.ndim not in (1, 2):
        raise AudioError(f"array: expected samples (T,) or (T, channels), found the shape {array.shape}")
    if not array.size:
        return np.empty((0, 1), np.float32)
    if scale is None and array.dtype.kind != "f":
        raise AudioError(f"array: expected floats in [-1, 1], int16, int32 or uint8, found {array.dtype}")
    waveform = array.astype(np.float32)
    if scale is not None:
        waveform = (waveform - scale) / scale if array.dtype.kind == "u" else waveform / scale
    if waveform.ndim == 1:
        return waveform[:, None]
    return waveform.T if waveform.shape[1] > max(waveform.shape[0], _MAX_CHANNELS) else waveform


def _mixed(channels: npt.NDArray[np.float32]) -> Waveform:
    waveform: Waveform = channels.mean(axis=1)
    if len(waveform):
        check_values("array", waveform)
    return waveform


def _without_torch(samples: Any) -> Any:
    """Return a tensor as NumPy knows it: on the CPU, without a gradient and not of a type such as bfloat16."""
    if not hasattr(samples, "detach"):
        return samples
    tensor = samples.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def check_values(name: str, samples: Waveform, first: int = 0) -> None:
    """Refuse samples that are not finite or that only integers taken for floats can be; errors count from ``first``."""
    peak = float(np.maximum(samples.max(), -samples.min()))  # no copy; not finite if one of them is not
    if not math.isfinite(peak):
        at = int(np.argmin(np.isfinite(samples)))
        raise AudioError(f"{name}: expected finite samples, found {samples[at]} at sample {first + at}")
    if peak > _MAX_PEAK:
        raise AudioError(f"{name}: expected samples in [-1, 1], found a peak of {peak:g}")


def resample_blocks(
    blocks: Iterable[Waveform], sample_rate: float, quality: str = "HQ", num_resampled: int | None = None
) -> Iterator[Waveform]:
    """Resample blocks to 16 kHz; joined, they are the samples that one block of all would become.

    Args:
        blocks: (n,) each, n > 0.
        sample_rate: Samples a second in the blocks.
        quality: One of soxr's.
        num_resampled: Samples to yield in all; None means `resampled_length`.
    """
    if sample_rate == SAMPLE_RATE:
        yield from blocks
        return
    import soxr  # type: ignore[import-untyped]

    stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32", quality=quality)
    num_read = num_given = 0
    for block in blocks:
        num_read += len(block)
        pieces = (block[at : at + _PIECE_SAMPLES] for at in range(0, len(block), _PIECE_SAMPLES))
        resampled = join(map(stream.resample_chunk, pieces))
        num_given += len(resampled)
        if len(resampled):
            yield resampled
    rest = stream.resample_chunk(np.empty(0, np.float32), last=True)
    if num_resampled is None:
        num_resampled = resampled_length(num_read, int(sample_rate))
    missing = num_resampled - num_given
    if missing > 0:
        yield np.pad(rest[:missing], (0, max(missing - len(rest), 0)))


def resampled_length(num_samples: int, sample_rate: int) -> int:
    """Return how many samples at 16 kHz ``num_samples`` at another rate become: the quotient, rounded up."""
    return -(-num_samples * SAMPLE_RATE // sample_rate)


def join(blocks: Iterable[Waveform]) -> Waveform:
    """Join one or more blocks; one alone is not copied."""
    parts = list(blocks)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def mix(block: Waveform, channel: int | None) -> Waveform:
    """Return one of the channels, counted from 1, or the mean of all: (n, channels) to (n,)."""
    if channel is None and block.shape[1] > 1:
        return np.asarray(block.mean(axis=1), np.float32)
    return np.ascontiguousarray(block[:, (channel or 1) - 1])


def gather(parts: Iterable[Waveform], num_samples: int) -> Iterator[Waveform]:
    """Join parts, which from PyAV are a few hundredths of a second each, to blocks of so many samples or more."""
    waiting: list[Waveform] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= num_samples:
            yield join(waiting)
            waiting = []
    if waiting:
        yield join(waiting)
