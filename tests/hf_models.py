"""Tiny models of transformers with weights at random, of every family, and their folders."""

import json
from pathlib import Path
from typing import Any

import torch

SYMBOLS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
TINY: dict[str, Any] = {
    "conv_dim": (12, 16, 24),
    "conv_kernel": (10, 4, 2),
    "conv_stride": (5, 2, 2),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": len(SYMBOLS),
}
KERNEL = {"num_conv_pos_embeddings": 8}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2-base": ("Wav2Vec2", KERNEL),
    "wav2vec2-large": ("Wav2Vec2", KERNEL | LARGE),
    "mms": ("Wav2Vec2", KERNEL | LARGE | {"adapter_attn_dim": 6}),
    "hubert-base": ("Hubert", KERNEL),
    "hubert-large": ("Hubert", KERNEL | LARGE),
    "hubert-without-norm": ("Hubert", KERNEL | {"feat_proj_layer_norm": False}),
    "wavlm-base": ("WavLM", KERNEL | {"num_buckets": 12, "max_bucket_distance": 20}),
    "wavlm-large": ("WavLM", KERNEL | LARGE | {"num_buckets": 12, "max_bucket_distance": 20}),
    "data2vec": ("Data2VecAudio", {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}),
    "unispeech": ("UniSpeech", KERNEL),
    "unispeech-sat": ("UniSpeechSat", KERNEL | LARGE),
}


def build(case: str, head: str = "ForCTC", **changes: Any) -> Any:
    """Build a model in evaluation mode, no weight at its initial value."""
    import transformers

    name, settings = FAMILIES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(TINY | settings | changes))
    return randomize(getattr(transformers, f"{name}{head}")(config).eval())


@torch.no_grad()
def randomize(model: Any) -> Any:
    """Move each weight away from its initial value, so that each has an effect of its own."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if "codevectors" not in name:
            parameter += noise * (0.3 if parameter.dim() < 2 else 1.5 * parameter[0].numel() ** -0.5)
    return model


@torch.no_grad()
def make_talkative(model: Any) -> None:
    """Let the head say many letters, and no special units, which transformers writes as text."""
    head = model.lm_head
    states = getattr(model, model.base_model_prefix)(torch.randn(1, 32_000)).last_hidden_state[0]
    head.weight.normal_().div_(states.std())
    head.bias.copy_(-head.weight @ states.mean(dim=0))
    head.bias[1:4] = -1e4


def save(model: Any, folder: Path, *, vocabulary: Any = None, normalize: bool = True, **settings: Any) -> Path:
    """Write a folder as transformers does, with the files that go with a CTC head."""
    import transformers

    model.save_pretrained(folder)
    if type(model).__name__.endswith("ForCTC"):
        ids = vocabulary or {symbol: i for i, symbol in enumerate(SYMBOLS)}
        (folder / "vocab.json").write_text(json.dumps(ids), "utf-8")
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **settings)
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
        transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return folder
