"""Models of fairseq, pretrained or fine-tuned with CTC, from its own files and S3PRL's versions of them.

The families are wav2vec 2.0, HuBERT and data2vec audio, and those that were made from fairseq's code and keep its
names: the original files of WavLM, UniSpeech-SAT and DinoSR. Older files have their settings as an
``argparse.Namespace`` under ``args``, newer ones as dictionaries under ``cfg``, those of S3PRL under ``model_cfg`` and
``task_cfg``.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field
from torch import Tensor

from speechssl.checkpoint import dictionary
from speechssl.checkpoint.names import rename
from speechssl.checkpoint.pickles import plain_settings, read_tensors, shortened
from speechssl.checkpoint.saved_model import ModelDescription, SavedModel
from speechssl.checkpoint.sizes import Unseen, complete, encoder_config
from speechssl.config import Config
from speechssl.data.units import Letters
from speechssl.errors import CheckpointError, ConfigError
from speechssl.model.encoder import EncoderConfig
from speechssl.model.transformer import TransformerSizes

_ENCODER, _HEAD = "w2v_encoder.w2v_model.", "w2v_encoder.proj."  # of fine-tuned models

_NAMES = {
    "feature_extractor.conv_layers.#.0.*": "encoder.feature_encoder.layers.#.conv.*",
    "feature_extractor.conv_layers.#.2.*": "encoder.feature_encoder.layers.#.norm.*",
    "feature_extractor.conv_layers.#.2.1.*": "encoder.feature_encoder.layers.#.norm.*",
    "layer_norm.*": "encoder.frame_norm.*",
    "post_extract_proj.*": "encoder.context.projection.*",
    "mask_emb": "encoder.context.mask_embedding",
    "encoder.pos_conv.0.bias": "encoder.context.position.conv.bias",
    "encoder.pos_conv.0.weight_g": "encoder.context.position.conv.parametrizations.weight.original0",
    "encoder.pos_conv.0.weight_v": "encoder.context.position.conv.parametrizations.weight.original1",
    "encoder.pos_conv.#.0.*": "encoder.context.position.layers.#.*",  # data2vec's
    "encoder.layer_norm.*": "encoder.context.norm.*",
    "encoder.layers.#.self_attn.q_proj.*": "encoder.context.layers.#.attention.query.*",
    "encoder.layers.#.self_attn.k_proj.*": "encoder.context.layers.#.attention.key.*",
    "encoder.layers.#.self_attn.v_proj.*": "encoder.context.layers.#.attention.value.*",
    "encoder.layers.#.self_attn.out_proj.*": "encoder.context.layers.#.attention.output.*",
    "encoder.layers.#.self_attn.grep_linear.*": "encoder.context.layers.#.attention.gate.*",  # WavLM's
    "encoder.layers.#.self_attn.grep_a": "encoder.context.layers.#.attention.gate_scale",
    "encoder.layers.0.self_attn.relative_attention_bias.weight": "encoder.context.distance_bias.weight",
    "encoder.layers.#.self_attn_layer_norm.*": "encoder.context.layers.#.attention_norm.*",
    "encoder.layers.#.fc1.*": "encoder.context.layers.#.feed_forward.inner.*",
    "encoder.layers.#.fc2.*": "encoder.context.layers.#.feed_forward.output.*",
    "encoder.layers.#.final_layer_norm.*": "encoder.context.layers.#.feed_forward_norm.*",
}
_DROPPED = (
    *("quantizer.", "project_q.", "final_proj.", "target_glu."),  # wav2vec 2.0's contrast
    "label_embs_concat",  # HuBERT's and UniSpeech-SAT's clusters
    *("spk_proj.", "encoder.layer_norm_for_extract."),  # UniSpeech-SAT's speakers
    "_ema",  # the teacher of data2vec and DinoSR
    *("_codebook", "heads."),  # DinoSR's clusters
)


class _ModelSettings(Config):
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


class _TaskSettings(Config):
    normalize: bool = False
    sample_rate: Literal[16_000] = 16_000
    labels: str | None = None


_Settings = TypeVar("_Settings", bound=Config)


@dataclass(frozen=True)
class _Contents:
    """The parts of a file: its weights, settings and, if it has one, dictionary."""

    weights: Any
    model: _ModelSettings
    task: _TaskSettings
    symbols: tuple[str, ...] | None
    num_updates: int


def read_fairseq(contents: Any, file: Path) -> SavedModel | None:
    """Read a model from what a file holds; None if that is another toolkit's.

    Raises:
        CheckpointError: its settings, weights or dictionary are damaged, do not fit each other, or are those of a model
            that is not supported.
    """
    parts = _take_apart(contents, file)
    if parts is None:
        return None
    weights = rename(_stripped(read_tensors(parts.weights, _dropped(), file)), {**_NAMES, "head.*": "head.*"}, file)
    weights = complete(weights, parts.model.encoder_embed_dim)
    convolutions = _parse_layers(parts.model.conv_feature_layers, file)
    encoder = encoder_config(
        weights, _unseen(parts, convolutions, "encoder.context.distance_bias.weight" in weights), file
    )
    _compare(encoder, parts.model, convolutions, file)
    head = weights.get("head.weight")
    vocabulary = None if head is None else _vocabulary(parts, len(head), file)
    kind: Literal["ctc", "pretrained"] = "pretrained" if vocabulary is None else "ctc"
    description = ModelDescription(kind=kind, step=parts.num_updates, encoder=encoder)
    return SavedModel(description, vocabulary, file, lambda: weights)


def _take_apart(contents: Any, file: Path) -> _Contents | None:
    if not isinstance(contents, Mapping):
        return None
    if "model_weight" in contents:
        weights, model, task = contents["model_weight"], contents.get("model_cfg"), contents.get("task_cfg")
    else:
        weights = contents.get("model")
        settings = contents.get("cfg") or contents.get("args")
        if not isinstance(weights, Mapping) or settings is None:
            return None
        model = task = settings
    model, task = _sections(plain_settings(model, file)), _sections(plain_settings(task, file), "task")
    pretrained = model.get("w2v_args")
    if any(str(name).startswith(_ENCODER) for name in weights):
        if not isinstance(pretrained, dict):
            raise CheckpointError(f"{file}: expected the settings of the pretrained encoder, found no w2v_args")
        model = _sections(pretrained)
    state = plain_settings(contents.get("task_state"), file)
    own = state.get("target_dictionary") if isinstance(state, dict) else None
    symbols = own.get("symbols") if isinstance(own, dict) else contents.get("dictionaries_symbols")
    history = plain_settings(contents.get("optimizer_history"), file)
    last = history[-1] if isinstance(history, list) and history and isinstance(history[-1], dict) else {}
    num_updates = last.get("num_updates")
    return _Contents(
        weights,
        _checked(_ModelSettings, model, file),
        _checked(_TaskSettings, task, file),
        _symbols(symbols),
        num_updates if isinstance(num_updates, int) else 0,
    )


def _sections(settings: Any, section: str = "model") -> dict[str, Any]:
    """A section of the newer settings, or the older ones, which have none."""
    settings = settings if isinstance(settings, dict) else {}
    inner = settings.get(section)
    return inner if isinstance(inner, dict) else settings


def _checked(kind: type[_Settings], settings: dict[str, Any], file: Path) -> _Settings:
    values = {name: settings[name] for name in kind.model_fields if settings.get(name) is not None}
    try:
        return kind.from_dict(values, str(file))
    except ConfigError as error:
        raise CheckpointError(shortened(str(error), 500)) from None


def _symbols(symbols: Any) -> tuple[str, ...] | None:
    """Of a dictionary, or of S3PRL's list of dictionaries."""
    if isinstance(symbols, list) and len(symbols) == 1 and isinstance(symbols[0], list):
        symbols = symbols[0]
    if isinstance(symbols, list) and symbols and all(isinstance(symbol, str) for symbol in symbols):
        return tuple(symbols)
    return None


