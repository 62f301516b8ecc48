"""Mel-frequency cepstral coefficients as Kaldi computes them: what the first iteration of HuBERT clusters.

Shapes: B batch, T samples, S frames of the encoder, P frames of 10 ms, F mel bands.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.audio import SAMPLE_RATE
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import normalize_waveforms
from speechssl.objective.targets import EPSILON, NUM_COEFFICIENTS, SLOPE, frames_at, neighbors, slopes, valid_frames

MFCC_GEOMETRY = FrameGeometry((400,), (160,))  # 25 ms every 10 ms
_NUM_FFT = 512
_LOWEST_HERTZ = 20.0
_PRE_EMPHASIS = 0.97
_LIFTER = 22
_FLOOR = torch.finfo(torch.float32).eps  # of the power in a band


class Mfcc(nn.Module):
    """13 coefficients every 10 ms, their changes and the changes of these, one vector for each frame of an encoder.

    They are those of torchaudio's ``compliance.kaldi.mfcc``, as fairseq has them, of a recording that was brought to
    unit variance first, so that its level does not matter. The encoder's frame t has the vector number
    floor(t x hop / 160), which begins at the same sample or up to 10 ms before it.
    """

    window: Tensor
    filters: Tensor
    transform: Tensor
    slope: Tensor

    def __init__(self, geometry: FrameGeometry, num_bands: int) -> None:
        super().__init__()
        from torchaudio.compliance.kaldi import get_mel_banks
        from torchaudio.functional import create_dct

        self.geometry = geometry
        number = min(NUM_COEFFICIENTS, num_bands)
        self.dim = 3 * number
        window = torch.hann_window(MFCC_GEOMETRY.receptive_field_samples, periodic=False).pow(0.85)  # Povey's
        filters, _ = get_mel_banks(num_bands, _NUM_FFT, SAMPLE_RATE, _LOWEST_HERTZ, 0.0, 100.0, -500.0, 1.0)
        lifter = 1 + _LIFTER / 2 * torch.sin(math.pi * torch.arange(number) / _LIFTER)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", F.pad(filters, (0, 1)).T.contiguous(), persistent=False)
        self.register_buffer("transform", create_dct(number, num_bands, "ortho") * lifter, persistent=False)
        self.register_buffer("slope", torch.tensor(SLOPE), persistent=False)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Analyze (B, T) recordings of 25 ms or more, each as it would be alone.

        Returns:
            (B, S, 3 x 13) float32; what lies past an utterance's own number of frames repeats its last ones.
        """
        cepstra = self._cepstra(normalize_waveforms(waveforms, lengths, EPSILON))
        count, _ = valid_frames(cepstra, MFCC_GEOMETRY, lengths)
        changes = slopes(neighbors(cepstra, count, 2), self.slope)
        vectors = torch.cat((cepstra, changes, slopes(neighbors(changes, count, 2), self.slope)), dim=2)
        return frames_at(vectors, count, MFCC_GEOMETRY, self.geometry, waveforms.shape[1])

    def _cepstra(self, waveforms: Tensor) -> Tensor:
        """(B, T) to (B, P, 13)."""
        with torch.autocast(waveforms.device.type, enabled=False):
            pieces = waveforms.float().unfold(1, MFCC_GEOMETRY.receptive_field_samples, MFCC_GEOMETRY.hop_samples)
            pieces = pieces - pieces.mean(dim=2, keepdim=True)
            before = torch.cat((pieces[:, :, :1], pieces[:, :, :-1]), dim=2)
            pieces = (pieces - _PRE_EMPHASIS * before) * self.window
            power = torch.fft.rfft(pieces, _NUM_FFT).abs().square()
            cepstra: Tensor = (power @ self.filters).clamp(min=_FLOOR).log() @ self.transform
        return cepstra
