"""Recordings in any common format, rate and number of channels -> mono float32 waveforms at 16 kHz."""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from speechssl.data.pyav import AVStream
from speechssl.data.sources import OpenedRecording, Source, open_recording, seeks, source_name
from speechssl.errors import AudioError

SAMPLE_RATE = 16_000
SILENCE_PEAK = 1e-4
"""A recording that never exceeds this (-80 dBFS, three steps of 16 bits) is silence."""

_MAX_PEAK = 10.0  # 20 dB over full scale: not a gain that is too high but integers taken for floats
_BLOCK_SAMPLES = 1 << 18  # mixed down at once: a long recording with many channels is never in memory as a whole
_MAX_CHANNELS = 8  # more rows than this are samples
_PCM_SCALES = {"uint8": 128.0, "int16": 32768.0, "int32": 2147483648.0}

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header states.

    Attributes:
        num_samples: Samples of each channel, at the recording's own rate.
        sample_rate: Samples a second.
        num_channels: Channels.
    """

    num_samples: int
    sample_rate: int
    num_channels: int


def audio_info(source: Source) -> AudioInfo:
    """Read the length, rate and channels of a recording; formats that only PyAV reads are decoded for it.

    Args:
        source: As for `read_audio`.

    Raises:
        AudioError: the recording is missing, empty, cut off or no audio.
    """
    with open_recording(source, source_name(source)) as recording:
        content, num_samples = recording.content, recording.num_samples
        recording.check_complete()
        if isinstance(content, AVStream):
            num_samples = sum(map(len, content.blocks))
        if not num_samples:
            raise AudioError(f"{recording.name}: expected audio, found 0 samples")
        return AudioInfo(num_samples, recording.sample_rate, recording.num_channels)


def read_audio(
    source: Source,
    *,
    start: int = 0,
    num_samples: int | None = None,
    sample_rate: int | None = None,
    channel: int | None = None,
) -> Waveform:
    """Read a recording, or a span of it, as a waveform at 16 kHz; silence is a warning.

    Args:
        source: A path, a path with fairseq's ``:offset:bytes`` for a file inside an uncompressed archive, or a file
            object opened in binary mode, which is read from where it stands to its end. What cannot seek, such as a
            pipe, goes through a temporary file.
        start: First sample of the span, at the recording's own rate.
        num_samples: Samples in the span, at the recording's own rate; None means until the end.
        sample_rate: The rate that the recording must have; None means any.
        channel: The channel to read, counted from 1; None means the mean of all.

    Returns:
        (T,) float32, nominally in [-1, 1] (lossy formats and resampling overshoot a little), mono; T is
        ``resampled_length`` of the samples read.

    Raises:
        AudioError: the recording is missing, a folder, empty, cut off, no audio, shorter than the span, of another
            rate, without that channel, larger than the memory, or has samples that are not finite.
    """
    samples, rate = read_span(source, start=start, num_samples=num_samples, channel=channel)
    if sample_rate is not None and rate != sample_rate:
        raise AudioError(f"{source_name(source)}: expected {sample_rate} samples a second, found {rate}")
    return _to_16_khz(source_name(source), samples, rate)


def read_span(
    source: Source, *, start: int = 0, num_samples: int | None = None, channel: int | None = None
) -> tuple[Waveform, int]:
    """Read a recording, or a span of it, at its own rate.

    Only the span is decoded, except that MP3, what cannot seek and what only PyAV reads are decoded from their start.

    Args:
        source, start, num_samples, channel: As for `read_audio`.

    Returns:
        (T,) float32 mono at the recording's own rate, and that rate.

    Raises:
        AudioError: as for `read_audio`.
    """
    name = source_name(source)
    if start < 0 or (num_samples is not None and num_samples < 1):
        raise AudioError(f"{name}: expected a span inside the recording, found {num_samples} from {start}")
    with open_recording(source, name) as recording:
        return _read(recording, start, num_samples, channel), recording.sample_rate


def as_waveform(samples: Any, sample_rate: int | None) -> Waveform:
    """Turn samples that are already in memory into a waveform at 16 kHz; silence is a warning.

    Args:
        samples: (T,) or (T, channels), or (channels, T) if T is more than the channels and than 8; floats in [-1, 1],
            or int16, int32 or uint8 at full scale; an array, a tensor or nested lists of floats.
        sample_rate: Samples a second, a whole number.

    Returns:
        (T,) float32 mono at 16 kHz.

    Raises:
        AudioError: the rate is missing, or the samples have another shape or type, are none, are not finite or are
            far outside [-1, 1].
    """
    rate = whole_rate(sample_rate)
    waveform = mono_samples(samples)
    if not len(waveform):
        raise AudioError("array: expected samples (T,) or (T, channels), found none")
    return _to_16_khz("array", waveform, rate)


def whole_rate(sample_rate: Any) -> int:
    """The rate of samples in memory, of any type of number, as an integer.

    Raises:
        AudioError: it is not a whole number from 1 on.
    """
    with suppress(TypeError, ValueError, OverflowError):  # None, nan and infinity
        if sample_rate >= 1 and sample_rate == int(sample_rate):
            return int(sample_rate)
    raise AudioError(f"array: expected its sample rate (such as sample_rate=16000), found {sample_rate}")


def mono_samples(samples: Any) -> Waveform:
    """Turn samples as for `as_waveform`, of which there may be none, into (T,) float32 at their own rate."""
    name = "array"
    try:
        array: npt.NDArray[Any] = np.asarray(_without_torch(samples))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise AudioError(f"{name}: expected samples, found {type(samples).__name__}: {reason}") from None
    scale = _PCM_SCALES.get(array.dtype.name)
    if array.ndim not in (1, 2):
        raise AudioError(f"{name}: expected samples (T,) or (T, channels), found the shape {array.shape}")
    if not array.size:
        return np.empty(0, np.float32)
    if scale is None and array.dtype.kind != "f":
        raise AudioError(f"{name}: expected floats in [-1, 1], int16, int32 or uint8, found {array.dtype}")
    waveform = array.astype(np.float32)
    if scale is not None:
        waveform = (waveform - scale) / scale if array.dtype.kind == "u" else waveform / scale
    if waveform.ndim == 2:
        is_channels_first = waveform.shape[1] > max(waveform.shape[0], _MAX_CHANNELS)
        waveform = waveform.mean(axis=0 if is_channels_first else 1)
    check_values(name, waveform)
    return waveform


def _without_torch(samples: Any) -> Any:
    """A tensor as NumPy knows it: on the CPU, without a gradient and not of a type such as bfloat16."""
    if not hasattr(samples, "detach"):
        return samples
    tensor = samples.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def resampled_length(num_samples: int, sample_rate: int) -> int:
    """Samples at 16 kHz of ``num_samples`` at another rate: the quotient, rounded up."""
    return -(-num_samples * SAMPLE_RATE // sample_rate)


def _to_16_khz(name: str, samples: Waveform, sample_rate: int) -> Waveform:
    if peak_of(samples) < SILENCE_PEAK:
        warnings.warn(f"{name}: silence", stacklevel=3)
    if sample_rate == SAMPLE_RATE:
        return samples
    import librosa  # slow to import, and most corpora need none of it

    resampled = librosa.resample(samples, orig_sr=sample_rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
    length = resampled_length(len(samples), sample_rate)
    return np.pad(resampled[:length], (0, max(length - len(resampled), 0)))


def _read(recording: OpenedRecording, start: int, num_samples: int | None, channel: int | None) -> Waveform:
    """A span as mono samples at the recording's own rate; None as the number means until the end."""
    name, content = recording.name, recording.content
    recording.check_channel(channel)
    if num_samples is None:
        recording.check_complete()
    samples = np.empty(0, np.float32)
    if isinstance(content, AVStream):
        stop = math.inf if num_samples is None else start + num_samples
        parts = [mix(part, channel) for part in cut(content.blocks, start, stop)]
        samples = np.concatenate(parts) if parts else samples
        wanted = len(samples) if num_samples is None else num_samples
        available = len(samples)
    else:
        available = max(0, recording.num_samples - start)
        wanted = available if num_samples is None else num_samples
        if wanted <= available:
            samples = _read_frames(name, content, start, wanted, channel)
    if len(samples) < wanted:
        at = f" from sample {start} on" if start else ""
        raise AudioError(f"{name}: expected {wanted} samples{at}, found {len(samples) or available}")
    if not len(samples):
        raise AudioError(f"{name}: expected audio, found 0 samples")
    check_values(name, samples)
    return samples


