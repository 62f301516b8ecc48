"""Memory: activations that are computed again instead of kept, and what to change if there is too little of it."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import AudioBatch
from speechssl.data.manifest import Manifest
from speechssl.errors import TrainingError
from speechssl.model.flops import uncounted
from speechssl.model.transformer import TransformerLayer

# Of PyTorch's errors without a type of their own: the CPU's allocator, CUDA's libraries, and /dev/shm, through which
# workers hand over their batches.
_SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "No space left on device")
_MOST_NAMED = 3


@contextmanager
def recomputed_layers(model: nn.Module) -> Iterator[None]:
    """Keep of each transformer layer only its input, and compute the layer again in the backward pass.

    That is activation checkpointing (Chen et al., 2016, https://arxiv.org/abs/1604.06174): memory for a third more
    computing. The second time dropout draws the numbers of the first.

    Raises:
        TrainingError: the model has no transformer layers.
    """
    layers = [module for module in model.modules() if isinstance(module, TransformerLayer)]
    if not layers:
        raise TrainingError("trainer.checkpoint_activations: expected a model with transformer layers, found none")
    for layer in layers:
        layer.forward = partial(_call_twice, layer.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # beside which there is that of its class


def _call_twice(forward: Callable[..., Any], *arguments: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments)
    if torch.compiler.is_compiling():  # which knows of no such contexts, and nothing is counted then
        return checkpoint(forward, *arguments, use_reentrant=False)
    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), uncounted()))


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
