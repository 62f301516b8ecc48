"""Models of torchaudio's bundles: state dictionaries without any settings.

What the shapes do not show is the same for all bundles of a design: convolutions with a layer norm each go with layers
that normalize their input and with normalized waveforms.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from speechssl.checkpoint import dictionary
from speechssl.checkpoint.foreign import Names, unpack
from speechssl.checkpoint.pickles import read_tensors
from speechssl.checkpoint.saved_model import NO_LICENSE, NO_SETTINGS, SavedModel, foreign_model
from speechssl.checkpoint.sizes import Unseen, encoder_config, our_names, published_heads, published_strides
from speechssl.data.tokens import Tokens
from speechssl.errors import CheckpointError

_LAYER = {
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.output": "attention.out_proj",
    "attention.gate": "attention.gru_rel_pos_linear",
    "attention.gate_scale": "attention.gru_rel_pos_const",
    "attention_norm": "layer_norm",
    "feed_forward.inner": "feed_forward.intermediate_dense",
    "feed_forward.output": "feed_forward.output_dense",
    "feed_forward_norm": "final_layer_norm",
}
_BODY = {
    "encoder.feature_encoder.layers.#.conv": "feature_extractor.conv_layers.#.conv",
    "encoder.feature_encoder.layers.#.norm": "feature_extractor.conv_layers.#.layer_norm",
    "encoder.frame_norm": "encoder.feature_projection.layer_norm",
    "encoder.context.projection": "encoder.feature_projection.projection",
    "encoder.context.position": "encoder.transformer.pos_conv_embed",
    "encoder.context.distance_bias": "encoder.transformer.layers.0.attention.rel_attn_embed",
    "encoder.context.norm": "encoder.transformer.layer_norm",
    "head": "aux",
}


def _names(attention: str) -> Names:
    layer = {**_LAYER, "attention.output": f"{attention}.out_proj"}
    renamed = {
        f"encoder.context.layers.#.{ours}": f"encoder.transformer.layers.#.{name}" for ours, name in layer.items()
    }
    return Names(_BODY | renamed)


_NAMES, _WAVLM_NAMES = _names("attention"), _names("attention.attention")
_PACKED = r"(encoder\.transformer\.layers\.[0-9]+\.attention\.)attention\.in_proj_(weight|bias)"
_VOXPOPULI = {  # letters by language, and outputs that the bundle leaves out
    "de": ("|enirstadhulgcmobwfkzpvüäöjßyxq", (1, 2, 3, 35)),
    "en": ("|etoiansrhldcumpfgwybvkxjqz", (1, 2, 3, 31)),
    "es": ("|eaosnrildctupmbqygvhófíájzñéxúkwü", (1, 2, 3, 35)),
    "fr": ("|esnitraouldcpmévqfgbhxàjèyêzôkçœûùîâwïëüæ", (1, 2, 3)),
    "it": ("|eiaontrlscdupmgvhzfbqàèùéòìkyxwjóíï", (1, 2, 3)),
}
_MMS = "aienoutsrmkldghybpwcvjzf'qx"  # MMS_FA, for alignment: without spaces
_LIBRISPEECH = (dictionary.ENGLISH, (1, 2, 3))


def read_torchaudio(contents: Any, file: Path) -> SavedModel | None:
    """Read a model from what a file holds; None if that is another toolkit's.

    Raises:
        CheckpointError: its weights are damaged or those of a model that is not supported, or nothing says what the
            outputs stand for.
    """
    if not isinstance(contents, Mapping) or "encoder.feature_projection.projection.weight" not in contents:
        return None
    names = _WAVLM_NAMES if any(".rel_attn_embed." in str(name) for name in contents) else _NAMES
    weights = unpack(read_tensors(contents, names, file), _PACKED, ("q_proj.", "k_proj.", "v_proj."))
    tokens = None
    if "aux.weight" in weights:
        tokens, kept = _tokens(len(weights["aux.weight"]), file)
        for name in ("aux.weight", "aux.bias"):
            if name in weights and len(weights[name]) > max(kept):
                weights[name] = weights[name][torch.tensor(kept)]
    renamed = our_names(weights, names)
    is_large = "encoder.feature_encoder.layers.1.norm.weight" in renamed
    unseen = Unseen(published_strides(renamed, file), published_heads(renamed, file), is_large, is_large)
    encoder = encoder_config(renamed, unseen, file)
    return foreign_model(file, "torchaudio", names, weights, encoder, tokens, remarks=(NO_LICENSE, NO_SETTINGS))


def _tokens(num_outputs: int, file: Path) -> tuple[Tokens, list[int]]:
    """The units and the outputs that stand for them: of a dictionary beside the file, or by its name and size."""
    beside = file.with_name("dict.ltr.txt")
    if (symbols := dictionary.read_dictionary(beside)) is not None:
        if len(symbols) != num_outputs:
            raise CheckpointError(f"{beside}: expected a dictionary of {num_outputs} symbols, found {len(symbols)}")
        return dictionary.tokens(symbols, beside), list(range(num_outputs))
    language = re.search(r"voxpopuli.*_(de|en|es|fr|it)\b", file.name)
    letters, left_out = _VOXPOPULI[language[1]] if language else _LIBRISPEECH
    if not language and num_outputs in (1 + len(_MMS), 4 + len(_MMS)):
        letters = _MMS
    units = dictionary.tokens((dictionary.BLANK, *letters), file)
    if num_outputs == len(units):
        return units, list(range(num_outputs))
    if num_outputs == len(units) + len(left_out):
        return units, [output for output in range(num_outputs) if output not in left_out]
    expected = f"expected {len(units)} or {len(units) + len(left_out)} outputs, or {beside.name} beside it"
    raise CheckpointError(f"{file}: {expected}, found {num_outputs} outputs")
