"""Models of fairseq, pretrained or fine-tuned with CTC, from its own files and S3PRL's versions of them.

The families are wav2vec 2.0, HuBERT and data2vec audio, and those that were made from fairseq's code and keep its
names: the original files of WavLM, UniSpeech-SAT and DinoSR.
"""

import re
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from speechssl.checkpoint import dictionary
from speechssl.checkpoint.fairseq_settings import ENCODER, Contents, TaskSettings, checked, parse_layers, take_apart
from speechssl.checkpoint.foreign import Names, shortened
from speechssl.checkpoint.pickles import read_tensors
from speechssl.checkpoint.saved_model import NO_LICENSE, SavedModel, foreign_model
from speechssl.checkpoint.sizes import Unseen, encoder_config, our_names
from speechssl.config import Config
from speechssl.data.tokens import Tokens
from speechssl.errors import CheckpointError
from speechssl.model.encoder import EncoderConfig
from speechssl.model.transformer import TransformerSizes

_DISTANCES = "encoder.context.distance_bias.weight"
_LAYER = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "attention.gate": "self_attn.grep_linear",
    "attention.gate_scale": "self_attn.grep_a",
    "attention_norm": "self_attn_layer_norm",
    "feed_forward.inner": "fc1",
    "feed_forward.output": "fc2",
    "feed_forward_norm": "final_layer_norm",
}
_BODY = {
    "feature_encoder.layers.#.conv": "feature_extractor.conv_layers.#.0",
    "frame_norm": "layer_norm",
    "context.projection": "post_extract_proj",
    "context.mask_embedding": "mask_emb",
    "context.position.conv": "encoder.pos_conv.0",
    "context.position.layers.#": "encoder.pos_conv.#.0",  # data2vec's
    "context.distance_bias": "encoder.layers.0.self_attn.relative_attention_bias",
    "context.norm": "encoder.layer_norm",
    **{f"context.layers.#.{ours}": f"encoder.layers.#.{theirs}" for ours, theirs in _LAYER.items()},
}
_NORMS = {"default": "feature_extractor.conv_layers.#.2", "layer_norm": "feature_extractor.conv_layers.#.2.1"}
_DROPPED = (
    *("quantizer", "project_q", "final_proj", "target_glu"),  # wav2vec 2.0's contrast
    "label_embs_concat",  # HuBERT's and UniSpeech-SAT's clusters
    *("spk_proj", "encoder.layer_norm_for_extract"),  # UniSpeech-SAT's speakers
    "_ema",  # the teacher of data2vec and DinoSR
    *("heads", *(f"_codebook{kind}{number}" for kind in ("", "_cnts") for number in range(24))),  # DinoSR's clusters
)


def _names(extractor_mode: str, prefix: str) -> Names:
    body = {**_BODY, "feature_encoder.layers.#.norm": _NORMS[extractor_mode]}
    modules = {f"encoder.{ours}": f"{prefix}{theirs}" for ours, theirs in body.items()}
    return Names(modules | {"head": "w2v_encoder.proj"}, tuple(f"{prefix}{name}" for name in _DROPPED))


class _Settings(Config):
    """What fairseq's settings say of an encoder, by its names; the defaults are those of its programs."""

    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    extractor_mode: Literal["default", "layer_norm"] = "default"
    conv_feature_layers: str | list[list[int]] = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"
    conv_bias: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    pos_conv_depth: int = Field(1, ge=1)
    num_buckets: int = 320
    max_distance: int = 1280
    layer_norm_first: bool = False
    activation_fn: Literal["gelu"] = "gelu"
    layer_type: Literal["transformer"] = "transformer"
    feature_grad_mult: float = Field(1.0, ge=0)
    dropout_input: float = 0.0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0


def read_fairseq(contents: Any, file: Path) -> SavedModel | None:
    """Read a model from what a file holds; None if that is another toolkit's.

    Raises:
        CheckpointError: its settings, weights or dictionary are damaged, do not fit each other, or are those of a model
            that is not supported.
    """
    parts = take_apart(contents, file)
    if parts is None:
        return None
    settings = checked(_Settings, parts.model, file)
    prefix = ENCODER if parts.is_fine_tuned else ""
    names = _names(settings.extractor_mode, prefix)
    weights = _with_projection(read_tensors(parts.weights, names, file), prefix)
    convolutions = parse_layers(settings.conv_feature_layers, file)
    renamed = our_names(weights, names)
    encoder = encoder_config(renamed, _unseen(settings, parts.task, convolutions, _DISTANCES in renamed), file)
    _compare(encoder, settings, convolutions, file)
    remarks = [NO_LICENSE]
    tokens = _tokens(parts, len(renamed["head.weight"]), file, remarks) if "head.weight" in renamed else None
    family = f"fairseq {encoder.context.kind}"
    step, rest = parts.num_updates, tuple(remarks)
    return foreign_model(file, family, names, weights, encoder, tokens, step=step, remarks=rest)