def _dropped() -> tuple[str, ...]:
    return (*_DROPPED, *(f"{_ENCODER}{name}" for name in _DROPPED))


def _stripped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a fine-tuned model by the names of a pretrained one, the head's beside them."""
    return {
        f"head.{name.removeprefix(_HEAD)}" if name.startswith(_HEAD) else name.removeprefix(_ENCODER): tensor
        for name, tensor in weights.items()
    }


def _parse_layers(text: str | list[list[int]], file: Path) -> tuple[tuple[int, ...], ...]:
    """Read a Python expression of channels, kernel and stride a layer, like ``[(512, 10, 5)] + [(512, 3, 2)] * 4``."""

    def parse(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return [parse(item) for item in items]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return _list(parse(left)) + _list(parse(right))
            case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int(times))) if times <= 100:
                return _list(parse(left)) * times
        raise ValueError

    def _list(value: Any) -> list[Any]:
        if isinstance(value, list) and len(value) <= 100:
            return value
        raise ValueError

    try:
        layers = parse(ast.parse(text[:2000], mode="eval").body) if isinstance(text, str) else text
        if all(len(layer) == 3 and all(type(value) is int for value in layer) for layer in layers):
            return tuple(tuple(layer) for layer in layers)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass
    raise CheckpointError(f"{file}: expected (channels, kernel, stride) a layer, found {shortened(repr(text))}")


def _unseen(parts: _Contents, convolutions: tuple[tuple[int, ...], ...], has_distances: bool) -> Unseen:
    model = parts.model
    return Unseen(
        strides=tuple(stride for _, _, stride in convolutions),
        num_heads=model.encoder_attention_heads,
        norm_first=model.layer_norm_first,
        normalize_waveforms=parts.task.normalize,
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


def _compare(
    encoder: EncoderConfig, stated: _ModelSettings, convolutions: tuple[tuple[int, ...], ...], file: Path
) -> None:
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


def _vocabulary(parts: _Contents, num_symbols: int, file: Path) -> Letters:
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
    if len(symbols) != num_symbols:
        raise CheckpointError(f"{where}: expected a dictionary of {num_symbols} symbols, found {len(symbols)}")
    return dictionary.letters(symbols, where)
