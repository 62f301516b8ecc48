"""Print what a pretraining model consists of: output shape, parameters and FLOPs of every part, and their totals.

    python tools/model_table.py [CONFIG.toml ...] [--seconds 15]

The configurations are those of `speechssl pretrain`, the later winning over the earlier; without any it is wav2vec 2.0
base. The model runs once, forward and in evaluation mode, on PyTorch's fake tensors, which have shapes but no memory:
the large model takes no longer than a small one. Matrix products and convolutions are counted, at two FLOPs for a
multiplication with its addition; norms and activations are not. Training takes three times as much. "Products" are
those that a module makes itself, outside its parts: scores and sums of attention, the choice of entries of a codebook.
"""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.batches import Example
from speechssl.errors import ConfigError
from speechssl.model.feature_encoder import ConvLayer
from speechssl.model.position import PositionalConvolution
from speechssl.terminal import exit_on_error
from speechssl.train.pretrain import PretrainConfig, PretrainModel, read_target_source

WHOLE = (ConvLayer, PositionalConvolution)  # shown as one part
NO_DATA = ("data.train=none", "data.dev=none", "data.license=none")  # a configuration must say, but it does not matter
NUM_SYMBOLS = 32  # of the CTC head: the letters of English and fairseq's special symbols


@dataclass(frozen=True)
class Part:
    """A part of a model; what every layer of the transformer has is one part.

    Attributes:
        name: Where it is in the model; "products" are what a module multiplies itself, outside its own parts.
        shape: Of its output for one recording; empty where that is not one tensor.
        num_parameters: In all layers.
        flops: In all layers.
    """

    name: str
    shape: tuple[int, ...]
    num_parameters: int
    flops: int


def model_parts(config: PretrainConfig, seconds: float) -> list[Part]:
    """List the parts of encoder and objective, on one recording of this length.

    Raises:
        ConfigError: the recording has too few frames to predict one.
    """
    geometry = config.encoder.feature_encoder.geometry
    shortest = geometry.num_samples(config.objective.min_frames(geometry))
    if not shortest <= seconds * SAMPLE_RATE < math.inf:
        raise ConfigError(f"--seconds: expected at least {shortest / SAMPLE_RATE}, found {seconds:g}")
    num_samples = round(seconds * SAMPLE_RATE)
    batch = config.objective.make_collate(geometry, config.seed)(
        [Example(0, 0, np.zeros(num_samples, np.float32), None)]
    )
    source = read_target_source(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return merge_layers(run(PretrainModel(config.encoder, config.objective, source), batch, 0))


def ctc_head(config: PretrainConfig, num_frames: int) -> Part:
    """Describe the head that fine-tuning puts on the encoder in the place of the objective."""
    dim = config.encoder.context.model_dim
    with FakeTensorMode():
        (part,) = run(nn.Linear(dim, NUM_SYMBOLS), torch.empty(1, num_frames, dim))
    return replace(part, name=f"head for CTC with {NUM_SYMBOLS} symbols")


def run(model: nn.Module, *inputs: object) -> list[Part]:
    """Run a model once, in evaluation mode, and return its parts."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    for module in model.modules():
        module.register_forward_hook(lambda module, _, output: shapes.update({module: shape_of(output)}))
    # Attention as two matrix products, since not every fused one is counted; with gradients, as in training, since
    # inference on a CPU computes positions otherwise.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(*inputs)
    counted = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}

    def flops_of(name: str) -> int:
        return counted.get(f"{type(model).__name__}.{name}".rstrip("."), 0)

    def parts(module: nn.Module, name: str) -> list[Part]:
        children = [] if isinstance(module, WHOLE) else list(module.named_children())
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        flops = flops_of(name)
        if name == "objective":  # which calls the encoder's parts: they were counted for both
            flops -= sum(part.flops for part in parts(model.encoder, "encoder"))
        if not children:
            return [Part(name, shapes.get(module, ()), num_parameters, flops)]
        found = [
            Part(f"{name}.{own}".lstrip("."), tuple(parameter.shape), parameter.numel(), 0)
            for own, parameter in module.named_parameters(recurse=False)
        ]
        for child_name, child in children:
            found += parts(child, f"{name}.{child_name}".lstrip("."))
        if module in shapes:  # a list of modules, or one of which other methods are called, has no products of its own
            found.append(Part(f"{name}: products", shapes[module], 0, flops - sum(part.flops for part in found)))
        return found

    return [part for part in parts(model, "") if part.num_parameters or part.flops]


def shape_of(output: object) -> tuple[int, ...]:
    """Return the shape of a tensor, or of the first in a dataclass."""
    if is_dataclass(output):
        output = next(
            (value for field in fields(output) if isinstance(value := getattr(output, field.name), Tensor)), None
        )
    return tuple(output.shape) if isinstance(output, Tensor) else ()


def merge_layers(parts: Sequence[Part]) -> list[Part]:
    """Join the parts that every layer of the transformer has."""
    merged: dict[str, list[Part]] = {}
    for part in parts:
        merged.setdefault(re.sub(r"(?<=(?:context|network)\.layers\.)\d+", "*", part.name), []).append(part)
    return [
        replace(
            same[0],
            name=name,
            num_parameters=sum(part.num_parameters for part in same),
            flops=sum(part.flops for part in same),
        )
        for name, same in merged.items()
    ]


def total(parts: Sequence[Part], name: str) -> Part:
    """Add up parts."""
    return Part(name, (), sum(part.num_parameters for part in parts), sum(part.flops for part in parts))


def format_table(config: PretrainConfig, seconds: float) -> str:
    """Format the whole table as Markdown."""
    parts = model_parts(config, seconds)
    encoder = total([part for part in parts if part.name.startswith("encoder.")], "**encoder**")
    whole = total(parts, "**encoder and objective**")
    num_frames = config.encoder.feature_encoder.geometry.num_frames(round(seconds * SAMPLE_RATE))
    first_of_objective = sum(part.name.startswith("encoder.") for part in parts)
    rows = [
        (
            part.name,
            " x ".join(map(str, part.shape)),
            f"{part.num_parameters:,}",
            f"{part.flops / seconds / 1e9:.3f}",
            f"{100 * part.flops / whole.flops:.1f} %",
        )
        for part in (
            *parts[:first_of_objective],
            encoder,
            *parts[first_of_objective:],
            whole,
            ctc_head(config, num_frames),
        )
    ]
    header = ("part", f"output for {seconds:g} s", "parameters", "GFLOP per s of audio", "share")
    return format_markdown([header, *rows])


def format_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Align columns; the first row is the header, and all but the first two columns are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells[:2], widths, strict=False)]
        padded += [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width for width in widths[:2]] + ["-" * (width - 1) + ":" for width in widths[2:]]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def main() -> None:
    parser = argparse.ArgumentParser(description="Print output shape, parameters and FLOPs of every part of a model.")
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG.toml", help="as for speechssl pretrain")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of the recording (default: 15)")
    arguments = parser.parse_args()
    with exit_on_error():
        print(format_table(PretrainConfig.load(arguments.configs, NO_DATA), arguments.seconds))


if __name__ == "__main__":
    main()
