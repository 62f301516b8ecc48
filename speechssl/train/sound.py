"""What batches sound like, so far as it tells speech from something else."""

from collections.abc import Iterable, Mapping

import torch

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import AudioBatch

_BLOCK = SAMPLE_RATE // 50
_SILENCE = 1e-6  # the power of a block, 60 dB below full scale
_FLOOR = 1e-10


def measure_sound(batches: Iterable[AudioBatch]) -> Mapping[str, float]:
    """Return sums over blocks of 20 ms, silent ones among them, and over utterances of their level and how it varies.

    The level of an utterance is its power in dB, 0 being that of full scale; the level deviation is the standard
    deviation of its blocks' levels. That of speech is 10 and more, that of steady noise below 1. Utterances that are
    mostly silent are left out of both.
    """
    sums = dict.fromkeys(("blocks", "silent", "utterances", "level", "deviation"), 0.0)
    for batch in batches:
        rows, length = batch.waveforms.shape
        lengths = [length] * rows if batch.lengths is None else batch.lengths.tolist()
        for waveform, num_samples in zip(batch.waveforms, lengths, strict=True):
            num_blocks = num_samples // _BLOCK
            if num_blocks < 2:
                continue
            power = waveform[: num_blocks * _BLOCK].float().unflatten(0, (num_blocks, _BLOCK)).square().mean(dim=1)
            num_silent = int((power < _SILENCE).sum())
            sums["blocks"] += num_blocks
            sums["silent"] += num_silent
            if num_silent < num_blocks / 2:
                sums["utterances"] += 1
                sums["level"] += float(10 * torch.log10(power.mean()))
                sums["deviation"] += float(10 * torch.log10(power.clamp(min=_FLOOR)).std())
    return sums


def describe_sound(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the share of silence and the mean level and level deviation, so far as there is something to measure."""
    found = {"silence": sums["silent"] / sums["blocks"]} if sums["blocks"] else {}
    if sums["utterances"]:
        found |= {
            "level": sums["level"] / sums["utterances"],
            "level_deviation": sums["deviation"] / sums["utterances"],
        }
    return found
