"""Files of SpidR's code, composed by hand; what the student computes is transformers' data2vec."""

from pathlib import Path

import pytest
import torch
from foreign_checks import assert_same_features
from spidr_files import make_spidr
from torch import nn

from speechssl.checkpoint.reader import load_encoder, read_model
from speechssl.errors import CheckpointError

WAVEFORMS = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05
HEARD = nn.functional.layer_norm(WAVEFORMS, WAVEFORMS.shape[1:])


@pytest.mark.parametrize("has_biases", [False, True])
@pytest.mark.parametrize("is_training_state", [False, True])
def test_features(tmp_path: Path, has_biases: bool, is_training_state: bool) -> None:
    peer, weights = make_spidr(has_biases)
    contents = weights
    if is_training_state:
        contents = {"model": {f"module.{name}": tensor for name, tensor in weights.items()}, "step": torch.zeros(1)}
    torch.save(contents, tmp_path / "spidr.pt")
    assert_same_features(tmp_path / "spidr.pt", peer, WAVEFORMS, HEARD)
    assert read_model(tmp_path / "spidr.pt").vocabulary is None


def test_damaged_weights(tmp_path: Path) -> None:
    _, weights = make_spidr(False)
    file = tmp_path / "spidr.pt"
    torch.save(weights | {"student.layers.1.attention.qkv.weight": torch.rand(2305, 768)}, file)
    with pytest.raises(CheckpointError, match=r"found 'student\.layers\.1\.attention\.qkv\.weight'"):
        load_encoder(file, "cpu")
    del weights["student.layers.1.attention.qkv.weight"]
    torch.save(weights, file)
    with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.(key|query)\.(weight|bias)"):
        load_encoder(file, "cpu")
