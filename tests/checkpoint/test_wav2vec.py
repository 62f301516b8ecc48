"""fairseq's files of the first wav2vec, composed by hand; a model of PyTorch's own modules says what comes out."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import randomize
from torch import Tensor, nn

from speechssl.checkpoint.reader import load_encoder, read_model
from speechssl.errors import CheckpointError

WAVEFORMS = torch.randn(2, 700, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05
CONVOLUTIONS = [(12, 10, 5), (16, 4, 2), (24, 1, 1)]
AGGREGATOR = [(20, 2, 1), (20, 3, 1), (20, 4, 1)]


class Reference(nn.Module):
    """Schneider et al., 2019, with the names of fairseq's modules."""

    def __init__(self, has_residual: bool, aggregator: list[tuple[int, int, int]] = AGGREGATOR) -> None:
        super().__init__()
        self.has_residual = has_residual
        dims = [1, *(dim for dim, _, _ in CONVOLUTIONS)]
        self.feature_extractor = nn.ModuleDict({"conv_layers": nn.ModuleList()})
        for in_dim, (dim, kernel, stride) in zip(dims, CONVOLUTIONS, strict=False):
            conv = nn.Conv1d(in_dim, dim, kernel, stride, bias=False)
            block = nn.Sequential(conv, nn.Dropout(0.0), nn.GroupNorm(1, dim), nn.ReLU())
            self.feature_extractor["conv_layers"].append(block)
        self.feature_aggregator = nn.ModuleDict({"conv_layers": nn.Sequential(), "residual_proj": nn.ModuleList()})
        in_dim = dims[-1]
        for dim, kernel, _ in aggregator:
            conv = nn.Conv1d(in_dim, dim, kernel)
            pad = nn.ReplicationPad1d((kernel - 1, 0))
            block = nn.Sequential(pad, conv, nn.Dropout(0.0), nn.GroupNorm(1, dim), nn.ReLU())
            self.feature_aggregator["conv_layers"].append(block)
            projection = nn.Conv1d(in_dim, dim, 1, bias=False) if has_residual and in_dim != dim else None
            self.feature_aggregator["residual_proj"].append(projection)
            in_dim = dim
        self.wav2vec_predictions = nn.ModuleDict({"project_to_steps": nn.ConvTranspose2d(in_dim, 24, (1, 4))})

    def forward(self, waveforms: Tensor) -> list[Tensor]:
        x = waveforms[:, None]
        for block in self.feature_extractor["conv_layers"]:
            x = block(x)
        x = (x.abs() + 1).log()
        layers = []
        parts = zip(*(self.feature_aggregator[name] for name in ("conv_layers", "residual_proj")), strict=True)
        for block, projection in parts:
            y = block(x)
            if self.has_residual:
                y = (y + (x if projection is None else projection(x))) * 0.5**0.5
            x = y
            layers.append(x.transpose(1, 2))
        return layers


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "conv_feature_layers": str(CONVOLUTIONS),
        "conv_aggregator_layers": str(AGGREGATOR),
        "aggregator": "cnn",
        "activation": "relu",
        "vq_type": "none",
        "skip_connections_agg": True,
        "log_compression": True,
        "residual_scale": 0.5,
        "prediction_steps": 4,
        **changes,
    }


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("is_newer", [False, True])
def test_features(tmp_path: Path, has_residual: bool, is_newer: bool) -> None:
    torch.manual_seed(0)
    peer = randomize(Reference(has_residual)).eval()
    values = settings(skip_connections_agg=has_residual)
    contents: dict[str, Any] = {"model": peer.state_dict(), "optimizer_history": [{"num_updates": 5}]}
    contents |= {"cfg": {"model": values, "task": {}}} if is_newer else {"args": argparse.Namespace(**values)}
    torch.save(contents, tmp_path / "wav2vec.pt")
    encoder = load_encoder(tmp_path / "wav2vec.pt", "cpu")
    with torch.no_grad():
        for number, expected in enumerate(peer(WAVEFORMS), 1):
            found = encoder.encode(WAVEFORMS, layer=number).context
            assert (found - expected).norm() <= 1e-5 * expected.norm()
    saved = read_model(tmp_path / "wav2vec.pt")
    assert (saved.description.step, saved.vocabulary) == (5, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vq_type": "gumbel"}, "vq_type"),
        ({"activation": "gelu"}, "activation"),
        ({"aggregator": "gru"}, "aggregator"),
        ({"agg_zero_pad": True}, "agg_zero_pad"),
        ({"residual_scale": 0.7}, "residual_scale"),
        ({"conv_feature_layers": None}, "conv_feature_layers"),
        ({"conv_feature_layers": "[(12, 10, 5)]"}, "expected the settings of these weights"),
        ({"conv_aggregator_layers": str([(20, 2, 1), (20, 3, 1), (20, 5, 1)])}, "expected the settings of these"),
        ({"conv_aggregator_layers": str([(20, 2, 1), (20, 3, 2), (20, 4, 1)])}, "one width and stride 1"),
        ({"skip_connections_agg": False}, r"residual_proj\.0\.weight: expected no such weight"),
    ],
)
def test_what_is_not_supported(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    contents = {"model": Reference(True).state_dict(), "args": argparse.Namespace(**settings(**changes))}
    torch.save(contents, tmp_path / "wav2vec.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_encoder(tmp_path / "wav2vec.pt", "cpu")
    assert "\n" not in str(caught.value)
