"""Encoders of SpidR and DinoSR, from files of SpidR's code: the student, which is a data2vec encoder."""

from pathlib import Path
from typing import Any

import torch

from speechssl.checkpoint.foreign import Names, unpack
from speechssl.checkpoint.pickles import bare_weights, read_tensors
from speechssl.checkpoint.saved_model import NO_LICENSE, NO_SETTINGS, SavedModel, foreign_model
from speechssl.checkpoint.sizes import Unseen, encoder_config, our_names, published_heads, published_strides

_LAYER = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.output": "attention.proj",
    "attention_norm": "layer_norm",
    "feed_forward.inner": "feed_forward.intermediate_dense",
    "feed_forward.output": "feed_forward.output_dense",
    "feed_forward_norm": "final_layer_norm",
}
_NAMES = Names(
    {
        "encoder.feature_encoder.layers.#.conv": "feature_extractor.conv_layers.#.conv",
        "encoder.feature_encoder.layers.#.norm": "feature_extractor.conv_layers.#.layer_norm",
        "encoder.frame_norm": "feature_projection.layer_norm",
        "encoder.context.projection": "feature_projection.projection",
        "encoder.context.mask_embedding": "mask_embedding",
        "encoder.context.position.layers.#": "student.pos_conv_embed.convs.#",
        "encoder.context.norm": "student.layer_norm",
        **{f"encoder.context.layers.#.{ours}": f"student.layers.#.{theirs}" for ours, theirs in _LAYER.items()},
    },
    dropped=("teacher", "heads", "codebooks", "current_step"),
)
_PACKED = r"(student\.layers\.[0-9]+\.attention\.)qkv\.(weight|bias)"


def read_spidr(contents: Any, file: Path) -> SavedModel | None:
    """Read an encoder from what a file holds; None if that is another toolkit's.

    Raises:
        CheckpointError: its weights are damaged or those of a model that is not supported.
    """
    weights = bare_weights(contents)
    if "student.layer_norm.weight" not in weights:
        return None
    weights = unpack(read_tensors(weights, _NAMES, file), _PACKED, ("query.", "key.", "value."))
    for name in [name for name in weights if name.endswith((".query.weight", ".key.weight", ".value.weight"))]:
        weights.setdefault(f"{name.removesuffix('weight')}bias", torch.zeros(len(weights[name])))  # SpidR has none
    renamed = our_names(weights, _NAMES)
    unseen = Unseen(published_strides(renamed, file), published_heads(renamed, file), False, True)
    encoder = encoder_config(renamed, unseen, file)
    return foreign_model(file, "SpidR", _NAMES, weights, encoder, remarks=(NO_LICENSE, NO_SETTINGS))
