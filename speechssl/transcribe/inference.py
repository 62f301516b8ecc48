"""The one way from recordings to what a model says of their frames.

A thread reads ahead and cuts recordings into pieces. Pieces of similar lengths, of one recording or of several, form
batches. Results come back recording by recording, piece by piece: memory does not grow with a recording's length.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from speechssl.data.audio import SAMPLE_RATE, Waveform
from speechssl.data.levels import SILENCE_PEAK
from speechssl.errors import AudioError, SpeechSSLError
from speechssl.frames import FrameGeometry
from speechssl.model.device import Precision, autocast, exact_float32, resolve_precision
from speechssl.transcribe.windows import Piece

BATCH_SECONDS = 60.0
_POOL_BATCHES = 4  # read before they are sorted by length
_POOL_PARTS = 512
_BLOCK_SAMPLES = 10 * SAMPLE_RATE

Source = tuple[str, Callable[[], Waveform | Iterable[Waveform]]]
"""What errors call a recording, and what opens it: samples (T,) at 16 kHz, at once or in blocks."""
Cut = Callable[[Iterable[Waveform]], Iterator[Piece]]
Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()


@dataclass(eq=False)
class _Recording:
    name: str
    num_samples: int = 0

    def count(self, blocks: Iterable[Waveform]) -> Iterator[Waveform]:
        for block in blocks:
            self.num_samples += len(block)
            yield block


@dataclass(eq=False)
class _Part:
    """A piece of a recording, or its end. The outputs of a piece are None until they are known."""

    recording: _Recording
    piece: Piece | None
    outputs: list[Tensor] | SpeechSSLError | None

    @property
    def num_samples(self) -> int:
        return len(self.piece.samples) if self.piece else 0


class Outputs:
    """What a model says of one recording; to be taken before the next recording's."""

    def __init__(self, recording: _Recording, parts: Iterable[_Part]) -> None:
        self._recording, self._parts = recording, parts

    def __iter__(self) -> Iterator[tuple[Piece, list[Tensor]]]:
        """Yield each piece with its kept frames: (S, ...) float32 on the CPU, one for each output of the model.

        Raises:
            SpeechSSLError: the rest cannot be read, or there is not enough memory for it.
        """
        for part in self._parts:
            if isinstance(part.outputs, SpeechSSLError):
                raise part.outputs
            if part.piece is None:
                return  # rather than ask for the next recording's, which may take a batch more
            assert part.outputs is not None
            yield part.piece, part.outputs

    @property
    def name(self) -> str:
        """What errors call the recording."""
        return self._recording.name

    @property
    def num_samples(self) -> int:
        """Length of the recording, once all pieces were taken."""
        return self._recording.num_samples


