"""Decode prompts from G.722, find where a long one may be cut, and encode them as Ogg Opus."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from prepare import MAX_PIECE_SECONDS, MIN_PIECE_SECONDS, SAMPLE_RATE

Samples = npt.NDArray[np.int16]

BIT_RATE = 17_000
FRAME_MILLISECONDS = 60

PAUSE_DROP = 3_000  # a pause lies this factor in energy (35 dB) below the loudest 10 ms of the clip
HOP = SAMPLE_RATE // 100
MIN_PAUSE_FRAMES = 15  # of a hop each
MAX_CUT_GAP = round(0.95 * MAX_PIECE_SECONDS * SAMPLE_RATE)


def decode(path: Path) -> Samples:
    """Decode a G.722 file: (T,) int16 at 16 kHz, the same on every machine."""
    if path.stat().st_size == 0:
        return np.zeros(0, np.int16)
    with av.open(str(path), format="g722") as container:
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


def pauses(samples: Samples) -> list[int]:
    """Find where a clip that is too long for one piece may be cut; in integers only, so the same everywhere.

    Returns:
        The middles of the pauses, and the quietest moments of what is still too long, in samples from the start.
    """
    if len(samples) <= MAX_PIECE_SECONDS * SAMPLE_RATE:
        return []
    frames = samples[: len(samples) // HOP * HOP].astype(np.int64).reshape(-1, HOP)
    energies = (frames**2).sum(axis=1)
    is_quiet = energies * PAUSE_DROP < energies.max()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_quiet, [False]]).astype(np.int8)))
    cuts = [0, len(energies)]
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if end - begin >= MIN_PAUSE_FRAMES and begin > 0 and end < len(energies):
            cuts.append((begin + end) // 2)
    smooth = np.convolve(energies, np.ones(9, np.int64), "same")
    margin = round(MIN_PIECE_SECONDS * SAMPLE_RATE / HOP)
    while gap := next((gap for gap in pairwise(sorted(cuts)) if (gap[1] - gap[0]) * HOP > MAX_CUT_GAP), None):
        cuts.append(gap[0] + margin + int(smooth[gap[0] + margin : gap[1] - margin].argmin()))
    return [cut * HOP for cut in sorted(cuts)[1:-1]]


def encode(samples: Samples, path: Path) -> None:
    """Write Ogg Opus at 16 kHz, replacing an old file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    # Without these two the stream's serial number is random.
    muxing = {"serial_offset": "1", "fflags": "+bitexact"}
    coding = {"application": "voip", "frame_duration": str(FRAME_MILLISECONDS), "vbr": "on", "compression_level": "10"}
    with av.open(str(temporary), "w", format="ogg", options=muxing) as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options=coding)
        stream.bit_rate = BIT_RATE
        step = SAMPLE_RATE * FRAME_MILLISECONDS // 1000
        for start in range(0, len(samples), step):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + step], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    temporary.replace(path)
