"""Which letter sounds when: utterances with texts, aligned by a fine-tuned model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from speechssl.checkpoint.reader import load_ctc
from speechssl.data.audio import Waveform
from speechssl.data.manifest import Manifest
from speechssl.data.units import num_frames_needed
from speechssl.decode.forced_alignment import align
from speechssl.decode.greedy import PathToken
from speechssl.errors import ConfigError, ManifestError
from speechssl.evaluate.utterances import read_references, utterance_readers
from speechssl.terminal import count, print_status, progress
from speechssl.transcribe.extract import frame_times

NONE = -1  # the symbol of a frame in which no letter sounds
_REACH = 2  # frames on each side of those that show a letter that count with it


@dataclass(frozen=True)
class Letter:
    """A letter of an utterance, from the center of its first frame to that of its last, in seconds."""

    symbol: int
    first: float
    last: float


@dataclass(frozen=True)
class AlignedUtterance:
    """An utterance with the symbol that sounds at each frame of the model that aligned it.

    Attributes:
        speaker: None is one of its own.
        waveform: (T,).
        times: (S,) seconds, the centers of the frames.
        symbols: (S,) int64, `NONE` between letters; the delimiter of words is a symbol too.
        letters: Without delimiters.
    """

    speaker: str | None
    waveform: Waveform
    times: npt.NDArray[np.float64]
    symbols: npt.NDArray[np.int64]
    letters: tuple[Letter, ...]


@torch.inference_mode()
def align_manifest(aligner: Path, manifest: Manifest) -> list[AlignedUtterance]:
    """Align the texts of a manifest; utterances too short for their texts are left out, with a line that says so.

    A CTC model shows a letter in a frame or two. The frames beside them count with it, up to two on each side and
    never nearer to another letter; the others are nothing's.

    Raises:
        ManifestError: there are no texts, or one has letters that the model lacks.
        ConfigError: no utterance is left.
    """
    checkpoint = load_ctc(aligner, "cpu")
    model, units = checkpoint.model, checkpoint.vocabulary
    found: list[AlignedUtterance] = []
    with progress(str(manifest.path), len(manifest)) as advance:
        for index, (text, read) in enumerate(
            zip(read_references(manifest), utterance_readers(manifest, range(len(manifest))), strict=True)
        ):
            advance()
            try:
                labels = units.encode(text)
            except ManifestError as error:
                raise ManifestError(f"{manifest.where(index)}: {error}") from None
            waveform = read()
            num_frames = model.encoder.geometry.num_frames(len(waveform))
            if not labels or num_frames < num_frames_needed(labels):
                continue
            log_probs = model(torch.from_numpy(waveform)[None]).log_probs[0]
            times = frame_times(model.encoder.geometry, num_frames)
            symbols, letters = np.full(num_frames, NONE), []
            for symbol, first, last in _spread(align(log_probs, labels, units.blank_id), num_frames):
                symbols[first : last + 1] = symbol
                if symbol != units.delimiter_id:
                    letters.append(Letter(symbol, times[first], times[last]))
            found.append(AlignedUtterance(manifest[index].speaker, waveform, times, symbols, tuple(letters)))
    if len(found) < len(manifest):
        left_out = count(len(manifest) - len(found), "utterance")
        print_status(f"{manifest.path}: left out {left_out} without a text or too short for it")
    if not found:
        raise ConfigError(f"{manifest.path}: expected utterances that are long enough for their texts, found none")
    return found


def _spread(path: list[PathToken], num_frames: int) -> Iterator[tuple[int, int, int]]:
    """Yield the symbol, first and last frame of each token with the frames beside it."""
    stop = 0
    for number, token in enumerate(path):
        first = max(token.first_frame - _REACH, stop)
        last = min(token.last_frame + _REACH, num_frames - 1)
        if number + 1 < len(path):  # half of the way to the next
            last = min(last, (token.last_frame + path[number + 1].first_frame) // 2)
            last = min(last, path[number + 1].first_frame - 1)
        yield token.symbol_id, first, last
        stop = last + 1