class Inference:
    """A model that is run on recordings.

    It turns (B, T) waveforms and their (B,) lengths, None if nothing is padding, into outputs (B, S, ...).
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor | None], Sequence[Tensor]],
        geometry: FrameGeometry,
        device: torch.device,
        precision: Precision | None = None,
    ) -> None:
        self.model, self.geometry, self.device = model, geometry, device
        self.dtype = resolve_precision(precision, device)
        self.precision = str(self.dtype).removeprefix("torch.")

    def describe(self) -> str:
        """Return where the model runs, and how precisely."""
        device = f"cpu x {torch.get_num_threads()}" if self.device.type == "cpu" else str(self.device)
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        return f"{device}, {self.precision}"

    def run(self, sources: Iterable[Source], cut: Cut, batch_seconds: float = BATCH_SECONDS) -> Iterator[Outputs]:
        """Run the model on recordings.

        Args:
            sources: Opened in order, in another thread, a few minutes of audio ahead of the results.
            cut: Cuts the blocks of a recording into pieces; those shorter than a frame are left out.
            batch_seconds: Bound on the audio of a batch, padding included; a longer piece is a batch of its own.

        Yields:
            In the order of the sources, the outputs of each.
        """
        parts = self._compute_parts(self._read_parts(sources, cut), batch_seconds * SAMPLE_RATE)
        for recording, its_parts in groupby(parts, key=attrgetter("recording")):
            yield Outputs(recording, its_parts)

    def with_model(self, model: Callable[[Tensor, Tensor | None], Sequence[Tensor]]) -> "Inference":
        """Return what runs another model in the same place, as precisely."""
        other = copy(self)
        other.model = model
        return other

    def run_alone(self, name: str, samples: Waveform) -> list[Tensor]:
        """Run the model on (T,) samples, at least a frame, in this thread.

        Raises:
            AudioError: there is not enough memory.
        """
        [outputs] = self._compute_or_halve([_Part(_Recording(name), Piece(0, samples), None)])
        if isinstance(outputs, SpeechSSLError):
            raise outputs
        return outputs

    def _read_parts(self, sources: Iterable[Source], cut: Cut) -> Iterator[_Part]:
        for name, open_recording in sources:
            recording = _Recording(name)
            end = _Part(recording, None, [])
            try:
                for piece in cut(recording.count(_blocks(open_recording()))):
                    if self.geometry.num_frames(len(piece.samples)):
                        yield _Part(recording, replace(piece, samples=without_noise(piece.samples)), None)
            except SpeechSSLError as error:
                end.outputs = error
            yield end

    def _compute_parts(self, parts: Iterable[_Part], batch_samples: float) -> Iterator[_Part]:
        """Yield the parts with their outputs, each as soon as all before it are known."""
        # On a CPU ten seconds keep all of it busy: there is nothing to gain that would pay for padding.
        min_fill = 0.9 if self.device.type == "cpu" else 0.5
        for pool in _prefetch(_pools(parts, _POOL_BATCHES * batch_samples)):
            for batch in _batches([part for part in pool if part.piece], batch_samples, min_fill):
                for part, outputs in zip(batch, self._compute_or_halve(batch), strict=True):
                    part.outputs = outputs
                while pool and pool[0].outputs is not None:
                    yield pool.popleft()
            yield from pool

    def _compute_or_halve(self, batch: Sequence[_Part]) -> list[list[Tensor] | SpeechSSLError]:
        """Return the outputs of each part, computed together if there is enough memory."""
        try:
            return self._compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        half = len(batch) // 2
        if half:
            return self._compute_or_halve(batch[:half]) + self._compute_or_halve(batch[half:])
        [part] = batch
        seconds = part.num_samples / SAMPLE_RATE
        return [
            AudioError(
                f"{part.recording.name}: not enough memory on {self.device} for {seconds:.0f} s of audio at once"
            )
        ]

    @torch.inference_mode()
    def _compute(self, batch: Sequence[_Part]) -> list[list[Tensor] | SpeechSSLError]:
        pieces = [part.piece for part in batch if part.piece]
        waveforms, lengths = _pad([piece.samples for piece in pieces])
        with exact_float32(self.dtype), autocast(self.device, self.dtype):
            outputs = self.model(waveforms.to(self.device), None if lengths is None else lengths.to(self.device))
        outputs = [output.float().cpu() for output in outputs]
        results: list[list[Tensor] | SpeechSSLError] = []
        for row, (part, piece) in enumerate(zip(batch, pieces, strict=True)):
            num_frames = self.geometry.num_frames(len(piece.samples))
            # Copies, which do not keep the batch in memory.
            kept = [output[row, :num_frames][piece.first_kept : piece.stop_kept].clone() for output in outputs]
            if any(output.isnan().any() for output in kept):
                name = part.recording.name
                results.append(AudioError(f"{name}: expected numbers from the model in {self.precision}, found NaN"))
            else:
                results.append(kept)
        return results


def without_noise(samples: Waveform) -> Waveform:
    """Make silence, (T,) at any offset, digital: normalized, the noise of 16 bits would be as loud as speech."""
    is_silence = np.ptp(samples) < 2 * SILENCE_PEAK  # NaN is none
    return np.zeros_like(samples) if is_silence else samples


def _blocks(recording: Waveform | Iterable[Waveform]) -> Iterable[Waveform]:
    if not isinstance(recording, np.ndarray):
        return recording
    return (recording[first : first + _BLOCK_SAMPLES] for first in range(0, len(recording), _BLOCK_SAMPLES))


def _pools(parts: Iterable[_Part], num_samples: float) -> Iterator[deque[_Part]]:
    """Yield parts in their order, as many at a time as make a few batches."""
    pool: deque[_Part] = deque()
    num_pooled = 0
    for part in parts:
        pool.append(part)
        num_pooled += part.num_samples
        if num_pooled >= num_samples or len(pool) == _POOL_PARTS:
            yield pool
            pool, num_pooled = deque(), 0
    yield pool


def _batches(parts: Sequence[_Part], batch_samples: float, min_fill: float) -> Iterator[list[_Part]]:
    """Put parts of similar lengths together, the longest first, so that what does not fit in memory shows at once.

    Args:
        parts: Pieces in any order.
        batch_samples: Bound on a batch with its padding; a longer piece is a batch of its own.
        min_fill: The share of a batch's longest piece that its shortest has at least.
    """
    batch: list[_Part] = []
    for part in sorted(parts, key=lambda part: -part.num_samples):
        longest = batch[0].num_samples if batch else 0
        if batch and (longest * (len(batch) + 1) > batch_samples or part.num_samples < min_fill * longest):
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def _prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Give items one after another, the next one being made in a thread meanwhile."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as thread:
        upcoming = thread.submit(next, iterator, _END)
        while (item := upcoming.result()) is not _END:
            upcoming = thread.submit(next, iterator, _END)
            yield item  # type: ignore[misc]


def _pad(waveforms: Sequence[Waveform]) -> tuple[Tensor, Tensor | None]:
    """Return (B, T) waveforms with zeros at the end, and their lengths; None if all are equally long."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = np.zeros((len(waveforms), int(lengths.max())), dtype=np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return torch.from_numpy(batch), None if bool((lengths == lengths[0]).all()) else lengths


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def make_results(
    all_outputs: Iterable[Outputs], make: Callable[[Outputs], Result]
) -> Iterator[Result | SpeechSSLError]:
    """Make something of the outputs of each recording; errors, also those of reading it, take its place."""
    for outputs in all_outputs:
        result: Result | SpeechSSLError
        try:
            result = make(outputs)
        except SpeechSSLError as error:
            result = error
        yield result
