"""Models of torchaudio's bundles: state dictionaries without any settings.

What the shapes do not show is the same for all bundles of a design: convolutions with a layer norm each go with layers
that normalize their input and with normalized waveforms.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from speechssl.checkpoint import dictionary
from speechssl.checkpoint.names import rename, unpack
from speechssl.checkpoint.pickles import read_tensors
from speechssl.checkpoint.saved_model import ModelDescription, SavedModel
from speechssl.checkpoint.sizes import Unseen, complete, encoder_config, published_heads, published_strides
from speechssl.data.units import BLANK, Letters
from speechssl.errors import CheckpointError

_LAYER = "encoder.transformer.layers.#"
_NAMES = {
    "feature_extractor.conv_layers.#.conv.*": "encoder.feature_encoder.layers.#.conv.*",
    "feature_extractor.conv_layers.#.layer_norm.*": "encoder.feature_encoder.layers.#.norm.*",
    "encoder.feature_projection.layer_norm.*": "encoder.frame_norm.*",
    "encoder.feature_projection.projection.*": "encoder.context.projection.*",
    "encoder.transformer.pos_conv_embed.conv.bias": "encoder.context.position.conv.bias",
    "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.*": (
        "encoder.context.position.conv.parametrizations.weight.*"
    ),
    "encoder.transformer.pos_conv_embed.conv.weight_g": (
        "encoder.context.position.conv.parametrizations.weight.original0"
    ),
    "encoder.transformer.pos_conv_embed.conv.weight_v": (
        "encoder.context.position.conv.parametrizations.weight.original1"
    ),
    "encoder.transformer.layer_norm.*": "encoder.context.norm.*",
    f"{_LAYER}.attention.q_proj.*": "encoder.context.layers.#.attention.query.*",
    f"{_LAYER}.attention.k_proj.*": "encoder.context.layers.#.attention.key.*",
    f"{_LAYER}.attention.v_proj.*": "encoder.context.layers.#.attention.value.*",
    f"{_LAYER}.attention.out_proj.*": "encoder.context.layers.#.attention.output.*",
    f"{_LAYER}.attention.attention.out_proj.*": "encoder.context.layers.#.attention.output.*",  # WavLM's, from here
    f"{_LAYER}.attention.gru_rel_pos_linear.*": "encoder.context.layers.#.attention.gate.*",
    f"{_LAYER}.attention.gru_rel_pos_const": "encoder.context.layers.#.attention.gate_scale",
    "encoder.transformer.layers.0.attention.rel_attn_embed.weight": "encoder.context.distance_bias.weight",
    f"{_LAYER}.layer_norm.*": "encoder.context.layers.#.attention_norm.*",
    f"{_LAYER}.feed_forward.intermediate_dense.*": "encoder.context.layers.#.feed_forward.inner.*",
    f"{_LAYER}.feed_forward.output_dense.*": "encoder.context.layers.#.feed_forward.output.*",
    f"{_LAYER}.final_layer_norm.*": "encoder.context.layers.#.feed_forward_norm.*",
    "aux.*": "head.*",
}
_PACKED = r"(encoder\.transformer\.layers\.[0-9]+\.attention\.)attention\.in_proj_(weight|bias)"
_VOXPOPULI = {  # letters by language, and outputs that the bundle leaves out
    "de": ("|enirstadhulgcmobwfkzpvüäöjßyxq", (1, 2, 3, 35)),
    "en": ("|etoiansrhldcumpfgwybvkxjqz", (1, 2, 3, 31)),
    "es": ("|eaosnrildctupmbqygvhófíájzñéxúkwü", (1, 2, 3, 35)),
    "fr": ("|esnitraouldcpmévqfgbhxàjèyêzôkçœûùîâwïëüæ", (1, 2, 3)),
    "it": ("|eiaontrlscdupmgvhzfbqàèùéòìkyxwjóíï", (1, 2, 3)),
}
_LIBRISPEECH = (dictionary.ENGLISH, (1, 2, 3))


def read_torchaudio(contents: Any, file: Path) -> SavedModel | None:
    """Read a model from what a file holds; None if that is another toolkit's.

    Raises:
        CheckpointError: its weights are damaged or those of a model that is not supported, or nothing says what the
            outputs stand for.
    """
    if not isinstance(contents, Mapping) or "encoder.feature_projection.projection.weight" not in contents:
        return None
    weights = unpack(read_tensors(contents, (), file), _PACKED, ("q_proj.", "k_proj.", "v_proj."))
    weights = rename(weights, _NAMES, file)
    vocabulary = None
    if "head.weight" in weights:
        vocabulary, kept = _vocabulary(len(weights["head.weight"]), file)
        for name in ("head.weight", "head.bias"):
            weights[name] = weights[name][torch.tensor(kept)]
    is_large = "encoder.feature_encoder.layers.1.norm.weight" in weights
    unseen = Unseen(published_strides(weights, file), published_heads(weights, file), is_large, is_large)
    encoder = encoder_config(weights, unseen, file)
    kind: Literal["ctc", "pretrained"] = "pretrained" if vocabulary is None else "ctc"
    weights = complete(weights, encoder.context.model_dim)
    return SavedModel(ModelDescription(kind=kind, step=0, encoder=encoder), vocabulary, file, lambda: weights)


def _vocabulary(num_outputs: int, file: Path) -> tuple[Letters, list[int]]:
    """The units and the outputs that stand for them: of a dictionary beside the file, or by its name and size."""
    beside = file.with_name("dict.ltr.txt")
    if (symbols := dictionary.read_dictionary(beside)) is not None:
        if len(symbols) != num_outputs:
            raise CheckpointError(f"{beside}: expected a dictionary of {num_outputs} symbols, found {len(symbols)}")
        return dictionary.letters(symbols, beside), list(range(num_outputs))
    language = re.search(r"voxpopuli.*_(de|en|es|fr|it)\b", file.name)
    letters, left_out = _VOXPOPULI[language[1]] if language else _LIBRISPEECH
    units = Letters((BLANK, *letters))
    if num_outputs == len(units):
        return units, list(range(num_outputs))
    if num_outputs == len(units) + len(left_out):
        return units, [output for output in range(num_outputs) if output not in left_out]
    expected = f"expected {len(units)} or {len(units) + len(left_out)} outputs, or {beside.name} beside it"
    raise CheckpointError(f"{file}: {expected}, found {num_outputs} outputs")
