"""Running out of memory: one line that says what did not fit, and what to change."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import AudioBatch
from speechssl.data.manifest import Manifest
from speechssl.errors import TrainingError

# Of PyTorch's errors without a type of their own: the CPU's allocator, CUDA's libraries, and /dev/shm, through which
# workers hand over their batches.
_SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "No space left on device")
_MOST_NAMED = 3


@contextmanager
def explained_shortage(where: Callable[[], str]) -> Iterator[None]:
    """Say in one line where memory ran out, the machine's or the GPU's, and what to change.

    Raises:
        TrainingError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", text):
            raise TrainingError(
                f"{where()}: a process that reads audio ended unexpectedly, as it does when memory or /dev/shm runs "
                "out: lower data.num_workers (0 reads in the training process) or batches.seconds"
            ) from None
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(sign in text for sign in _SIGNS):
            raise
        raise TrainingError(
            f"{where()}: out of memory: halve batches.seconds and double trainer.microbatches (an update stays as "
            "large), or lower batches.max_seconds"
        ) from None


def describe_batch(audio: AudioBatch, manifest: Manifest) -> str:
    """Say how large a batch is and which utterances it has."""
    rows, num_samples = audio.waveforms.shape
    places = ", ".join(manifest.where(index) for index in audio.indices[:_MOST_NAMED])
    rest = f" and {rows - _MOST_NAMED} more" if rows > _MOST_NAMED else ""
    return f"a batch of {rows} x {num_samples / SAMPLE_RATE:.1f} s ({places}{rest})"
