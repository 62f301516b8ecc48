"""The weights of every family as we name them, and as transformers does (version 5)."""

from collections.abc import Mapping

from torch import Tensor

from speechssl.checkpoint.foreign import Names
from speechssl.errors import CheckpointError

_LAYER = {
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.output": "attention.out_proj",
    "attention_norm": "layer_norm",
    "feed_forward.inner": "feed_forward.intermediate_dense",
    "feed_forward.output": "feed_forward.output_dense",
    "feed_forward_norm": "final_layer_norm",
    "adapter.norm": "adapter_layer.norm",
    "adapter.inner": "adapter_layer.linear_1",
    "adapter.output": "adapter_layer.linear_2",
    "attention.gate": "attention.gru_rel_pos_linear",
    "attention.gate_scale": "attention.gru_rel_pos_const",
}
_BODY = {
    "feature_encoder.layers.#.conv": "feature_extractor.conv_layers.#.conv",
    "feature_encoder.layers.#.norm": "feature_extractor.conv_layers.#.layer_norm",
    "frame_norm": "feature_projection.layer_norm",
    "context.projection": "feature_projection.projection",
    "context.mask_embedding": "masked_spec_embed",
    "context.position": "encoder.pos_conv_embed",
    "context.norm": "encoder.layer_norm",
    "context.distance_bias": "encoder.layers.0.attention.rel_attn_embed",
    **{f"context.layers.#.{ours}": f"encoder.layers.#.{theirs}" for ours, theirs in _LAYER.items()},
}
_OMNI_BODY = {
    "feature_encoder.layers.#.conv": "subsampling.conv_layers.#.conv",
    "feature_encoder.layers.#.norm": "subsampling.conv_layers.#.layer_norm",
    "frame_norm": "subsampling.layer_norm",
    "context.projection": "subsampling.projection",
    "context.position": "encode_positions",
    "context.norm": "layer_norm",
    **{f"context.layers.#.{ours}": f"layers.#.{theirs}" for ours, theirs in _LAYER.items()},
}
_CONTRAST = {
    "objective.quantizer.codebooks": "quantizer.codevectors",
    "objective.quantizer.projection": "quantizer.weight_proj",
    "objective.target_projection": "project_q",
    "objective.context_projection": "project_hid",
}
# Heads of pretraining, of classification of recordings and of frames, and of speaker verification.
_HEADS = (
    *("quantizer", "project_q", "project_hid", "ctc_proj", "label_embeddings_concat", "speaker_proj"),
    *("layer_norm_for_extract", "projector", "classifier", "layer_weights", "tdnn", "objective"),
    *("feature_extractor.weight", "feature_extractor.bias"),
)


def _names(prefix: str, body: Mapping[str, str], head: str) -> Names:
    modules = {f"encoder.{ours}": f"{prefix}.{theirs}" for ours, theirs in body.items()}
    return Names(modules | {"head": head}, _HEADS)


_DATA2VEC_BODY = {name: theirs for name, theirs in _BODY.items() if name != "context.position"} | {
    "context.position.layers.#": "encoder.pos_conv_embed.layers.#.conv"
}

PREFIXES = {
    "wav2vec2": "wav2vec2",
    "hubert": "hubert",
    "wavlm": "wavlm",
    "data2vec-audio": "data2vec_audio",
    "unispeech": "unispeech",
    "unispeech-sat": "unispeech_sat",
    "omniasr_ctc": "model.audio_tower",
}
"""By ``model_type``, what precedes the names of the body in a model with heads."""

_BODIES = {"data2vec-audio": _DATA2VEC_BODY, "omniasr_ctc": _OMNI_BODY}
FAMILIES = {
    family: _names(prefix, _BODIES.get(family, _BODY), "ctc_head" if family == "omniasr_ctc" else "lm_head")
    for family, prefix in PREFIXES.items()
}
"""By ``model_type``, the names in a model with heads."""


def to_transformers(weights: Mapping[str, Tensor], family: str = "wav2vec2") -> dict[str, Tensor]:
    """Return weights of a CTC model, or of an encoder and its contrast, by the names of transformers' models.

    Shapes stay: of codebooks, ours are (G, V, E / G) and theirs (1, G V, E / G).

    Raises:
        CheckpointError: a weight has no name there.
    """
    names = Names({**FAMILIES[family].modules, **_CONTRAST})
    return {_known(name, names.theirs(name), family): tensor for name, tensor in weights.items()}


def from_transformers(weights: Mapping[str, Tensor], family: str = "wav2vec2") -> dict[str, Tensor]:
    """Return weights by our names; the inverse of `to_transformers`."""
    names = Names({**FAMILIES[family].modules, **_CONTRAST})
    return {_known(name, names.ours(name), family): tensor for name, tensor in weights.items()}


def _known(name: str, renamed: str | None, family: str) -> str:
    if renamed is None:
        raise CheckpointError(f"expected a weight of {family}, found {name}")
    return renamed
