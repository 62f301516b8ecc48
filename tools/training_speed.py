"""Speed and memory of training, by us and by transformers: as it is, compiled, or computing activations again."""

import ctypes
import gc
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from training_cases import Case, convert

from speechssl.model.cpu import small_model_training
from speechssl.model.device import autocast, resolve_precision
from speechssl.objective.objective import weighted_sum
from speechssl.train import compiled
from speechssl.train.memory import recomputed_layers
from speechssl.train.optimizer import make_optimizer

SIDES = ("speechssl", "transformers")
VARIANTS = ("compiled", "checkpointed")


@dataclass(frozen=True)
class Training:
    """A model that is trained, and its loss of the batch, which is on its device."""

    model: nn.Module
    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device
    dtype: torch.dtype
    is_ours: bool
    recomputes: bool  # our transformer layers; transformers does it by itself

    def compute_gradients(self) -> None:
        """Forward and backward."""
        with recomputed_layers(self.model) if self.recomputes else nullcontext():
            with autocast(self.device, self.dtype):
                loss = self.loss()
            loss.backward()

    def update(self) -> None:
        """One step."""
        tuned = small_model_training(self.model, self.device, self.dtype) if self.is_ours else nullcontext()
        with tuned:
            self.compute_gradients()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def build(side: str, case: Case, device: torch.device, precision: str) -> Training:
    """A new model of one side, such as "transformers compiled"."""
    who, _, variant = side.partition(" ")
    if who == "speechssl":
        model = case.build_ours().to(device)
        if variant == "compiled":
            part = case.compiled_part(model)
            part.forward = compiled.compiled_call(part, compiled.GRAPHS_PER_SHAPE)
        batch = case.batch.to(device)

        def loss() -> Tensor:
            return weighted_sum(model(batch, 0), batch.counts)
    else:
        model = case.build_theirs().to(device)
        if variant == "compiled":
            model.compile(backend=compiled.BACKEND, dynamic=False)
        elif variant == "checkpointed":
            model.gradient_checkpointing_enable()
        inputs = case.their_inputs(device)

        def loss() -> Tensor:
            return model(**inputs).loss / case.count

    optimizer = make_optimizer(case.config.optimizer, model.train().parameters())
    dtype = resolve_precision(precision, device)
    return Training(model, loss, optimizer, device, dtype, who == "speechssl", side == "speechssl checkpointed")


def wait(device: torch.device) -> None:
    """Until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_memory(side: str, case: Case, device: torch.device, precision: str) -> float | None:
    """MiB at most in two updates of one side alone; None if that is more than there is."""
    before = start_counting(device)
    try:
        training = build(side, case, device, precision)
        for _ in range(2):  # the second has the optimizer's moments from the start
            training.update()
        wait(device)
    except torch.OutOfMemoryError:
        return None
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20 - before
    return memory_of_process("VmHWM") - before


def start_counting(device: torch.device) -> float:
    """MiB in use; the peak counts from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory_of_process("VmRSS")


def memory_of_process(name: str) -> float:
    """MiB, as the kernel counts."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10


def measure_speeds(
    case: Case, sides: Sequence[str], device: torch.device, precision: str, repeats: int, num_updates: int
) -> dict[str, float]:
    """Seconds of audio trained a second, by side."""
    updates = {side: build(side, case, device, precision).update for side in sides}
    best = dict.fromkeys(sides, math.inf)
    for repeat in range(repeats + 1):  # the first one warms up
        for side, update in updates.items():
            seconds = measure_seconds(update, device, num_updates)
            if repeat:
                best[side] = min(seconds, best[side])
    return {side: case.seconds / seconds for side, seconds in best.items()}


def measure_products(device: torch.device, precision: str, repeats: int) -> float:
    """FLOPs a second of the product of two matrices that are large enough to keep the processor busy."""
    size = 2048
    matrix = torch.randn(size, size, device=device, dtype=resolve_precision(precision, device))
    best = min(measure_seconds(lambda: matrix @ matrix, device, 5) for _ in range(repeats + 1))
    return float(2 * size**3 / best)


def measure_seconds(compute: Callable[[], object], device: torch.device, num_times: int) -> float:
    """How long it takes once."""
    wait(device)
    started = time.perf_counter()
    for _ in range(num_times):
        compute()
    wait(device)
    return (time.perf_counter() - started) / num_times


@torch.no_grad()
def compare_losses(case: Case, device: torch.device, has_bfloat16: bool) -> tuple[float, float | None]:
    """Make sure that the same is trained on both sides, and tell our loss in float32 and in bfloat16."""
    torch.manual_seed(0)
    theirs, ours = case.build_theirs().eval(), case.build_ours().eval()
    convert(theirs, ours)
    batch = case.batch.to(device)
    losses = ours.to(device)(batch, 0)
    sums = case.compared(losses, theirs.to(device)(**case.their_inputs(device)))
    found, expected = (total.item() / case.count for total in sums)
    if not abs(found - expected) < 1e-3 * expected:  # rounding may choose another entry of a codebook
        raise AssertionError(f"{case.name}: expected transformers' loss of {expected:.4f}, found {found:.4f}")
    in_float32 = weighted_sum(losses, batch.counts).item()
    if not has_bfloat16:
        return in_float32, None
    with autocast(device, torch.bfloat16):
        losses = ours(batch, 0)
    return in_float32, weighted_sum(losses, batch.counts).item()
