"""Audio in, text out: a fine-tuned model that transcribes recordings."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from speechssl.checkpoint.native import CTCCheckpoint, load_ctc
from speechssl.data.audio import SAMPLE_RATE, Waveform, as_waveform, read_audio
from speechssl.errors import AudioError
from speechssl.model.ctc import greedy_paths

Audio = str | os.PathLike[str] | BinaryIO | npt.ArrayLike | Tensor


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording.

    Attributes:
        text: The words, separated by single spaces; empty if there are none.
        seconds: Length of the recording.
    """

    text: str
    seconds: float

    def __str__(self) -> str:
        return self.text


class Transcriber:
    """A model that turns recordings into text by its greedy CTC path.

    Args:
        checkpoint: A model with its vocabulary, on the device to use.
    """

    def __init__(self, checkpoint: CTCCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.device = next(checkpoint.model.parameters()).device

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | None = None) -> Self:
        """Load a model folder, or the best model of a run folder.

        Args:
            path: The folder.
            device: A torch device such as ``cpu`` or ``cuda:1``; None is the GPU if there is one.

        Raises:
            CheckpointError: there is no fine-tuned model, or no such device.
        """
        return cls(load_ctc(Path(path), device))

    def transcribe(self, audio: Audio, sample_rate: int | None = None) -> Transcript:
        """Transcribe one recording.

        Args:
            audio: A path or an open binary file, in any format that `read_audio` knows; or samples in [-1, 1], (T,)
                or (T, channels).
            sample_rate: The rate of the samples in Hz; a file knows its own.

        Raises:
            AudioError: the recording cannot be read, samples come without a rate, or there is not enough memory.
        """
        source: Any = audio.detach().cpu().numpy() if isinstance(audio, Tensor) else audio
        if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
            if sample_rate is not None:
                raise AudioError(f"{source}: expected no sample_rate beside a file, found {sample_rate}")
            waveform = read_audio(source)
        else:
            waveform = as_waveform(source, sample_rate)
        return self.transcribe_waveforms([waveform])[0]

    @torch.inference_mode()
    def transcribe_waveforms(self, waveforms: Sequence[Waveform]) -> list[Transcript]:
        """Transcribe recordings as one batch.

        Args:
            waveforms: (T,) each, mono at 16 kHz, as `read_audio` gives them.

        Returns:
            A transcript each. One shorter than a frame has no text.

        Raises:
            AudioError: there is not enough memory.
        """
        model = self.checkpoint.model
        texts = [""] * len(waveforms)
        # A recording without a single frame cannot pass the convolutions, and says nothing.
        heard = [index for index, wave in enumerate(waveforms) if model.encoder.geometry.num_frames(len(wave)) > 0]
        if heard:
            batch, lengths = _pad([waveforms[index] for index in heard])
            try:
                output = model(batch.to(self.device), None if lengths is None else lengths.to(self.device))
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                seconds = batch.numel() / SAMPLE_RATE
                raise AudioError(f"not enough memory on {self.device} for {seconds:.0f} s of audio at once") from None
            for index, path in zip(heard, greedy_paths(output), strict=True):
                texts[index] = self.checkpoint.vocabulary.decode([token.symbol_id for token in path])
        return [Transcript(text, len(wave) / SAMPLE_RATE) for text, wave in zip(texts, waveforms, strict=True)]


def _pad(waveforms: Sequence[Waveform]) -> tuple[Tensor, Tensor | None]:
    """(B, T) waveforms with zeros at the end, and their lengths; None if all are equally long."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = np.zeros((len(waveforms), int(lengths.max())), dtype=np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return torch.from_numpy(batch), None if bool((lengths == lengths[0]).all()) else lengths


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
