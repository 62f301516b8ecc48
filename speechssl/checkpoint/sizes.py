"""The sizes of an encoder, from the shapes of its weights: a file cannot make them larger than what it holds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.checkpoint.foreign import Names, shortened
from speechssl.errors import CheckpointError, ConfigError
from speechssl.model.encoder import EncoderConfig

_LAYER = re.compile(r"encoder\.(feature_encoder|context)\.layers\.([0-9]+)\.")
_POSITION_LAYER = re.compile(r"encoder\.context\.position\.layers\.[0-9]+\.weight")
_POSITIONS = tuple(  # with the norm of the weight, in its newer and older form, or without
    f"encoder.context.position.conv.{name}" for name in ("parametrizations.weight.original1", "weight_v", "weight")
)

_STRIDES = {(10, 3, 3, 3, 3, 2, 2): (5, 2, 2, 2, 2, 2, 2)}  # by the kernels of published models
_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16, 2048: 16}  # by the widths of published models


@dataclass(frozen=True)
class Unseen:
    """What the shapes of the weights do not show.

    Attributes:
        strides: Of the convolutions.
        num_heads: Of the attention.
        norm_first: Whether a layer normalizes its input rather than its output.
        normalize_waveforms: Whether the model was trained on normalized waveforms.
        feature_encoder: Other settings of the feature encoder.
        context: Other settings of the context network.
    """

    strides: tuple[int, ...]
    num_heads: int
    norm_first: bool
    normalize_waveforms: bool
    feature_encoder: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)


def our_names(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return the weights that have a name of ours by it; the others, `to_ours` refuses or drops."""
    return {ours: tensor for name, tensor in weights.items() if (ours := names.ours(name)) is not None}


def encoder_config(weights: Mapping[str, Tensor], unseen: Unseen, file: Path) -> EncoderConfig:
    """Return the configuration of an encoder with a transformer.

    Args:
        weights: By our names, as `our_names` gives them.
        unseen: What they do not show.
        file: Where they come from.

    Raises:
        CheckpointError: a weight is missing or of no possible shape.
    """
    convolutions = read_shapes(weights, "feature_encoder", file)
    if not convolutions or len(convolutions) != len(unseen.strides):
        found = f"found {len(convolutions)} of them and {len(unseen.strides)} strides"
        raise CheckpointError(f"{file}: expected convolutions with a stride each, {found}")
    last_norm = f"encoder.feature_encoder.layers.{len(convolutions) - 1}.norm.weight"
    model_dim = _shape(weights, "encoder.context.projection.weight", 2, file)[0]
    values = {
        "feature_encoder": {
            "dims": [shape[0] for shape in convolutions],
            "kernels": [shape[2] for shape in convolutions],
            "strides": list(unseen.strides),
            "norm": "layer" if last_norm in weights and len(convolutions) > 1 else "group",
            "bias": "encoder.feature_encoder.layers.0.conv.bias" in weights,
            **unseen.feature_encoder,
        },
        "context": {
            "num_layers": _count_layers(weights, "context"),
            "model_dim": model_dim,
            "num_heads": unseen.num_heads,
            "ffn_dim": _shape(weights, "encoder.context.layers.0.feed_forward.inner.weight", 2, file)[0],
            "norm_first": unseen.norm_first,
            **_family(weights, model_dim, file),
            **unseen.context,
        },
        "normalize_waveforms": unseen.normalize_waveforms,
    }
    return checked_encoder(values, file)


def checked_encoder(values: dict[str, Any], file: Path) -> EncoderConfig:
    """Return a configuration from the values of its sections.

    Raises:
        CheckpointError: there is no such encoder.
    """
    try:
        return EncoderConfig.from_dict(values, str(file))
    except ConfigError as error:
        raise CheckpointError(shortened(str(error), 500)) from None


def read_shapes(weights: Mapping[str, Tensor], part: str, file: Path) -> list[tuple[int, ...]]:
    """Return the shapes of the convolutions of the ``feature_encoder``, or of a causal ``context`` network.

    Raises:
        CheckpointError: one is missing.
    """
    count = _count_layers(weights, part)
    return [_shape(weights, f"encoder.{part}.layers.{number}.conv.weight", 3, file) for number in range(count)]


def _family(weights: Mapping[str, Tensor], model_dim: int, file: Path) -> dict[str, Any]:
    """What only some families have: the kind of the network, its positions and its adapters."""
    values: dict[str, Any] = {"kind": "transformer"}
    position = next((name for name in _POSITIONS if name in weights), _POSITIONS[0])
    if "encoder.context.position.layers.0.weight" in weights:
        position = "encoder.context.position.layers.0.weight"
        layers = {name for name in weights if _POSITION_LAYER.fullmatch(name)}
        values = {"kind": "data2vec", "position_layers": len(layers)}
    elif "encoder.context.distance_bias.weight" in weights:
        buckets = _shape(weights, "encoder.context.distance_bias.weight", 2, file)[0]
        values = {"kind": "wavlm", "num_buckets": buckets}
    if "encoder.context.layers.0.adapter.inner.weight" in weights:
        values["adapter_dim"] = _shape(weights, "encoder.context.layers.0.adapter.inner.weight", 2, file)[0]
    _, group_dim, kernel = _shape(weights, position, 3, file)
    return {**values, "position_kernel": kernel, "position_groups": max(model_dim // group_dim, 1)}


def published_strides(weights: Mapping[str, Tensor], file: Path) -> tuple[int, ...]:
    """Return the strides that published models have with these kernels.

    Raises:
        CheckpointError: there are none.
    """
    kernels = tuple(kernel for _, _, kernel in read_shapes(weights, "feature_encoder", file))
    if kernels not in _STRIDES:
        known = ", ".join(map(str, _STRIDES))
        raise CheckpointError(f"{file}: expected convolutions of kernels {known}, found {kernels}")
    return _STRIDES[kernels]


def published_heads(weights: Mapping[str, Tensor], file: Path) -> int:
    """Return the number of heads that published models of this width have.

    Raises:
        CheckpointError: there are none.
    """
    width = _shape(weights, "encoder.context.projection.weight", 2, file)[0]
    if width not in _HEADS:
        raise CheckpointError(f"{file}: expected a width of {', '.join(map(str, _HEADS))}, found {width}")
    return _HEADS[width]


def _count_layers(weights: Mapping[str, Tensor], part: str) -> int:
    """The number of layers of the ``feature_encoder`` or the ``context`` network."""
    return len({found[2] for name in weights if (found := _LAYER.match(name)) and found[1] == part})


def _shape(weights: Mapping[str, Tensor], name: str, num_dims: int, file: Path) -> tuple[int, ...]:
    shape = tuple(weights[name].shape) if name in weights else None
    if shape is None or len(shape) != num_dims or min(shape) < 1:
        raise CheckpointError(f"{file}: {name}: expected a weight of {num_dims} dimensions, found {shape or 'none'}")
    return shape
