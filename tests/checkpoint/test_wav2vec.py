"""fairseq's files of the first wav2vec, composed by hand; a model of PyTorch's own modules says what comes out."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import randomize
from wav2vec_files import Reference, wav2vec_settings

from speechssl.checkpoint.reader import load_encoder, read_model
from speechssl.errors import CheckpointError

WAVEFORMS = torch.randn(2, 700, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("is_newer", [False, True])
def test_features(tmp_path: Path, has_residual: bool, is_newer: bool) -> None:
    torch.manual_seed(0)
    peer = randomize(Reference(has_residual)).eval()
    values = wav2vec_settings(skip_connections_agg=has_residual)
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
    contents = {"model": Reference(True).state_dict(), "args": argparse.Namespace(**wav2vec_settings(**changes))}
    torch.save(contents, tmp_path / "wav2vec.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_encoder(tmp_path / "wav2vec.pt", "cpu")
    assert "\n" not in str(caught.value)
