"""Folders of Hugging Face's transformers: wav2vec 2.0 and its family, with or without a CTC head."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from speechssl.checkpoint.foreign import Names, listed, read_json, to_ours
from speechssl.checkpoint.hub import WEIGHTS
from speechssl.checkpoint.native import read_safetensors
from speechssl.checkpoint.pickles import read_pickle, read_tensors
from speechssl.checkpoint.saved_model import ModelDescription, SavedModel, TrainingData
from speechssl.checkpoint.tokenizer import has_languages, read_tokenizer
from speechssl.checkpoint.transformers_names import FAMILIES, PREFIXES
from speechssl.config import Config
from speechssl.data.audio import SAMPLE_RATE
from speechssl.errors import CheckpointError, ConfigError
from speechssl.model.encoder import EncoderConfig

_CONFIG, _CARD = "config.json", "README.md"
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_EPSILON, _OMNI_EPSILON = 1e-7, 1e-5


class _Settings(Config, extra="ignore"):
    """What of config.json decides about the encoder, with transformers' defaults."""

    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    feat_extract_norm: Literal["group", "layer"] = "group"
    feat_extract_activation: Literal["gelu"] = "gelu"
    feat_proj_layer_norm: bool = True
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: float = Field(1e-5, ge=1e-5, le=1e-5)
    do_stable_layer_norm: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    conv_pos_batch_norm: Literal[False] = False
    feat_proj_dropout: float = 0.0
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    layerdrop: float = 0.1
    adapter_attn_dim: int | None = None
    add_adapter: Literal[False] = False

    def feature_encoder(self) -> dict[str, Any]:
        """The section of that name, as of ours."""
        return {
            "dims": self.conv_dim,
            "kernels": self.conv_kernel,
            "strides": self.conv_stride,
            "norm": self.feat_extract_norm,
            "bias": self.conv_bias,
            "frame_norm": self.feat_proj_layer_norm,
            "gradient_scale": 0.1 if self.feat_extract_norm == "group" else 1.0,  # as published
        }

    def context(self) -> dict[str, Any]:
        """The section of that name, as of ours."""
        return {
            "kind": "transformer",
            "num_layers": self.num_hidden_layers,
            "model_dim": self.hidden_size,
            "num_heads": self.num_attention_heads,
            "ffn_dim": self.intermediate_size,
            "norm_first": self.do_stable_layer_norm,
            "position_kernel": self.num_conv_pos_embeddings,
            "position_groups": self.num_conv_pos_embedding_groups,
            "input_dropout": self.feat_proj_dropout,
            "dropout": self.hidden_dropout,
            "attention_dropout": self.attention_dropout,
            "activation_dropout": self.activation_dropout,
            "layer_drop": self.layerdrop,
            "adapter_dim": self.adapter_attn_dim if self.do_stable_layer_norm else None,
        }


class _WavLM(_Settings):
    num_buckets: int = 320
    max_bucket_distance: int = 800

    def context(self) -> dict[str, Any]:
        buckets = {"num_buckets": self.num_buckets, "max_distance": self.max_bucket_distance}
        return super().context() | {"kind": "wavlm"} | buckets


class _Data2Vec(_Settings):
    feat_extract_norm: Literal["layer"] = "layer"
    num_conv_pos_embeddings: int = 5  # here the number of convolutions
    conv_pos_kernel_size: int = 19
    do_stable_layer_norm: Literal[False] = False

    def context(self) -> dict[str, Any]:
        position = {"position_layers": self.num_conv_pos_embeddings, "position_kernel": self.conv_pos_kernel_size}
        return super().context() | {"kind": "data2vec"} | position


class _OmniASR(_Settings):
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    conv_bias: bool = True
    feat_extract_norm: Literal["layer"] = "layer"
    do_stable_layer_norm: Literal[True] = True
    attention_dropout: float = 0.0


_SETTINGS: dict[str, type[_Settings]] = {"wavlm": _WavLM, "data2vec-audio": _Data2Vec, "omniasr_ctc": _OmniASR}


class _Processor(Config, extra="ignore"):
    """What of the feature extractor's file decides about the input."""

    do_normalize: bool = True
    feature_size: Literal[1] = 1
    sampling_rate: int = Field(SAMPLE_RATE, ge=SAMPLE_RATE, le=SAMPLE_RATE)


def read_folder(folder: Path, language: str | None = None) -> SavedModel | None:
    """Read a folder that transformers wrote; None if it holds something else.

    Args:
        folder: With config.json, weights, and, for CTC, vocab.json.
        language: Of a model with adapters (MMS) or a nested vocabulary; None is the one that the folder chooses.

    Raises:
        CheckpointError: the model is of a family or has settings that are not supported, or a file is malformed.
    """
    values = read_json(folder / _CONFIG)
    if not isinstance(values, dict) or "format" in values or not isinstance(values.get("model_type"), str):
        return None
    family = values["model_type"]
    if family not in FAMILIES:
        raise CheckpointError(f"{folder / _CONFIG}: expected a model_type of {', '.join(FAMILIES)}, found {family!r}")
    remarks: list[str] = []
    encoder = _read_encoder(folder, family, values, remarks)
    tokens = read_tokenizer(folder, values, language, remarks)
    files = _find_weights(folder)
    if adapter := _find_adapter(folder, encoder, language):
        files = (*files, adapter)
    license_name = read_license(folder / _CARD)
    if license_name is None:
        remarks.append(f"no license in {_CARD}")
    data = TrainingData(
        stage=_name(folder, family), license=license_name or "unknown", hours=None, labeled=tokens is not None
    )
    return SavedModel(
        ModelDescription(
            speechssl_version="-",
            kind="pretrained" if tokens is None else "ctc",
            step=0,
            encoder=encoder,
            training_data=(data,),
        ),
        tokens,
        files,
        partial(_read_weights, files, family, encoder, tokens is not None),
        f"transformers {family}",
        FAMILIES[family],
        tuple(remarks),
        has_languages(folder),
    )


