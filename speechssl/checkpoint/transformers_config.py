"""The sizes of wav2vec 2.0 as the settings of transformers' Wav2Vec2Config; what it cannot say is refused."""

from typing import Any

from speechssl.errors import CheckpointError
from speechssl.model.encoder import EncoderConfig
from speechssl.model.transformer import TransformerConfig


def to_transformers_config(encoder: EncoderConfig) -> dict[str, Any]:
    """Return the settings of an encoder under transformers' names, for their class and for ``config.json``.

    Raises:
        CheckpointError: their wav2vec 2.0 computes something else.
    """
    convolutions, context = encoder.feature_encoder, encoder.context
    if not isinstance(context, TransformerConfig):
        raise CheckpointError(f"expected wav2vec 2.0's transformer as context network, found {context.kind}")
    for name, expected, found in (
        ("norm", "group or layer", convolutions.norm if convolutions.norm == "utterance" else None),
        # Theirs have this activation after the positional convolution too, where ours is always GELU.
        ("activation", "gelu", convolutions.activation if convolutions.activation != "gelu" else None),
        ("log_compression", "none", "one" if convolutions.log_compression else None),
        ("frame_norm", "one", "none" if not convolutions.frame_norm else None),
    ):
        if found is not None:
            raise CheckpointError(f"encoder.feature_encoder.{name}: expected {expected}, found {found}")
    return {
        "conv_dim": convolutions.dims,
        "conv_kernel": convolutions.kernels,
        "conv_stride": convolutions.strides,
        "conv_bias": convolutions.bias,
        "feat_extract_norm": convolutions.norm,
        "feat_extract_activation": "gelu",
        "num_hidden_layers": context.num_layers,
        "hidden_size": context.model_dim,
        "num_attention_heads": context.num_heads,
        "intermediate_size": context.ffn_dim,
        "do_stable_layer_norm": context.norm_first,
        "num_conv_pos_embeddings": context.position_kernel,
        "num_conv_pos_embedding_groups": context.position_groups,
        "feat_proj_dropout": context.input_dropout,
        "hidden_dropout": context.dropout,
        "attention_dropout": context.attention_dropout,
        "activation_dropout": context.activation_dropout,
        "final_dropout": 0.0,
        "layerdrop": context.layer_drop,
    }
