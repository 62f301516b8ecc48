"""A model for torchaudio: the arguments of ``torchaudio.models.wav2vec2_model`` and the weights that it loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from speechssl.checkpoint.native import write_weights
from speechssl.checkpoint.saved_model import SavedModel
from speechssl.checkpoint.transformers_config import to_transformers_config
from speechssl.checkpoint.transformers_names import to_transformers
from speechssl.errors import CheckpointError
from speechssl.export.huggingface import exported_weights
from speechssl.model.encoder import EncoderConfig

_PLACES = {  # of transformers' names and of torchaudio's
    "wav2vec2.encoder.": "encoder.transformer.",
    "wav2vec2.feature_projection.": "encoder.feature_projection.",
    "wav2vec2.": "",
    "lm_head.": "aux.",
}


def write_torchaudio(folder: Path, saved: SavedModel) -> None:
    """Write ``config.json``, ``model.safetensors`` and, with a head, ``vocab.json`` into an existing folder.

    Raises:
        CheckpointError: torchaudio has no such model, or the weights are damaged.
    """
    num_symbols = None if saved.vocabulary is None else len(saved.vocabulary)
    arguments = torchaudio_arguments(saved.description.encoder, num_symbols)
    if saved.vocabulary is not None:
        saved.vocabulary.save(folder / "vocab.json")
    write_weights(folder, to_torchaudio(exported_weights(saved)))
    (folder / "config.json").write_text(json.dumps(arguments, indent=2) + "\n", "utf-8")


def torchaudio_arguments(encoder: EncoderConfig, num_symbols: int | None) -> dict[str, Any]:
    """Return what makes a model of the same sizes there; it normalizes no waveforms.

    Raises:
        CheckpointError: theirs computes something else.
    """
    sizes = to_transformers_config(encoder)  # of wav2vec 2.0 the two can do the same
    if encoder.context.kind != "transformer" or encoder.context.adapter_dim is not None:
        kind = "one with adapters" if encoder.context.kind == "transformer" else encoder.context.kind
        raise CheckpointError(f"expected wav2vec 2.0's transformer as context network, found {kind}")
    shapes = zip(sizes["conv_dim"], sizes["conv_kernel"], sizes["conv_stride"], strict=True)
    return {
        "extractor_mode": f"{sizes['feat_extract_norm']}_norm",
        "extractor_conv_layer_config": [list(shape) for shape in shapes],
        "extractor_conv_bias": sizes["conv_bias"],
        "encoder_embed_dim": sizes["hidden_size"],
        "encoder_projection_dropout": sizes["feat_proj_dropout"],
        "encoder_pos_conv_kernel": sizes["num_conv_pos_embeddings"],
        "encoder_pos_conv_groups": sizes["num_conv_pos_embedding_groups"],
        "encoder_num_layers": sizes["num_hidden_layers"],
        "encoder_num_heads": sizes["num_attention_heads"],
        "encoder_attention_dropout": sizes["attention_dropout"],
        "encoder_ff_interm_features": sizes["intermediate_size"],
        "encoder_ff_interm_dropout": sizes["activation_dropout"],
        "encoder_dropout": sizes["hidden_dropout"],
        "encoder_layer_norm_first": sizes["do_stable_layer_norm"],
        "encoder_layer_drop": sizes["layerdrop"],
        "aux_num_out": num_symbols,
    }


def to_torchaudio(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a CTC model, or of an encoder, under torchaudio's names; it has no mask embedding."""
    renamed = {}
    for name, tensor in to_transformers(weights).items():
        place = next(place for place in _PLACES if name.startswith(place))
        renamed[_PLACES[place] + name.removeprefix(place)] = tensor
    del renamed["masked_spec_embed"]
    return renamed