def _with_projection(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Add the projection that fairseq leaves out between equal widths."""
    norm, projection = weights.get(f"{prefix}encoder.layer_norm.weight"), f"{prefix}post_extract_proj"
    if norm is not None and f"{projection}.weight" not in weights:
        return weights | {f"{projection}.weight": torch.eye(len(norm)), f"{projection}.bias": torch.zeros(len(norm))}
    return weights


def _unseen(
    model: _Settings, task: TaskSettings, convolutions: tuple[tuple[int, ...], ...], has_distances: bool
) -> Unseen:
    return Unseen(
        strides=tuple(stride for _, _, stride in convolutions),
        num_heads=model.encoder_attention_heads,
        norm_first=model.layer_norm_first,
        normalize_waveforms=task.normalize,
        feature_encoder={"gradient_scale": model.feature_grad_mult or 1.0},
        context={
            "input_dropout": model.dropout_input,
            "dropout": model.dropout,
            "attention_dropout": model.attention_dropout,
            "activation_dropout": model.activation_dropout,
            "layer_drop": model.encoder_layerdrop,
            **({"max_distance": model.max_distance} if has_distances else {}),
        },
    )


def _compare(encoder: EncoderConfig, stated: _Settings, convolutions: tuple[tuple[int, ...], ...], file: Path) -> None:
    """Refuse weights that are not those of the settings beside them."""
    found, context = encoder.feature_encoder, encoder.context
    assert isinstance(context, TransformerSizes)
    position_kernel = stated.conv_pos
    if stated.pos_conv_depth > 1:  # data2vec divides the frames among its convolutions
        position_kernel = max(3, stated.conv_pos // stated.pos_conv_depth)
    pairs = {
        "encoder_layers": (stated.encoder_layers, context.num_layers),
        "encoder_embed_dim": (stated.encoder_embed_dim, context.model_dim),
        "encoder_ffn_embed_dim": (stated.encoder_ffn_embed_dim, context.ffn_dim),
        "conv_feature_layers": (convolutions, tuple(zip(found.dims, found.kernels, found.strides, strict=True))),
        "conv_bias": (stated.conv_bias, found.bias),
        "extractor_mode": (stated.extractor_mode, {"group": "default", "layer": "layer_norm"}[found.norm]),
        "conv_pos": (position_kernel, context.position_kernel),
        "conv_pos_groups": (stated.conv_pos_groups, context.position_groups),
    }
    wrong = [f"{name} {there}, not {ours}" for name, (there, ours) in pairs.items() if there != ours]
    if wrong:
        raise CheckpointError(f"{file}: expected settings of these weights, found {shortened('; '.join(wrong), 500)}")


def _tokens(parts: Contents, num_symbols: int, file: Path, remarks: list[str]) -> Tokens:
    """The dictionary in the file, that beside it, or the letters of LibriSpeech's models."""
    label = parts.task.labels if re.fullmatch("[A-Za-z0-9_-]+", parts.task.labels or "") else "ltr"
    beside = file.with_name(f"dict.{label}.txt")
    symbols, where = parts.symbols, file
    if symbols is None:
        symbols, where = dictionary.read_dictionary(beside), beside
    if symbols is None:
        symbols, where = (*dictionary.SPECIAL, *dictionary.ENGLISH), file
        if len(symbols) != num_symbols:
            expected = f"expected a dictionary of {num_symbols} symbols in it or in {beside.name} beside it"
            raise CheckpointError(f"{file}: {expected}, found none")
        remarks.append(f"no dictionary in the file, nor {beside.name}: the letters are those of LibriSpeech's models")
    if len(symbols) != num_symbols:
        raise CheckpointError(f"{where}: expected a dictionary of {num_symbols} symbols, found {len(symbols)}")
    return dictionary.tokens(symbols, where)
