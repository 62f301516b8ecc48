"""Models of the first wav2vec, from fairseq's files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from speechssl.checkpoint.fairseq_settings import checked, parse_layers, take_apart
from speechssl.checkpoint.foreign import Names
from speechssl.checkpoint.pickles import read_tensors
from speechssl.checkpoint.saved_model import SavedModel, foreign_model
from speechssl.checkpoint.sizes import checked_encoder, our_names, read_shapes
from speechssl.config import Config
from speechssl.errors import CheckpointError

_NAMES = Names(
    {
        "encoder.feature_encoder.layers.#.conv": "feature_extractor.conv_layers.#.0",
        "encoder.feature_encoder.layers.#.norm": "feature_extractor.conv_layers.#.2",
        "encoder.context.layers.#.conv": "feature_aggregator.conv_layers.#.1",
        "encoder.context.layers.#.norm": "feature_aggregator.conv_layers.#.3",
        "encoder.context.layers.#.residual": "feature_aggregator.residual_proj.#",
    },
    dropped=("wav2vec_predictions", "project_features"),
)


class _Settings(Config):
    """What fairseq's settings say of a model, by its names; the defaults are those of its programs."""

    conv_feature_layers: str | list[list[int]]
    conv_aggregator_layers: str | list[list[int]]
    aggregator: Literal["cnn"] = "cnn"
    activation: Literal["relu"] = "relu"
    vq_type: Literal["none"] = "none"
    agg_zero_pad: Literal[False] = False
    no_conv_bias: Literal[False] = False
    non_affine_group_norm: Literal[False] = False
    skip_connections_feat: Literal[False] = False
    skip_connections_agg: bool = True
    residual_scale: float = Field(0.5, ge=0.5, le=0.5)
    log_compression: bool = True
    dropout: float = 0.0


def read_wav2vec(contents: Any, file: Path) -> SavedModel | None:
    """Read a model from what a file holds; None if that is another one.

    Raises:
        CheckpointError: its settings or weights are damaged, do not fit each other or are not supported.
    """
    parts = take_apart(contents, file)
    if parts is None or not any(str(name).startswith("feature_aggregator.") for name in parts.weights):
        return None
    settings = checked(_Settings, parts.model, file)
    weights = read_tensors(parts.weights, _NAMES, file)
    renamed = our_names(weights, _NAMES)
    convolutions = _layers(renamed, "feature_encoder", settings.conv_feature_layers, file)
    causal = _layers(renamed, "context", settings.conv_aggregator_layers, file)
    if len({dim for dim, _, _ in causal}) != 1 or any(stride != 1 for _, _, stride in causal):
        raise CheckpointError(f"{file}: expected a context network of one width and stride 1, found {causal}")
    values = {
        "feature_encoder": {
            "dims": [dim for dim, _, _ in convolutions],
            "kernels": [kernel for _, kernel, _ in convolutions],
            "strides": [stride for _, _, stride in convolutions],
            "norm": "utterance",
            "activation": "relu",
            "log_compression": settings.log_compression,
            "frame_norm": False,
            "gradient_scale": 1.0,
        },
        "context": {
            "kind": "causal",
            "model_dim": causal[0][0],
            "kernels": [kernel for _, kernel, _ in causal],
            "residual": settings.skip_connections_agg,
            "dropout": settings.dropout,
        },
        "normalize_waveforms": parts.task.normalize,
    }
    encoder = checked_encoder(values, file)
    return foreign_model(file, "fairseq wav2vec", _NAMES, weights, encoder, step=parts.num_updates)


def _layers(
    weights: Mapping[str, Tensor], part: str, stated: str | list[list[int]], file: Path
) -> tuple[tuple[int, ...], ...]:
    """Channels, kernel and stride of each layer, as the settings state them, once the weights agree."""
    layers = parse_layers(stated, file)
    shapes = [(dim, kernel) for dim, _, kernel in read_shapes(weights, part, file)]
    if not layers or [(dim, kernel) for dim, kernel, _ in layers] != shapes:
        raise CheckpointError(f"{file}: expected the settings of these weights, found {layers} for {shapes}")
    return layers
