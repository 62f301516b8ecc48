"""Say what a long pretraining takes: bytes, shards, readers, memory, time, cost, and what interruptions lose.

    python tools/scale.py CONFIG.toml ... [--hours 436000] [--gpus 8 64 512] [--batch-seconds 75] [--utilization 0.2]

The configurations are those of `speechssl pretrain`. **Everything is a model**: parameters, FLOPs and what the backward
pass keeps are counted on tensors without memory; the rest follows from the arguments, whose defaults are assumptions.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from model_table import NO_DATA, format_markdown, model_parts
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import Example
from speechssl.errors import ConfigError
from speechssl.objective.objective import weighted_sum
from speechssl.terminal import exit_on_error
from speechssl.train.pretrain import PretrainConfig, PretrainModel, read_target_source

GIB = 1 << 30
FLOAT32 = 4
KBIT_PER_SECOND = {"wav": 256, "flac": 150, "opus": 32}  # at 16 kHz; FLAC and Opus differ with the speech


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU at the peak of an update, without what CUDA and its allocator need for themselves."""

    state: float  # weights, gradients and the two moments of AdamW, all float32
    exchange: float  # copies of gradients on their way to other GPUs, or of weights from there
    kept: float  # for the backward pass


@dataclass(frozen=True)
class Training:
    """A whole run on some GPUs."""

    gpus: int
    audio_per_second: float  # seconds of audio a second, on all of them
    hours: float
    interruptions: float
    lost_hours: float  # of the clock: updates that are repeated, and starts
    cost: float


def memory(model: nn.Module, kept: float, gpus: int, *, is_sharded: bool, microbatches: int = 1) -> Memory:
    """Compute the memory of each GPU, with a replica or with shards of the model.

    Shards are made layer by layer: at its time a layer is put together from all GPUs, while the next one arrives; what
    is not in a layer stays together through the update. Of several microbatches on a GPU the gradients are added up
    there, of all parameters, and exchanged once.
    """
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.encoder.context.layers]
    num_parameters = sum(p.numel() for p in model.parameters())
    state = 4 * FLOAT32 * num_parameters
    if gpus == 1:
        return Memory(state, 0, kept)
    if not is_sharded:
        return Memory(state, FLOAT32 * num_parameters, kept)  # the buckets of DistributedDataParallel
    together = num_parameters - sum(sizes) + 2 * max(sizes)
    gradients = together if microbatches <= gpus else num_parameters
    return Memory(state / gpus, FLOAT32 * (together + gradients), kept)


def count_kept(load: Callable[..., PretrainConfig], rows: int, seconds: float) -> float:
    """Count the bytes that the forward pass keeps for the backward pass, in bfloat16 where training has it.

    They are counted for one and two layers of the transformer; each other one adds the same.
    """
    one, two = (_count_kept(load(f"encoder.context.num_layers={layers}"), rows, seconds) for layers in (1, 2))
    return one + (load().encoder.context.num_layers - 1) * (two - one)


