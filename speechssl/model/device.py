"""Where a model computes, and how precisely."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from speechssl.errors import CheckpointError, ConfigError

Precision = Literal["float32", "bfloat16", "float16"]


def resolve_device(device: torch.device | str | None) -> torch.device:
    """Return the device of that name; None is the GPU if there is one, else the CPU.

    Raises:
        CheckpointError: the name is unknown or there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"device {device}: not available: {reason}") from None
    return resolved


def resolve_precision(precision: Precision | None, device: torch.device, *, trains: bool = False) -> torch.dtype:
    """Return the type in which matrix products and convolutions are computed.

    Args:
        precision: None is float32 on a CPU and bfloat16 on a GPU that has it in hardware; on an older GPU,
            which only emulates bfloat16, it is float16 for inference and float32 for training, whose gradients would
            leave the range of float16.
        device: Where.
        trains: Whether gradients are computed.

    Raises:
        ConfigError: there is no such precision.
    """
    if precision is not None:
        types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if precision not in types:
            raise ConfigError(f"precision: expected {', '.join(types)} or None, found {precision!r}")
        return types[precision]
    if device.type != "cuda":
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if trains else torch.float16


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Compute what is numerically safe in ``dtype``; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def exact_float32(dtype: torch.dtype) -> Iterator[None]:
    """Keep TF32, which drops 13 of 23 bits, out of float32 on GPUs: PyTorch uses it in convolutions by default."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        if dtype == torch.float32:
            for backend in backends:
                backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
