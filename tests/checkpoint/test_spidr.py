"""Files of SpidR's code, composed by hand; what the student computes is transformers' data2vec."""

import re
from pathlib import Path

import foreign
import pytest
import torch
from torch import Tensor, nn

from speechssl.checkpoint.reader import load_encoder, read_model
from speechssl.errors import CheckpointError

WAVEFORMS = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05
HEARD = nn.functional.layer_norm(WAVEFORMS, WAVEFORMS.shape[1:])
CONVOLUTIONS = [(12, 10, 5), *[(12, 3, 2)] * 4, (12, 2, 2), (24, 2, 2)]
SIZES = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 2, "num_conv_pos_embedding_groups": 16}


def make(has_biases: bool) -> tuple[nn.Module, dict[str, Tensor]]:
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


@pytest.mark.parametrize("has_biases", [False, True])
@pytest.mark.parametrize("is_training_state", [False, True])
def test_features(tmp_path: Path, has_biases: bool, is_training_state: bool) -> None:
    peer, weights = make(has_biases)
    contents = weights
    if is_training_state:
        contents = {"model": {f"module.{name}": tensor for name, tensor in weights.items()}, "step": torch.zeros(1)}
    torch.save(contents, tmp_path / "spidr.pt")
    foreign.assert_same_features(tmp_path / "spidr.pt", peer, WAVEFORMS, HEARD)
    assert read_model(tmp_path / "spidr.pt").vocabulary is None


def test_damaged_weights(tmp_path: Path) -> None:
    _, weights = make(False)
    file = tmp_path / "spidr.pt"
    torch.save(weights | {"student.layers.1.attention.qkv.weight": torch.rand(2305, 768)}, file)
    with pytest.raises(CheckpointError, match=r"found 'student\.layers\.1\.attention\.qkv\.weight'"):
        load_encoder(file, "cpu")
    del weights["student.layers.1.attention.qkv.weight"]
    torch.save(weights, file)
    with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.(key|query)\.(weight|bias)"):
        load_encoder(file, "cpu")
