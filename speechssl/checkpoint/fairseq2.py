"""Models of fairseq2: wav2vec 2.0, pretrained or fine-tuned with CTC, among them omniASR's.

The files have no settings, and no shape tells the number of heads: it is that of the published models of that width.
"""

from pathlib import Path
from typing import Any

from speechssl.checkpoint import dictionary
from speechssl.checkpoint.foreign import Names, listed
from speechssl.checkpoint.pickles import bare_weights, read_tensors
from speechssl.checkpoint.saved_model import NO_LICENSE, NO_SETTINGS, SavedModel, foreign_model
from speechssl.checkpoint.sentencepiece import read_pieces
from speechssl.checkpoint.sizes import Unseen, encoder_config, our_names, published_heads, published_strides
from speechssl.data.pieces import SPACE
from speechssl.data.tokens import Tokens
from speechssl.errors import CheckpointError

_LAYER = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.output_proj",
    "attention_norm": "self_attn_layer_norm",
    "feed_forward.inner": "ffn.inner_proj",
    "feed_forward.output": "ffn.output_proj",
    "feed_forward_norm": "ffn_layer_norm",
}
_BODY = {
    "encoder.feature_encoder.layers.#.conv": "encoder_frontend.feature_extractor.layers.#.conv",
    "encoder.frame_norm": "encoder_frontend.post_extract_layer_norm",
    "encoder.context.projection": "encoder_frontend.model_dim_proj",
    "encoder.context.mask_embedding": "masker.temporal_mask_embed",
    "encoder.context.position.conv": "encoder_frontend.pos_encoder.conv",
    "encoder.context.position.layers.#": "encoder_frontend.pos_encoder.layers.#.conv",
    **{f"encoder.context.layers.#.{ours}": f"encoder.layers.#.{theirs}" for ours, theirs in _LAYER.items()},
}
_CONTRAST = ("quantizer", "final_target_proj", "final_proj")


def read_fairseq2(contents: Any, file: Path) -> SavedModel | None:
    """Read a model from what a file holds; None if that is another toolkit's.

    Raises:
        CheckpointError: its weights are damaged or those of a model that is not supported, or nothing says what the
            outputs stand for.
    """
    weights = bare_weights(contents)
    if "encoder_frontend.model_dim_proj.weight" not in weights:
        return None
    is_large = "encoder_frontend.feature_extractor.layers.1.layer_norm.weight" in weights
    norm_first = "encoder.layer_norm.weight" in weights
    names = _names(is_large, norm_first, is_pretrained="quantizer.entries" in weights)
    weights = read_tensors(weights, names, file)
    renamed = our_names(weights, names)
    strides, heads = published_strides(renamed, file), published_heads(renamed, file)
    encoder = encoder_config(renamed, Unseen(strides, heads, norm_first, normalize_waveforms=is_large), file)
    tokens = _tokens(len(renamed["head.weight"]), file) if "head.weight" in renamed else None
    return foreign_model(file, "fairseq2", names, weights, encoder, tokens, remarks=(NO_LICENSE, NO_SETTINGS))


def _names(is_large: bool, norm_first: bool, is_pretrained: bool) -> Names:
    norm = "layer_norm" if is_large else "group_norm"
    modules = _BODY | {
        "encoder.feature_encoder.layers.#.norm": f"encoder_frontend.feature_extractor.layers.#.{norm}",
        "encoder.context.norm": "encoder.layer_norm" if norm_first else "encoder_frontend.layer_norm",
    }
    return Names(modules, _CONTRAST) if is_pretrained else Names(modules | {"head": "final_proj"})


def _tokens(num_symbols: int, file: Path) -> Tokens:
    """The pieces of the tokenizer beside the file that has as many as the head."""
    found = []
    for tokenizer in sorted(file.parent.glob("*.model")):
        pieces = read_pieces(tokenizer)
        if len(pieces.texts) != num_symbols:
            found.append(f"{tokenizer.name} of {len(pieces.texts)}")
            continue
        if longer := [text for text in pieces.texts if SPACE in text and text != SPACE]:
            raise CheckpointError(f"{tokenizer}: expected pieces of letters, found {listed(longer)}")
        return dictionary.tokens(pieces.texts, tokenizer, pieces.special, SPACE)
    expected = f"expected its tokenizer beside it, NAME.model of {num_symbols} pieces"
    raise CheckpointError(f"{file}: {expected}, found {listed(found) or 'none'}")
