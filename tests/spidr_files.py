"""SpidR's names for a model of transformers."""

import re

import foreign
import torch
from torch import Tensor, nn

CONVOLUTIONS = [(12, 10, 5), *[(12, 3, 2)] * 4, (12, 2, 2), (24, 2, 2)]
SIZES = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 2, "num_conv_pos_embedding_groups": 16}


def make_spidr(has_biases: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    """A peer and its weights by SpidR's names, with a teacher and heads."""
    peer = foreign.make_data2vec(convolutions=CONVOLUTIONS, **SIZES)
    weights: dict[str, Tensor] = {}
    for layer in range(2):
        attention = peer.encoder.layers[layer].attention
        maps = [getattr(attention, f"{part}_proj") for part in "qkv"]
        weights[f"student.layers.{layer}.attention.qkv.weight"] = torch.cat([part.weight.data for part in maps])
        if has_biases:
            weights[f"student.layers.{layer}.attention.qkv.bias"] = torch.cat([part.bias.data for part in maps])
        else:
            for part in maps:
                part.bias.data.zero_()
    for name, tensor in peer.state_dict().items():
        name = re.sub(r"^encoder\.", "student.", name).replace("attention.out_proj", "attention.proj")
        name = re.sub(r"pos_conv_embed\.layers\.(\d+)\.conv", r"pos_conv_embed.convs.\1", name)
        if not re.search("[qkv]_proj", name):
            weights[name.replace("masked_spec_embed", "mask_embedding")] = tensor
    student = {name: tensor for name, tensor in weights.items() if name.startswith("student.")}
    weights |= {name.replace("student.", "teacher."): torch.rand_like(tensor) for name, tensor in student.items()}
    weights |= {"heads.0.0.weight": torch.rand(8, 768), "codebooks.0.counts": torch.rand(8)}
    return peer, {**weights, "current_step": torch.zeros(1, dtype=torch.int64)}
