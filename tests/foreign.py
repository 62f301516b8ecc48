"""Files of other toolkits, composed by hand from the names that those give their weights, and the peers inside them.

The peers are models of torchaudio and transformers with weights at random.
"""

import argparse
import re
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
LETTERS = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"
SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS]
CONVOLUTIONS = [(12, 10, 5), (16, 3, 2), (24, 2, 2)]
SIZES: dict[str, Any] = {
    "extractor_conv_layer_config": CONVOLUTIONS,
    "encoder_embed_dim": 32,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 3,
    "encoder_num_heads": 4,
    "encoder_ff_interm_features": 48,
}
SMALL: dict[str, Any] = {
    "encoder_embed_dim": 768,  # published widths and kernels, which tell the heads and strides
    "encoder_num_heads": 12,
    "encoder_num_layers": 2,
    "encoder_pos_conv_groups": 16,
    "extractor_conv_layer_config": [(12, 10, 5), *[(12, 3, 2)] * 4, (12, 2, 2), (24, 2, 2)],
}
NOISE = {
    "encoder_projection_dropout": 0.1,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_drop": 0.1,
}


def make_peer(kind: str = "base", num_symbols: int | None = None, **sizes: Any) -> nn.Module:
    """A torchaudio model of wav2vec 2.0's ``base`` or ``large`` design, tiny unless other sizes are given."""
    models = pytest.importorskip("torchaudio.models")
    torch.manual_seed(0)
    design = {
        "extractor_mode": "group_norm" if kind == "base" else "layer_norm",
        "extractor_conv_bias": kind == "large",
        "encoder_layer_norm_first": kind == "large",
        "aux_num_out": num_symbols,
    }
    return randomize(models.wav2vec2_model(**{**SIZES, **NOISE, **design, **sizes})).eval()


def make_wavlm(kind: str = "base", **sizes: Any) -> nn.Module:
    """As `make_peer`, of WavLM."""
    models = pytest.importorskip("torchaudio.models")
    torch.manual_seed(0)
    design = {
        "extractor_mode": "group_norm" if kind == "base" else "layer_norm",
        "extractor_conv_bias": False,
        "encoder_layer_norm_first": kind == "large",
        "encoder_num_buckets": 16,
        "encoder_max_distance": 20,
        "aux_num_out": None,
    }
    return randomize(models.wavlm_model(**{**SIZES, **NOISE, **design, **sizes})).eval()