def cut(blocks: Iterable[npt.NDArray[np.float32]], start: int, stop: float) -> Iterator[npt.NDArray[np.float32]]:
    """The samples [start, stop) of a recording in (n, channels) blocks, no more of which are decoded."""
    position = 0
    for block in blocks:
        part = block[max(start - position, 0) : int(min(stop - position, len(block)))]
        if len(part):
            yield part
        position += len(block)
        if position >= stop:
            return


def _read_frames(name: str, sound: soundfile.SoundFile, start: int, num_samples: int, channel: int | None) -> Waveform:
    try:
        if not seeks(sound):
            return mix(sound.read(start + num_samples, dtype="float32", always_2d=True)[start:], channel)
        sound.seek(start)
        samples = np.empty(num_samples, np.float32)
        num_read = 0
        while num_read < num_samples:
            block = sound.read(min(_BLOCK_SAMPLES, num_samples - num_read), dtype="float32", always_2d=True)
            if not len(block):
                break
            samples[num_read : num_read + len(block)] = mix(block, channel)
            num_read += len(block)
        return samples[:num_read]
    except soundfile.LibsndfileError as error:
        reason = error.error_string or "the file is damaged or cut off"
        raise AudioError(f"{name}: expected {num_samples} samples, found a decoding error: {reason}") from None
    except MemoryError:
        raise AudioError(f"{name}: expected audio that fits into memory, found {num_samples} samples") from None


def mix(block: npt.NDArray[Any], channel: int | None) -> Waveform:
    """One of the channels, counted from 1, or the mean of all: (T, channels) to (T,)."""
    return np.asarray(block.mean(axis=1) if channel is None else block[:, channel - 1], np.float32)


def check_values(name: str, samples: Waveform) -> None:
    """Refuse samples (T,) that are not finite or that only integers taken for floats can be.

    Raises:
        AudioError: there is one; it names the recording.
    """
    peak = peak_of(samples)
    if not np.isfinite(peak):
        at = int(np.argmin(np.isfinite(samples)))
        raise AudioError(f"{name}: expected finite samples, found {samples[at]} at sample {at}")
    if peak > _MAX_PEAK:
        raise AudioError(f"{name}: expected samples in [-1, 1], found a peak of {peak:g}")


def peak_of(samples: Waveform) -> float:
    """The largest magnitude, without a copy of the samples; not finite if one of them is not."""
    return float(np.maximum(samples.max(), -samples.min()))
