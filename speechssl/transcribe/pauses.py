"""Where a long recording can be cut without cutting a word: at its pauses."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from speechssl.data.audio import SAMPLE_RATE, SILENCE_PEAK, Waveform
from speechssl.errors import ConfigError
from speechssl.transcribe.windows import Piece

MIN_PAUSE_SECONDS = 0.5
"""A pause that ends a piece."""
MAX_PIECE_SECONDS = 30.0

_QUIET_DECIBELS = 35.0  # below the loudest moment around it
_MARGIN_SECONDS = 0.25  # of silence at both ends of a piece
_LOOK_SECONDS = 2 * MAX_PIECE_SECONDS
_FRAME, _HOP = 400, 160  # 25 and 10 ms

Span = tuple[int, int]  # samples [start, stop)
VAD = Literal["energy", "silero"]
FindSpeech = Callable[[Waveform], list[Span]]  # up to two minutes at once, of peak 1 and without an offset


def find_speech_by_energy(samples: Waveform) -> list[Span]:
    """Find what is less than 35 dB quieter than the loudest moment of (T,) samples."""
    frames = sliding_window_view(np.pad(samples, _FRAME // 2), _FRAME)[::_HOP]
    powers = np.einsum("ij,ij->i", frames, frames)
    is_loud = powers > powers.max() * 10 ** (-_QUIET_DECIBELS / 10)
    edges = np.flatnonzero(np.diff(is_loud, prepend=False, append=False)) * _HOP
    return [(start, min(stop, len(samples))) for start, stop in edges.reshape(-1, 2).tolist()]


def find_speech_by_silero(samples: Waveform) -> list[Span]:
    """Find what Silero VAD takes for speech in (T,) samples, also in noise and music."""
    find, model = _load_silero()
    spans = find(torch.from_numpy(samples), model, sampling_rate=SAMPLE_RATE, min_speech_duration_ms=100)
    return [(int(span["start"]), int(span["end"])) for span in spans]


def speech_finder(vad: VAD) -> FindSpeech:
    """Return the voice activity detection of that name; a `ConfigError` says that there is none, or no package."""
    if vad == "silero":
        _load_silero()  # here rather than in the thread that reads ahead
        return find_speech_by_silero
    if vad == "energy":
        return find_speech_by_energy
    raise ConfigError(f"vad: expected energy or silero, found {vad!r}")


@cache
def _load_silero() -> tuple[Any, Any]:
    num_threads = torch.get_num_threads()
    try:
        import silero_vad
    except ImportError:
        raise ConfigError("Silero VAD is missing: pip install 'speechssl[vad]'") from None
    finally:
        torch.set_num_threads(num_threads)  # its import sets one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it does is deprecated here and there
        return silero_vad.get_speech_timestamps, silero_vad.load_silero_vad()


def cut_at_pauses(blocks: Iterable[Waveform], find_speech: FindSpeech = find_speech_by_energy) -> Iterator[Piece]:
    """Cut a recording into pieces of speech, in constant memory.

    A piece ends where half a second is no speech: by default, where it is 35 dB quieter than the loudest moment of the
    minute around it. One of more than 30 s is cut in its longest pauses, however short, and where it has none into
    equal parts. A quarter of a second of the pause stays at both ends of a piece; the rest of it is left out. Neither
    the level nor the offset of the recording matters.

    Args:
        blocks: (n,) each, mono at 16 kHz.
        find_speech: What is speech, in samples; `find_speech_by_energy` or `find_speech_by_silero`.
    """
    held: list[Waveform] = []
    num_held = start = 0
    for block in blocks:
        held.append(block)
        num_held += len(block)
        if num_held >= _LOOK_SECONDS * SAMPLE_RATE:
            samples = np.concatenate(held)
            pieces, rest = _find_pieces(samples, find_speech), num_held
            if pieces and pieces[-1][1] > num_held - (MIN_PAUSE_SECONDS - _MARGIN_SECONDS) * SAMPLE_RATE:
                rest = pieces.pop()[0]  # it may go on
            yield from (Piece(start + first, samples[first:stop]) for first, stop in pieces)
            start += rest
            held, num_held = [samples[rest:]], num_held - rest
    if num_held:
        samples = np.concatenate(held)
        pieces = _find_pieces(samples, find_speech)
        yield from (Piece(start + first, samples[first:stop]) for first, stop in pieces)


def _find_pieces(samples: Waveform, find_speech: FindSpeech) -> list[Span]:
    centered = samples - samples.mean(dtype=np.float64).astype(np.float32)
    peak = np.abs(centered).max()
    if peak < SILENCE_PEAK:
        return []
    spans = [part for group in _join(find_speech(centered / peak)) for part in _divide(group)]
    margin = round(_MARGIN_SECONDS * SAMPLE_RATE)
    middles = [(before[1] + after[0]) // 2 for before, after in pairwise(spans)]
    bounds = pairwise([0, *middles, len(samples)]) if spans else ()
    return [
        (max(start - margin, least), min(stop + margin, most))
        for (start, stop), (least, most) in zip(spans, bounds, strict=True)
    ]


def _join(spans: Sequence[Span]) -> list[list[Span]]:
    """Group spans between which there are short pauses only."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and span[0] - groups[-1][-1][1] < MIN_PAUSE_SECONDS * SAMPLE_RATE:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _divide(group: Sequence[Span]) -> Iterator[Span]:
    """Yield a group as one span, or as several if it is too long."""
    start, stop = group[0][0], group[-1][1]
    longest = MAX_PIECE_SECONDS * SAMPLE_RATE
    if stop - start <= longest:
        yield start, stop
    elif len(group) > 1:
        pauses = [after[0] - before[1] for before, after in pairwise(group)]
        at = int(np.argmax(pauses)) + 1
        yield from _divide(group[:at])
        yield from _divide(group[at:])
    else:
        num_parts = -int(-(stop - start) // longest)
        cuts = [start + (stop - start) * number // num_parts for number in range(num_parts + 1)]
        yield from pairwise(cuts)
