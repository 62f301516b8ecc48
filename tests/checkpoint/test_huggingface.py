"""Folders of transformers, tiny, with weights at random: what they say here is what they say there."""

from pathlib import Path

import hf_models
import pytest
import torch
from torch import Tensor

from speechssl.checkpoint.reader import load_ctc

LENGTHS = torch.tensor([1_600, 1_130, 700])


def waveforms() -> Tensor:
    torch.manual_seed(1)
    rows = torch.randn(3, 1_600) * torch.tensor([0.1, 0.03, 0.3])[:, None] + 0.01
    return rows * (torch.arange(1_600) < LENGTHS[:, None])


def normalized(row: Tensor) -> Tensor:
    return (row - row.mean()) / (row.var(correction=0) + 1e-7).sqrt()


@pytest.mark.parametrize("case", hf_models.FAMILIES)
def test_every_layer_and_the_logits_of_each_recording_alone_and_padded(case: str, tmp_path: Path) -> None:
    model = hf_models.build(case)
    checkpoint = load_ctc(hf_models.save(model, tmp_path), "cpu")
    rows = waveforms()
    with torch.no_grad():
        padded = checkpoint.model(rows, LENGTHS).log_probs
        for row, length, found in zip(rows, LENGTHS.tolist(), padded, strict=True):
            theirs = model(normalized(row[:length])[None], output_hidden_states=True)
            frames = checkpoint.model.encoder.extract_frames(row[None, :length])
            layers = [*checkpoint.model.encoder.layer_outputs(frames)]
            assert len(layers) == len(theirs.hidden_states) == 4
            for ours, expected in zip(layers, theirs.hidden_states, strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
            expected = theirs.logits[0].log_softmax(dim=1)
            alone = checkpoint.model(row[None, :length]).log_probs[0]
            torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-5, atol=2e-5)
