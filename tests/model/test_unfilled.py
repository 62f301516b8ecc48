"""Models whose weights come from a file draw none, and need no compiler for it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.checkpoint.reader import read_model
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.unfilled import Unfilled

# The ways in which the weights of encoders are drawn.
SMALL = {"num_layers": 1, "model_dim": 32, "num_heads": 2, "ffn_dim": 32}
KINDS: dict[str, dict[str, Any]] = {
    "wav2vec2": {"context": SMALL},
    "layer norm": {"feature_encoder": {"norm": "layer"}, "context": {**SMALL, "norm_first": True}},
    "wavlm": {"context": {**SMALL, "kind": "wavlm"}},
    "data2vec": {"context": {**SMALL, "kind": "data2vec"}},
    "apc": {"feature_encoder": {"norm": "layer"}, "context": {**SMALL, "kind": "causal_transformer"}},
    "wav2vec": {"feature_encoder": {"norm": "utterance"}, "context": {"kind": "causal"}},
}
BUILD_ALL = """
import sys
import torch
from test_unfilled import KINDS, build
from speechssl.model.unfilled import Unfilled

for kind in KINDS:
    with torch.device("meta"), Unfilled():
        build(kind)
    assert "torch._dynamo" not in sys.modules, kind
"""


def build(kind: str) -> SpeechEncoder:
    return SpeechEncoder(EncoderConfig.from_dict(KINDS[kind], kind))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_drawn(kind: str) -> None:
    before = torch.get_rng_state()
    with torch.device("meta"), Unfilled():
        model = build(kind)
    with Unfilled():
        filled = build(kind)
    assert torch.equal(torch.get_rng_state(), before)
    shapes = {name: weight.shape for name, weight in filled.state_dict().items()}
    assert {name: weight.shape for name, weight in model.state_dict().items()} == shapes
    assert {name: weight.shape for name, weight in build(kind).state_dict().items()} == shapes
    assert not torch.equal(torch.get_rng_state(), before), "outside of the context weights are drawn"


def test_loading_a_model_draws_nothing(model_folder: Path) -> None:
    before = torch.get_rng_state()
    read_model(model_folder).ctc("cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_no_compiler_is_imported() -> None:
    """It would take most of the time until a small model is there."""
    command = [sys.executable, "-c", BUILD_ALL]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
