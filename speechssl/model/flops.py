"""How much is computed, and how much a GPU could compute.

FLOPs are those of matrix products and convolutions, two for a multiplication with its addition; norms and activations
are not counted.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Dense bfloat16 with sums in float32, and float32 without TF32, in TFLOP/s, from NVIDIA's data sheets; SXM where
# nothing else is said. A GPU is the first all of whose words are in its name.
_PEAKS: tuple[tuple[str, float | None, float], ...] = (
    ("B200", 2250, 75),
    ("GH200", 989, 67),
    ("H200", 989, 67),
    ("H100 PCIe", 756, 51),
    ("H100", 989, 67),
    ("A100", 312, 19.5),
    ("A40", 149.7, 37.4),
    ("A30", 165, 10.3),
    ("A10", 125, 31.2),
    ("L40S", 362, 91.6),
    ("L40", 181, 90.5),
    ("L4", 121, 30.3),
    ("V100 PCIE", None, 14),
    ("V100", None, 15.7),
    ("T4", None, 8.1),
    ("RTX A6000", 154.8, 38.7),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71, 35.6),
)
_NAMESAKES = {"MIG", "LAPTOP", "D", "TI", "NVL"}  # words of other GPUs, or of a part of one


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the FLOPs of what runs under it, forward and backward, except in inference mode and when `uncounted`.

    What is computed stays the same bit for bit. Attention counts as its matrix products, whichever kernel computes it
    and however often the kernel computes them again in its backward pass.
    """

    is_paused: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        output = function(*args, **(kwargs or {}))
        if not torch.is_inference_mode_enabled() and not self.is_paused:
            packet = function.overloadpacket
            name, count = str(packet), flop_registry.get(packet)
            if "._scaled_dot_product" in name:
                is_backward = name.endswith("_backward")
                self.flops += (2 if is_backward else 1) * _attention_flops(*args[is_backward : is_backward + 3])
            elif count is not None:
                self.flops += count(*args, **(kwargs or {}), out_val=output)
        return output


@contextmanager
def uncounted() -> Iterator[None]:
    """Count nothing meanwhile: what is computed again to save memory is no work of the model's."""
    FlopCounter.is_paused = True
    try:
        yield
    finally:
        FlopCounter.is_paused = False


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> int:
    """FLOPs of the scores and of the sums of values; a backward pass has two products for each of them."""
    dim = query.shape[-1]
    return 2 * (query.numel() // dim) * key.shape[-2] * (dim + value.shape[-1])


def peak_flops(gpu: str, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s that a GPU can do at most, by its name; None if that is not known."""
    words = set(re.split(r"[ -]", gpu.upper()))
    if words & _NAMESAKES:
        return None
    for name, bfloat16, float32 in _PEAKS:
        if set(name.upper().split()) <= words:
            peak = bfloat16 if dtype == torch.bfloat16 else float32
            return None if peak is None else peak * 1e12
    return None
