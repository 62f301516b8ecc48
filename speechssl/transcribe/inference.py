"""The one way from recordings to what a model says of their frames.

A thread reads ahead and cuts recordings into pieces. Pieces of similar lengths, of one recording or of several, form
batches. Results come back recording by recording, piece by piece: memory does not grow with a recording's length.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from speechssl.data.audio import SAMPLE_RATE, Waveform
from speechssl.errors import AudioError, SpeechSSLError
from speechssl.frames import FrameGeometry
from speechssl.model.device import Precision, autocast, exact_float32, resolve_precision
from speechssl.transcribe.windows import Piece

BATCH_SECONDS = 60.0
_POOL_BATCHES = 4  # read before they are sorted by length
_POOL_ITEMS = 512
_BLOCK_SAMPLES = 10 * SAMPLE_RATE

Source = tuple[str, Callable[[], Waveform | Iterable[Waveform]]]
"""How errors call a recording, and what opens it: samples (T,) at 16 kHz, at once or in blocks."""
Cut = Callable[[Iterable[Waveform]], Iterator[Piece]]
Item = TypeVar("Item")

_END = object()


@dataclass(eq=False)
class _Recording:
    """A recording while it is read."""

    name: str
    num_samples: int = 0

    def count(self, blocks: Iterable[Waveform]) -> Iterator[Waveform]:
        for block in blocks:
            self.num_samples += len(block)
            yield block


# A recording with a piece of it; or, where it ends, with what was wrong if it ended too early.
_Read = tuple[_Recording, Piece | SpeechSSLError | None]
_Found = tuple[_Recording, Piece | None, list[Tensor] | SpeechSSLError]


class Outputs:
    """What a model says of one recording; to be taken before the next recording's."""

    def __init__(self, recording: _Recording, found: Iterable[_Found]) -> None:
        self._recording, self._found = recording, found

    def __iter__(self) -> Iterator[tuple[Piece, list[Tensor]]]:
        """Yield each piece with its kept frames: (S, ...) float32 on the CPU, one for each output of the model.

        Raises:
            SpeechSSLError: the rest cannot be read, or there is not enough memory for it.
        """
        for _, piece, outputs in self._found:
            if isinstance(outputs, SpeechSSLError):
                raise outputs
            if piece is not None:
                yield piece, outputs

    @property
    def num_samples(self) -> int:
        """Length of the recording, once all pieces were taken."""
        return self._recording.num_samples


