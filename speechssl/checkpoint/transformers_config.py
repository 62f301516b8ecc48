"""The sizes of an encoder as the settings of transformers' configurations; what these cannot say is refused."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import CheckpointError
from speechssl.model.data2vec import Data2VecConfig
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerSizes
from speechssl.model.wavlm import WavLMConfig

_FAMILIES = {"transformer": "wav2vec2", "wavlm": "wavlm", "data2vec": "data2vec-audio"}
_EPSILON = 1e-5  # of all norms there


def transformers_family(encoder: EncoderConfig) -> str:
    """Return the ``model_type`` that computes what an encoder does.

    Raises:
        CheckpointError: there is none.
    """
    kind = encoder.context.kind
    if kind not in _FAMILIES:
        raise CheckpointError(f"expected {', '.join(_FAMILIES)} as context network, found {kind}")
    return _FAMILIES[kind]


def to_transformers_config(encoder: EncoderConfig) -> dict[str, Any]:
    """Return the settings of an encoder under transformers' names, for their class and for ``config.json``.

    Raises:
        CheckpointError: their model computes something else.
    """
    family = transformers_family(encoder)
    convolutions, context = encoder.feature_encoder, encoder.context
    assert isinstance(context, TransformerSizes)
    _check(convolutions)
    settings = {
        "conv_dim": convolutions.dims,
        "conv_kernel": convolutions.kernels,
        "conv_stride": convolutions.strides,
        "conv_bias": convolutions.bias,
        "feat_extract_activation": "gelu",
        "num_hidden_layers": context.num_layers,
        "hidden_size": context.model_dim,
        "num_attention_heads": context.num_heads,
        "intermediate_size": context.ffn_dim,
        "num_conv_pos_embeddings": context.position_kernel,
        "num_conv_pos_embedding_groups": context.position_groups,
        "feat_proj_dropout": context.input_dropout,
        "hidden_dropout": context.dropout,
        "attention_dropout": context.attention_dropout,
        "activation_dropout": context.activation_dropout,
        "final_dropout": 0.0,
        "layerdrop": context.layer_drop,
    }
    if isinstance(context, Data2VecConfig):
        if convolutions.norm != "layer" or context.norm_first:
            raise CheckpointError("data2vec: expected norm = layer and norm_first = false, found others")
        position = {"num_conv_pos_embeddings": context.position_layers, "conv_pos_kernel_size": context.position_kernel}
        return settings | position
    settings |= {"feat_extract_norm": convolutions.norm, "do_stable_layer_norm": context.norm_first}
    if isinstance(context, WavLMConfig):
        settings |= {"num_buckets": context.num_buckets, "max_bucket_distance": context.max_distance}
    if context.adapter_dim is not None:
        if family != "wav2vec2":
            raise CheckpointError(f"adapter_dim: expected none with {family}, found {context.adapter_dim}")
        settings["adapter_attn_dim"] = context.adapter_dim
    return settings


def with_their_epsilon(weights: Mapping[str, Tensor], config: FeatureEncoderConfig) -> dict[str, Tensor]:
    """Return weights, by our names, that give the same with the epsilon of others' norms.

    What a norm makes of s x with an epsilon of e is what it makes of x with e / s^2, so that a convolution before a
    norm takes up the difference.
    """
    scale = (_EPSILON / config.norm_epsilon) ** 0.5
    first = "encoder.feature_encoder.layers."
    scaled = {
        f"{first}{layer}.conv.{part}"
        for layer in range(len(config.dims) if config.norm == "layer" else 1)
        for part in ("weight", "bias")
    }
    return {name: tensor * torch.tensor(scale) if name in scaled else tensor for name, tensor in weights.items()}


def _check(convolutions: FeatureEncoderConfig) -> None:
    for name, expected, is_wrong in (
        ("norm", "group or layer", convolutions.norm == "utterance"),
        # Theirs have this activation after the positional convolution too, where ours is always GELU.
        ("activation", "gelu", convolutions.activation != "gelu"),
        ("log_compression", "false", convolutions.log_compression),
        ("frame_norm", "true", not convolutions.frame_norm),
    ):
        if is_wrong:
            found = str(getattr(convolutions, name)).lower()
            raise CheckpointError(f"encoder.feature_encoder.{name}: expected {expected}, found {found}")
