"""The weights of wav2vec 2.0 as we name them, and as transformers does (models/wav2vec2 of version 5)."""

from collections.abc import Mapping

from torch import Tensor

from speechssl.errors import CheckpointError

_OURS_AND_THEIRS = {
    "encoder.feature_encoder.layers.#.conv": "wav2vec2.feature_extractor.conv_layers.#.conv",
    "encoder.feature_encoder.layers.#.norm": "wav2vec2.feature_extractor.conv_layers.#.layer_norm",
    "encoder.frame_norm": "wav2vec2.feature_projection.layer_norm",
    "encoder.context.projection": "wav2vec2.feature_projection.projection",
    "encoder.context.mask_embedding": "wav2vec2.masked_spec_embed",
    "encoder.context.position": "wav2vec2.encoder.pos_conv_embed",
    "encoder.context.norm": "wav2vec2.encoder.layer_norm",
    "encoder.context.layers.#.attention.query": "wav2vec2.encoder.layers.#.attention.q_proj",
    "encoder.context.layers.#.attention.key": "wav2vec2.encoder.layers.#.attention.k_proj",
    "encoder.context.layers.#.attention.value": "wav2vec2.encoder.layers.#.attention.v_proj",
    "encoder.context.layers.#.attention.output": "wav2vec2.encoder.layers.#.attention.out_proj",
    "encoder.context.layers.#.attention_norm": "wav2vec2.encoder.layers.#.layer_norm",
    "encoder.context.layers.#.feed_forward.inner": "wav2vec2.encoder.layers.#.feed_forward.intermediate_dense",
    "encoder.context.layers.#.feed_forward.output": "wav2vec2.encoder.layers.#.feed_forward.output_dense",
    "encoder.context.layers.#.feed_forward_norm": "wav2vec2.encoder.layers.#.final_layer_norm",
    "head": "lm_head",
    "objective.quantizer.codebooks": "quantizer.codevectors",
    "objective.quantizer.projection": "quantizer.weight_proj",
    "objective.target_projection": "project_q",
    "objective.context_projection": "project_hid",
}
_THEIRS_AND_OURS = {theirs: ours for ours, theirs in _OURS_AND_THEIRS.items()}


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a CTC model or of an encoder and its contrast by the names of transformers' models.

    Shapes stay: of codebooks, ours are (G, V, E / G) and theirs (1, G V, E / G).

    Raises:
        CheckpointError: a weight has no name there.
    """
    return {_renamed(name, _OURS_AND_THEIRS): tensor for name, tensor in weights.items()}


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of Wav2Vec2ForCTC or Wav2Vec2ForPreTraining by our names; the inverse of `to_transformers`."""
    return {_renamed(name, _THEIRS_AND_OURS): tensor for name, tensor in weights.items()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    parts = name.split(".")
    for stop in range(len(parts), 0, -1):
        module = ".".join("#" if part.isdecimal() else part for part in parts[:stop])
        if module in names:
            renamed = names[module]
            for number in filter(str.isdecimal, parts[:stop]):
                renamed = renamed.replace("#", number, 1)
            return ".".join([renamed, *parts[stop:]])
    raise CheckpointError(f"expected a weight of wav2vec 2.0, found {name}")
