"""Encoders of SpidR and DinoSR, from files of SpidR's code: the student, which is a data2vec encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechssl.checkpoint.names import rename, unpack
from speechssl.checkpoint.pickles import read_tensors
from speechssl.checkpoint.saved_model import ModelDescription, SavedModel
from speechssl.checkpoint.sizes import Unseen, complete, encoder_config, published_heads, published_strides

_NAMES = {
    "feature_extractor.conv_layers.#.conv.*": "encoder.feature_encoder.layers.#.conv.*",
    "feature_extractor.conv_layers.#.layer_norm.*": "encoder.feature_encoder.layers.#.norm.*",
    "feature_projection.layer_norm.*": "encoder.frame_norm.*",
    "feature_projection.projection.*": "encoder.context.projection.*",
    "mask_embedding": "encoder.context.mask_embedding",
    "student.pos_conv_embed.convs.#.*": "encoder.context.position.layers.#.*",
    "student.layer_norm.*": "encoder.context.norm.*",
    "student.layers.#.attention.query.*": "encoder.context.layers.#.attention.query.*",
    "student.layers.#.attention.key.*": "encoder.context.layers.#.attention.key.*",
    "student.layers.#.attention.value.*": "encoder.context.layers.#.attention.value.*",
    "student.layers.#.attention.proj.*": "encoder.context.layers.#.attention.output.*",
    "student.layers.#.layer_norm.*": "encoder.context.layers.#.attention_norm.*",
    "student.layers.#.feed_forward.intermediate_dense.*": "encoder.context.layers.#.feed_forward.inner.*",
    "student.layers.#.feed_forward.output_dense.*": "encoder.context.layers.#.feed_forward.output.*",
    "student.layers.#.final_layer_norm.*": "encoder.context.layers.#.feed_forward_norm.*",
}
_DROPPED = ("teacher.", "heads.", "codebooks.", "current_step")
_PACKED = r"(student\.layers\.[0-9]+\.attention\.)qkv\.(weight|bias)"


def read_spidr(contents: Any, file: Path) -> SavedModel | None:
    """Read an encoder from what a file holds; None if that is another toolkit's.

    Raises:
        CheckpointError: its weights are damaged or those of a model that is not supported.
    """
    weights = contents.get("model", contents) if isinstance(contents, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    weights = {str(name).removeprefix("module."): tensor for name, tensor in weights.items()}
    if "student.layer_norm.weight" not in weights:
        return None
    weights = rename(unpack(read_tensors(weights, _DROPPED, file), _PACKED, ("query.", "key.", "value.")), _NAMES, file)
    for name in [name for name in weights if name.endswith((".query.weight", ".key.weight", ".value.weight"))]:
        weights.setdefault(f"{name.removesuffix('weight')}bias", torch.zeros(len(weights[name])))  # SpidR has none
    unseen = Unseen(published_strides(weights, file), published_heads(weights, file), False, True)
    encoder = encoder_config(weights, unseen, file)
    weights = complete(weights, encoder.context.model_dim)
    return SavedModel(ModelDescription(kind="pretrained", step=0, encoder=encoder), None, file, lambda: weights)