class Inference:
    """A model that is run on recordings.

    Args:
        model: Turns (B, T) waveforms and their (B,) lengths, None if nothing is padding, into outputs (B, S, ...).
        geometry: Its samples to frames.
        device: Where it is.
        precision: As for `resolve_precision`.
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
        # On a CPU ten seconds keep all of it busy: there is nothing to gain that would pay for padding.
        self._min_fill = 0.9 if device.type == "cpu" else 0.5

    def describe(self) -> str:
        """Return where the model runs, and how precisely."""
        device = str(self.device)
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        elif self.device.type == "cpu":
            device = f"cpu x {torch.get_num_threads()}"
        return f"{device}, {self.precision}"

    @property
    def precision(self) -> str:
        """The type of its matrix products."""
        return str(self.dtype).removeprefix("torch.")

    def run(self, sources: Iterable[Source], cut: Cut, batch_seconds: float = BATCH_SECONDS) -> Iterator[Outputs]:
        """Run the model on recordings.

        Args:
            sources: Opened in order, in another thread, a few minutes of audio ahead of the results.
            cut: Cuts the blocks of a recording into pieces; those shorter than a frame are left out.
            batch_seconds: Bound on the audio of a batch, padding included; a longer piece is a batch of its own.

        Yields:
            In the order of the sources, the outputs of each.
        """
        for recording, found in groupby(self._results(sources, cut, batch_seconds * SAMPLE_RATE), key=itemgetter(0)):
            yield Outputs(recording, found)

    def run_alone(self, name: str, samples: Waveform) -> list[Tensor]:
        """Run the model on (T,) samples, at least a frame, in this thread.

        Raises:
            AudioError: there is not enough memory.
        """
        [outputs] = self._outputs([(name, Piece(0, samples))])
        if isinstance(outputs, AudioError):
            raise outputs
        return outputs

    def _results(self, sources: Iterable[Source], cut: Cut, batch_samples: float) -> Iterator[_Found]:
        """Yield what was read with the outputs of the pieces, each as soon as all before it are known."""
        for pool in prefetch(_pools(self._read(sources, cut), _POOL_BATCHES * batch_samples)):
            pieces = {number: piece for number, (_, piece) in enumerate(pool) if isinstance(piece, Piece)}
            lengths = {number: len(piece.samples) for number, piece in pieces.items()}
            outputs: dict[int, list[Tensor] | AudioError] = {}
            first = 0
            for batch in plan_batches(lengths, batch_samples, self._min_fill):
                found = self._outputs([(pool[number][0].name, pieces[number]) for number in batch])
                outputs.update(zip(batch, found, strict=True))
                while first < len(pool) and (first not in pieces or first in outputs):
                    yield _with_outputs(pool[first], outputs.pop(first, []))
                    first += 1
            for read in pool[first:]:  # of a pool without pieces
                yield _with_outputs(read, [])

    def _read(self, sources: Iterable[Source], cut: Cut) -> Iterator[_Read]:
        for name, open_recording in sources:
            recording = _Recording(name)
            failure = None
            try:
                for piece in cut(recording.count(_blocks(open_recording()))):
                    if self.geometry.num_frames(len(piece.samples)):
                        yield recording, piece
            except SpeechSSLError as error:
                failure = error
            yield recording, failure

    def _outputs(self, pieces: Sequence[tuple[str, Piece]]) -> list[list[Tensor] | AudioError]:
        """Return the outputs of a batch, or of its halves if there is not enough memory."""
        try:
            return self._compute(pieces)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        if len(pieces) == 1:
            [(name, piece)] = pieces
            seconds = len(piece.samples) / SAMPLE_RATE
            return [AudioError(f"{name}: not enough memory on {self.device} for {seconds:.0f} s of audio at once")]
        half = len(pieces) // 2
        return self._outputs(pieces[:half]) + self._outputs(pieces[half:])

    @torch.inference_mode()
    def _compute(self, pieces: Sequence[tuple[str, Piece]]) -> list[list[Tensor] | AudioError]:
        batch, lengths = _pad([piece.samples for _, piece in pieces])
        with exact_float32(self.dtype), autocast(self.device, self.dtype):
            outputs = self.model(batch.to(self.device), None if lengths is None else lengths.to(self.device))
        outputs = [output.float().cpu() for output in outputs]
        results: list[list[Tensor] | AudioError] = []
        for row, (name, piece) in enumerate(pieces):
            num_frames = self.geometry.num_frames(len(piece.samples))
            # Copies, which do not keep the batch in memory.
            kept = [output[row, :num_frames][piece.first_kept : piece.stop_kept].clone() for output in outputs]
            if any(output.isnan().any() for output in kept):
                results.append(AudioError(f"{name}: expected numbers from the model in {self.precision}, found NaN"))
            else:
                results.append(kept)
        return results


def plan_batches(lengths: Mapping[int, float], batch_samples: float, min_fill: float) -> Iterator[list[int]]:
    """Put pieces of similar lengths together, the longest first, so that what does not fit in memory shows at once.

    Args:
        lengths: Samples of each piece, by its number.
        batch_samples: Bound on a batch with its padding; a longer piece is a batch of its own.
        min_fill: The share of a batch's longest piece that its shortest has at least.

    Yields:
        Numbers of pieces, each once.
    """
    batch: list[int] = []
    for number in sorted(lengths, key=lambda number: -lengths[number]):
        longest = lengths[batch[0]] if batch else 0.0
        if batch and (longest * (len(batch) + 1) > batch_samples or lengths[number] < min_fill * longest):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Give items one after another, the next one being made in a thread meanwhile."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as thread:
        upcoming = thread.submit(next, iterator, _END)
        while (item := upcoming.result()) is not _END:
            upcoming = thread.submit(next, iterator, _END)
            yield item  # type: ignore[misc]


def _blocks(recording: Waveform | Iterable[Waveform]) -> Iterable[Waveform]:
    if not isinstance(recording, np.ndarray):
        return recording
    return (recording[first : first + _BLOCK_SAMPLES] for first in range(0, len(recording), _BLOCK_SAMPLES))


def _pools(items: Iterable[_Read], num_samples: float) -> Iterator[list[_Read]]:
    """Yield what was read in its order, as much at a time as makes a few batches."""
    pool: list[_Read] = []
    num_pooled = 0
    for item in items:
        pool.append(item)
        if isinstance(item[1], Piece):
            num_pooled += len(item[1].samples)
        if num_pooled >= num_samples or len(pool) == _POOL_ITEMS:
            yield pool
            pool, num_pooled = [], 0
    yield pool


def _with_outputs(read: _Read, outputs: list[Tensor] | SpeechSSLError) -> _Found:
    recording, piece = read
    return (recording, None, piece) if isinstance(piece, SpeechSSLError) else (recording, piece, outputs)


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