def _read_encoder(folder: Path, family: str, values: Mapping[str, Any], remarks: list[str]) -> EncoderConfig:
    if family == "omniasr_ctc":
        values = values.get("audio_config") or {}
    try:
        settings = _SETTINGS.get(family, _Settings).from_dict(dict(values), str(folder / _CONFIG))
        return EncoderConfig.from_dict(
            {
                "feature_encoder": settings.feature_encoder(),
                "context": settings.context(),
                "normalize_waveforms": _read_normalization(folder, family, remarks),
            },
            str(folder / _CONFIG),
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _read_normalization(folder: Path, family: str, remarks: list[str]) -> bool | float:
    for name in _PROCESSORS:
        values = read_json(folder / name)
        values = values.get("feature_extractor", values) if isinstance(values, dict) else None
        if isinstance(values, dict) and "do_normalize" in values:
            break
    else:
        name, values = _PROCESSORS[0], {}
        remarks.append(f"neither {' nor '.join(_PROCESSORS)}: waveforms are normalized, as by default")
    processor = _Processor.from_dict(values, str(folder / name))
    return processor.do_normalize and (_OMNI_EPSILON if family == "omniasr_ctc" else _EPSILON)


def _find_weights(folder: Path) -> tuple[Path, ...]:
    """The files with the weights, in safetensors rather than pickles, in one piece or in several."""
    for name in WEIGHTS:
        file = folder / name
        if file.is_file():
            if file.suffix != ".json":
                return (file,)
            index = read_json(file)
            names = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(names, dict) or not names or not all(isinstance(part, str) for part in names.values()):
                raise CheckpointError(f"{file}: expected a weight_map of names and files")
            return tuple(_beside(folder, part, str(file)) for part in sorted({*names.values()}))
    return (folder / WEIGHTS[0],)


def _beside(folder: Path, name: str, where: str) -> Path:
    """Return the path of a file in a folder itself; in the hub's cache it is a link that leads out."""
    if not name.isprintable() or name in ("", "..") or Path(name).name != name:
        raise CheckpointError(f"{where}: expected the name of a file in {folder}, found {name!r}")
    return folder / name


def _find_adapter(folder: Path, encoder: EncoderConfig, language: str | None) -> Path | None:
    if language is None:
        return None
    if getattr(encoder.context, "adapter_dim", None) is None:
        return None  # the vocabulary alone has languages
    for suffix in ("safetensors", "bin"):
        file = _beside(folder, f"adapter.{language}.{suffix}", "language")
        if file.is_file():
            return file
    raise CheckpointError(f"{folder}: expected adapter.{language}.safetensors for the language, found none")


def _read_weights(files: tuple[Path, ...], family: str, encoder: EncoderConfig, has_head: bool) -> dict[str, Tensor]:
    names = FAMILIES[family]
    weights: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors = read_safetensors(file)
        else:
            tensors = read_tensors(read_pickle(file), Names({}), file)
        tensors = _with_prefix(tensors, PREFIXES[family], names)
        if file.name.startswith("adapter."):
            _check_adapter(file, tensors, weights)
        weights |= tensors
    if not has_head:
        names = replace(names, dropped=(*names.dropped, names.modules["head"]))
        names = replace(names, modules={ours: theirs for ours, theirs in names.modules.items() if ours != "head"})
    return to_ours(weights, names, encoder, files[0])


def _with_prefix(weights: Mapping[str, Tensor], prefix: str, names: Names) -> dict[str, Tensor]:
    """Give the weights of a body alone the names that they have beside a head."""
    for skipped in range(len(prefix.split("."))):
        inner = ".".join(prefix.split(".")[skipped:])
        if any(name.startswith(f"{inner}.") for name in weights):
            outer = prefix.removesuffix(inner)
            return {outer + name if name.startswith(f"{inner}.") else name: weights[name] for name in weights}
    full = {name: f"{prefix}.{name}" for name in weights}
    return {full[name] if names.ours(full[name]) else name: weights[name] for name in weights}


def _check_adapter(file: Path, adapter: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """An adapter replaces the adapter of every layer and the head, nothing more and nothing less."""
    expected = {name for name in weights if ".adapter_layer." in name or name.startswith("lm_head.")}
    wrong = sorted(expected ^ adapter.keys())
    if wrong:
        found = listed(f"{name} {'missing' if name in expected else 'beside them'}" for name in wrong)
        raise CheckpointError(f"{file}: expected the adapters of all layers and the head, found {found}")


def read_license(card: Path) -> str | None:
    """Return the license in a model card's front matter; None if it states none."""
    try:
        text = card.read_text("utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?\n)---\s*(\n|$)", text, re.DOTALL)
    found = dict(re.findall(r"^(license(?:_name)?):[ \t]*(\S.*?)\s*$", front[1] if front else "", re.MULTILINE))
    name = found.get("license_name") if found.get("license") == "other" else None
    stated = name or found.get("license")
    return stated.strip("'\"") if stated else None


def _name(folder: Path, family: str) -> str:
    """What a model is called, by its folder or, in the hub's cache, by its repository."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return f"{folder.name} ({family})"
