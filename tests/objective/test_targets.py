import pytest
import torch
from librosa.filters import mel

from speechssl.objective.targets import mel_filters


@pytest.mark.parametrize(("num_samples", "num_bands"), [(400, 80), (400, 40), (640, 23), (401, 40)])
def test_the_filters_are_those_of_librosa_bit_for_bit(num_samples: int, num_bands: int) -> None:
    expected = mel(sr=16_000, n_fft=num_samples, n_mels=num_bands, htk=True, norm=None)
    assert torch.equal(mel_filters(num_samples, num_bands), torch.from_numpy(expected.T))
