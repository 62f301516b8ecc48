import pytest
import torch
from torch import Tensor
from torchaudio.compliance import kaldi
from torchaudio.functional import compute_deltas

from speechssl.frames import FrameGeometry
from speechssl.objective.masked_prediction import MaskedPredictionConfig
from speechssl.objective.mfcc import Mfcc


def published(waveform: Tensor) -> Tensor:
    """As fairseq analyzes a recording of unit variance: (P, 39)."""
    normalized = (waveform - waveform.mean()) / waveform.std(correction=0)
    cepstra = kaldi.mfcc(normalized[None], sample_frequency=16_000, use_energy=False).T
    changes = compute_deltas(cepstra)
    return torch.cat((cepstra, changes, compute_deltas(changes))).T


@pytest.mark.parametrize("hop", [100, 160, 320, 640])
@pytest.mark.parametrize("num_samples", [5_000, 8_000])
def test_a_frame_has_the_published_vector_that_begins_with_it(hop: int, num_samples: int) -> None:
    waveform = torch.randn(num_samples) / 20
    geometry = FrameGeometry((400,), (hop,))
    found = Mfcc(geometry, 23)(waveform[None])[0]
    vectors = published(waveform)
    assert found.shape == (geometry.num_frames(num_samples), 39)
    expected = torch.stack([vectors[frame * hop // 160] for frame in range(len(found))])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)


def test_the_last_vector_stands_for_those_that_would_follow() -> None:
    waveform = torch.randn(1_000) / 20
    found = Mfcc(FrameGeometry((40,), (40,)), 23)(waveform[None])[0]
    vectors = published(waveform)
    assert len(vectors) == 4
    torch.testing.assert_close(found[12:], vectors[3:].expand(13, -1), rtol=1e-3, atol=2e-3)


def test_padding_changes_nothing() -> None:
    lengths, hop = [8_000, 3_210, 1_111], 320
    rows = torch.randn(3, 8_000) * (torch.arange(8_000) < torch.tensor(lengths)[:, None])
    geometry = FrameGeometry((400,), (hop,))
    analyze = Mfcc(geometry, 23)
    together = analyze(rows, torch.tensor(lengths))
    for row, length, found in zip(rows, lengths, together, strict=True):
        alone = analyze(row[None, :length])[0]
        torch.testing.assert_close(found[: len(alone)], alone, rtol=1e-3, atol=2e-3)


def test_the_level_and_the_offset_do_not_matter() -> None:
    waveform, analyze = torch.randn(1, 8_000) / 5, Mfcc(FrameGeometry((400,), (320,)), 23)
    for changed in (0.01 * waveform, waveform + 0.1):
        torch.testing.assert_close(analyze(changed), analyze(waveform), rtol=0, atol=0.05)


@pytest.mark.parametrize(("kernel", "hop", "expected"), [(400, 320, 2), (650, 640, 2), (25, 20, 20), (80, 40, 9)])
def test_the_shortest_utterance_has_a_vector(kernel: int, hop: int, expected: int) -> None:
    geometry = FrameGeometry((kernel,), (hop,))
    config = MaskedPredictionConfig(spectra="mfcc", num_bands=23)
    assert config.min_frames(geometry) == expected
    assert len(Mfcc(geometry, 23)(torch.randn(1, geometry.num_samples(expected)))[0]) == expected