def _count_kept(config: PretrainConfig, rows: int, seconds: float) -> int:
    geometry = config.encoder.feature_encoder.geometry
    silence = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    batch = config.objective.make_collate(geometry, config.seed)(
        [Example(row, 0, silence, None) for row in range(rows)]
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = PretrainModel(config.encoder, config.objective, read_target_source(config)).train()
        return kept_bytes(model, lambda: weighted_sum(model(batch, 0), batch.counts))


def kept_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Count what a forward pass in bfloat16 keeps beside the model's own weights."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # several tensors can share their memory
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        result = forward()
    own = {tensor.untyped_storage()._cdata for tensor in model.parameters()}
    assert result.requires_grad
    return sum(tensor.untyped_storage().nbytes() for number, tensor in kept.items() if number not in own)


def training(flops_per_second: float, options: argparse.Namespace, config: PretrainConfig, gpus: int) -> Training:
    """Compute speed, time, interruptions and cost of a run on some GPUs.

    Args:
        flops_per_second: Of an update, for a second of audio.
    """
    kept_speed = options.scaling ** max(0.0, math.log(gpus / 8, 8))
    speed = gpus * kept_speed * options.peak_tflops * 1e12 * options.utilization / flops_per_second
    audio = config.trainer.num_steps * config.trainer.microbatches * config.batches.seconds
    clean = audio / speed / 3600
    rate = gpus / options.hours_between_failures
    lost_each = options.checkpoint_minutes / 120 + options.restart_minutes / 60
    if rate * lost_each >= 1:
        raise ConfigError(f"{gpus} GPUs: expected to advance between failures, found {lost_each:g} hours lost by each")
    hours = clean / (1 - rate * lost_each)
    return Training(gpus, speed, hours, rate * hours, hours - clean, gpus * hours * options.gpu_hour_cost)


def format_data(options: argparse.Namespace) -> str:
    """Format bytes and shards of the corpus in each format."""
    rows = [("format", "kbit/s", "terabytes", f"shards of {options.shard_mib} MiB")]
    for name, rate in KBIT_PER_SECOND.items():
        size = options.hours * 3600 * rate * 1000 / 8
        rows.append((name, str(rate), f"{size / 1e12:.1f}", f"{math.ceil(size / (options.shard_mib << 20)):,}"))
    return format_markdown(rows)


def format_memory(load: Callable[..., PretrainConfig], options: argparse.Namespace) -> str:
    """Format the memory of a GPU, replicated and sharded."""
    config = load()
    seconds = min(config.batches.max_seconds, options.batch_seconds)
    rows = max(1, math.floor(options.batch_seconds / seconds))
    kept = count_kept(load, rows, seconds)
    with torch.device("meta"):
        model = PretrainModel(config.encoder, config.objective, read_target_source(config))
    table = [("GPUs", "model", "state, GiB", "exchange", f"kept of {rows} x {seconds:g} s", "sum")]
    for gpus in options.gpus:
        for name, is_sharded in (("replicated (ddp)", False), ("sharded (fsdp)", True)):
            found = memory(model, kept, gpus, is_sharded=is_sharded, microbatches=config.trainer.microbatches)
            parts = (found.state, found.exchange, found.kept)
            table.append((str(gpus), name, *(f"{part / GIB:.1f}" for part in (*parts, sum(parts)))))
    return format_markdown(table)


def format_training(load: Callable[..., PretrainConfig], options: argparse.Namespace) -> str:
    """Format time, readers, interruptions and cost for each number of GPUs."""
    config = load()
    seconds = config.batches.max_seconds
    flops = 3 * sum(part.flops for part in model_parts(config, seconds)) / seconds
    header = ("GPUs", "s of a GPU an update", "s of audio/s", "cores that read", "days", "interruptions", "lost")
    table = [(*header, "GPU hours", "cost")]
    update = config.trainer.microbatches * config.batches.seconds
    for gpus in options.gpus:
        run = training(flops, options, config, gpus)
        numbers = (f"{update / gpus:.1f}", f"{run.audio_per_second:,.0f}")
        cores = math.ceil(run.audio_per_second / options.core_speed)
        lost = f"{100 * run.lost_hours / run.hours:.2f} %"
        times = (f"{run.hours / 24:.1f}", f"{run.interruptions:.1f}", lost, f"{gpus * run.hours:,.0f}")
        table.append((str(gpus), *numbers, str(cores), *times, f"{run.cost:,.0f}"))
    return format_markdown(table)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG.toml")
    add = parser.add_argument
    add("--hours", type=float, default=436_000, help="of recordings (XLS-R's)")
    add("--shard-mib", type=int, default=512, help="of a tar file")
    add("--gpus", type=int, nargs="+", default=[8, 64, 512])
    add("--batch-seconds", type=float, default=75, help="of audio that a GPU computes at a time")
    add("--peak-tflops", type=float, default=989, help="of a GPU in bfloat16 (H100 and H200)")
    add("--utilization", type=float, default=0.2, help="share of the peak that matrix products reach on 8 GPUs")
    add("--scaling", type=float, default=0.9, help="share of the speed that each eightfold number of GPUs keeps")
    add("--core-speed", type=float, default=300, help="seconds of audio that a core reads in a second")
    add("--hours-between-failures", type=float, default=50_000, help="of one GPU with its share of the machine")
    add("--checkpoint-minutes", type=float, default=30, help="from one checkpoint to the next")
    add("--restart-minutes", type=float, default=5, help="from a failure to the first new update")
    add("--gpu-hour-cost", type=float, default=2.5, help="in any currency")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()

    def load(*overrides: str) -> PretrainConfig:
        return PretrainConfig.load(options.configs, [*NO_DATA, *overrides])

    with exit_on_error():
        print(format_data(options), format_memory(load, options), format_training(load, options), sep="\n\n")


if __name__ == "__main__":
    main()