def make_data2vec(**sizes: Any) -> nn.Module:
    """transformers' model of data2vec audio."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    dims, kernels, strides = zip(*sizes.pop("convolutions", CONVOLUTIONS), strict=True)
    settings = {
        "conv_dim": dims,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_pos_kernel_size": 5,
        "num_conv_pos_embeddings": 2,
        "num_conv_pos_embedding_groups": 4,
        **sizes,
    }
    return randomize(transformers.Data2VecAudioModel(transformers.Data2VecAudioConfig(**settings))).eval()


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """Fill every parameter so that each part has an effect of its own."""
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "original0")):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.2)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model


def fairseq_names(model: nn.Module, mode: str) -> Weights:
    """The weights of a torchaudio encoder by fairseq's names; ``mode`` is its extractor_mode."""
    norm = "2" if mode == "default" else "2.1"
    rules = [
        (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
        (r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", rf"feature_extractor.conv_layers.\1.{norm}."),
        (r"encoder\.feature_projection\.layer_norm\.", "layer_norm."),
        (r"encoder\.feature_projection\.projection\.", "post_extract_proj."),
        (r"encoder\.transformer\.pos_conv_embed\.conv\.bias", "encoder.pos_conv.0.bias"),
        (r".*pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
        (r".*pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
        (r"encoder\.transformer\.layer_norm\.", "encoder.layer_norm."),
        (r"encoder\.transformer\.layers\.(\d+)\.attention\.(?=[qkvo])", r"encoder.layers.\1.self_attn."),
        (r"encoder\.transformer\.layers\.(\d+)\.attention\.attention\.(?=out_)", r"encoder.layers.\1.self_attn."),
        (
            r"encoder\.transformer\.layers\.(\d+)\.attention\.gru_rel_pos_linear",
            r"encoder.layers.\1.self_attn.grep_linear",
        ),
        (r"encoder\.transformer\.layers\.(\d+)\.attention\.gru_rel_pos_const", r"encoder.layers.\1.self_attn.grep_a"),
        (r".*\.rel_attn_embed\.", "encoder.layers.0.self_attn.relative_attention_bias."),
        (r"encoder\.transformer\.layers\.(\d+)\.layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
        (r"encoder\.transformer\.layers\.(\d+)\.feed_forward\.intermediate_dense\.", r"encoder.layers.\1.fc1."),
        (r"encoder\.transformer\.layers\.(\d+)\.feed_forward\.output_dense\.", r"encoder.layers.\1.fc2."),
        (r"encoder\.transformer\.layers\.(\d+)\.final_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
    ]
    weights = {}
    state = model.state_dict()
    for name, tensor in [(name, tensor) for name, tensor in state.items() if ".in_proj_" in name]:  # WavLM's
        place, _, kind = name.rpartition(".in_proj_")
        number = re.findall(r"\d+", place)[0]
        for part, values in zip("qkv", tensor.tensor_split(3), strict=True):
            weights[f"encoder.layers.{number}.self_attn.{part}_proj.{kind}"] = values.clone()
        del state[name]
    for name, tensor in state.items():
        matching = [(pattern, theirs) for pattern, theirs in rules if re.match(pattern, name)]
        if not name.startswith("aux."):
            ((pattern, theirs),) = matching
            weights[re.sub(pattern, theirs, name)] = tensor
    weights["mask_emb"] = torch.rand(len(weights["post_extract_proj.bias"]))
    return weights


def data2vec_names(model: nn.Module) -> Weights:
    """The weights of transformers' data2vec by fairseq's names."""
    rules = {
        r"feature_extractor\.conv_layers\.(\d+)\.conv": r"feature_extractor.conv_layers.\1.0",
        r"feature_extractor\.conv_layers\.(\d+)\.layer_norm": r"feature_extractor.conv_layers.\1.2.1",
        r"feature_projection\.layer_norm": "layer_norm",
        r"feature_projection\.projection": "post_extract_proj",
        r"masked_spec_embed": "mask_emb",
        r"encoder\.pos_conv_embed\.layers\.(\d+)\.conv": r"encoder.pos_conv.\1.0",
        r"encoder\.layers\.(\d+)\.attention": r"encoder.layers.\1.self_attn",
        r"encoder\.layers\.(\d+)\.layer_norm": r"encoder.layers.\1.self_attn_layer_norm",
        r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense": r"encoder.layers.\1.fc1",
        r"encoder\.layers\.(\d+)\.feed_forward\.output_dense": r"encoder.layers.\1.fc2",
    }
    weights = {}
    for name, tensor in model.state_dict().items():
        for pattern, theirs in rules.items():
            name = re.sub(f"^{pattern}(?![a-z_])", theirs, name)
        weights[name] = tensor
    return weights


def pretraining_heads(dim: int = 32) -> Weights:
    """What a pretraining model of wav2vec 2.0 has besides."""
    return {
        "quantizer.vars": torch.rand(1, 8, 4),
        "quantizer.weight_proj.weight": torch.rand(8, 24),
        "quantizer.weight_proj.bias": torch.rand(8),
        "project_q.weight": torch.rand(6, 8),
        "project_q.bias": torch.rand(6),
        "final_proj.weight": torch.rand(6, dim),
        "final_proj.bias": torch.rand(6),
    }


def fairseq_settings(kind: str = "base", **settings: Any) -> dict[str, Any]:
    """The settings of an encoder as fairseq names them, among others."""
    large = kind == "large"
    return {
        "_name": "wav2vec2",
        "extractor_mode": "layer_norm" if large else "default",
        "encoder_layers": 3,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 4,
        "activation_fn": "gelu",
        "dropout": 0.05,
        "attention_dropout": 0.15,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.2,
        "dropout_input": 0.25,
        "layer_norm_first": large,
        "conv_feature_layers": "[(12, 10, 5)] + [(16,3,2)] * 1 + [(24, 2, 2)]",
        "conv_bias": large,
        "conv_pos": 8,
        "conv_pos_groups": 4,
        "feature_grad_mult": 0.1,
        "latent_temp": [2.0, 0.5, 0.999995],
        "mask_prob": 0.65,
        **settings,
    }


def fairseq_contents(weights: Any, settings: dict[str, Any], **task: Any) -> dict[str, Any]:
    """The parts of a file of the newer versions."""
    return {
        "args": None,
        "cfg": {"model": settings, "task": {"_name": "audio_pretraining", **task}, "common": {"seed": 1}},
        "model": weights,
        "criterion": None,
        "optimizer_history": [{"num_updates": 7, "optimizer_name": "FairseqAdam"}, {"num_updates": 400}],
        "task_state": {},
        "extra_state": {"epoch": 1, "best": 0.5},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }


def fine_tuned_names(weights: Mapping[str, Tensor], head: nn.Module) -> Weights:
    """The weights of a CTC model of fairseq around an encoder of it."""
    return {
        **{f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in weights.items()},
        "w2v_encoder.proj.weight": head.weight,
        "w2v_encoder.proj.bias": head.bias,
    }


@contextmanager
def modules(**classes: type) -> Iterator[None]:
    """Classes of toolkits that are not here, while their objects are pickled: ``modules(a__b__C=C)`` is ``a.b.C``."""
    before = set(sys.modules)
    for name, kind in classes.items():
        module, _, kind.__name__ = name.replace("__", ".").rpartition(".")
        kind.__qualname__, kind.__module__ = kind.__name__, module
        parts = module.split(".")
        for stop in range(1, len(parts) + 1):  # with the packages around it
            package = ".".join(parts[:stop])
            sys.modules.setdefault(package, types.ModuleType(package))
        setattr(sys.modules[module], kind.__name__, kind)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


class Dictionary:
    """fairseq's, as it lies in a file."""

    def __init__(self, symbols: list[str]) -> None:
        self.bos_word, self.unk_word, self.pad_word, self.eos_word = "<s>", "<unk>", "<pad>", "</s>"
        self.symbols = symbols
        self.count = [1] * len(symbols)
        self.indices = {symbol: number for number, symbol in enumerate(symbols)}
        self.bos_index, self.pad_index, self.eos_index, self.unk_index, self.nspecial = 0, 1, 2, 3, 4


class Metadata:
    """OmegaConf's, which names types."""

    def __init__(self) -> None:
        self.ref_type, self.object_type, self.optional, self.key, self.flags = Any, dict, True, None, {}


class Node:
    """A value of OmegaConf."""

    def __init__(self, value: Any, parent: Any) -> None:
        self._metadata, self._parent, self._val = Metadata(), parent, value


class Container:
    """A dictionary or list of OmegaConf."""

    def __init__(self, content: Any, parent: Any = None) -> None:
        self._metadata, self._parent, self._content = Metadata(), parent, content


def omega(value: Any, kinds: tuple[type, type, type], parent: Any = None) -> Any:
    """Settings as OmegaConf holds them, with classes for dictionaries, lists and values."""
    dictionary, sequence, node = kinds
    if isinstance(value, dict):
        container = dictionary({}, parent)
        container._content.update({key: omega(item, kinds, container) for key, item in value.items()})
        return container
    if isinstance(value, list):
        container = sequence([], parent)
        container._content.extend(omega(item, kinds, container) for item in value)
        return container
    return node(value, parent)


def namespace(settings: Mapping[str, Any]) -> argparse.Namespace:
    """Settings as older versions of fairseq have them: flat."""
    return argparse.Namespace(**settings)
