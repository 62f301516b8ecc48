"""What a frame sounds like without any learning: the log-mel spectrum of its samples or its cepstrum, as a target.

Shapes: B batch, T samples, S frames, F mel bands, N spectra a frame.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.data.audio import SAMPLE_RATE
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import normalize_waveforms

_FLOOR = 5e-5  # of the power in a band of a recording of unit variance, so that digital silence has a logarithm
EPSILON = 1e-8  # added to the variance of a recording
NUM_COEFFICIENTS = 13  # of a cepstrum, the loudness among them
NUM_NEIGHBORS = 1  # frames on each side that count with a frame's cepstrum
SLOPE = (-0.2, -0.1, 0.0, 0.1, 0.2)  # of a line through five frames
SPECTRUM_SAMPLES, SPECTRUM_HOP_SAMPLES = 400, 160  # 25 ms, every 10 ms: the usual analysis of speech


class MelBands(nn.Module):
    """The logarithm of the power in mel bands of pieces of a waveform.

    Args:
        num_samples: Of a piece.
        num_bands: Mel bands F.
        fft_samples: The piece is filled up to so many with zeros, so that every narrow band has a frequency of its own.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, num_samples: int, num_bands: int, fft_samples: int | None = None) -> None:
        super().__init__()
        self.fft_samples = fft_samples or num_samples
        self.register_buffer("window", torch.hann_window(num_samples), persistent=False)
        self.register_buffer("filters", mel_filters(self.fft_samples, num_bands), persistent=False)

    def forward(self, pieces: Tensor) -> Tensor:
        """(..., samples) of recordings of unit variance to (..., F)."""
        power = torch.fft.rfft(pieces * self.window, self.fft_samples).abs().square()
        bands: Tensor = (power @ self.filters).clamp(min=_FLOOR).log()
        return bands


class StackedLogMel(nn.Module):
    """Log-mel spectra of 25 ms every 10 ms, standardized over the recording; those of a frame stand side by side.

    As many spectra as fill an encoder's hop belong to a frame: 2 in 20 ms, 4 in 40 ms. They are centered on the samples
    that the frame sees, and the outer ones may reach past them; past the recording's ends there is silence. Every band
    has zero mean and unit variance over the recording, so neither level nor offset nor a constant channel matters.
    """

    def __init__(self, geometry: FrameGeometry, num_bands: int) -> None:
        super().__init__()
        self.geometry = geometry
        self.num_spectra = max(1, round(geometry.hop_samples / SPECTRUM_HOP_SAMPLES))
        self.dim = self.num_spectra * num_bands
        self.mel = MelBands(SPECTRUM_SAMPLES, num_bands, fft_samples=512)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Analyze (B, T) recordings, each as it would be alone.

        Returns:
            (B, S, N F) float32, 0 past an utterance's own number of frames.
        """
        geometry = self.geometry
        step = geometry.hop_samples // self.num_spectra
        reach = (self.num_spectra - 1) * step + SPECTRUM_SAMPLES
        before = (geometry.receptive_field_samples - reach) // 2  # from the frame's first sample to that of its spectra
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = normalize_waveforms(waveforms, lengths, EPSILON)
            num_frames = geometry.num_frames(waveforms.shape[1])
            num_samples = (num_frames - 1) * geometry.hop_samples + reach
            waveforms = F.pad(waveforms, (-before, num_samples + before - waveforms.shape[1]))
            bands = self.mel(waveforms.unfold(1, reach, geometry.hop_samples).unfold(2, SPECTRUM_SAMPLES, step))
            count, valid = valid_frames(bands, geometry, lengths)
            every = valid.repeat_interleave(self.num_spectra, dim=1)
            bands = standardize(bands.flatten(1, 2), count * self.num_spectra, every)  # (B, S N, F)
        return bands.view(len(waveforms), num_frames, self.dim) * valid


class LogMel(nn.Module):
    """Log-mel spectra and their changes, one for each frame of an encoder, from exactly the samples it sees.

    A recording's level and offset do not matter, and the mean of its spectra is taken away: a target shall say what is
    spoken, not how loudly or over what channel.
    """

    slope: Tensor

    def __init__(self, geometry: FrameGeometry, num_bands: int) -> None:
        super().__init__()
        self.geometry = geometry
        self.dim = 2 * num_bands
        self.mel = MelBands(geometry.receptive_field_samples, num_bands)
        self.register_buffer("slope", torch.tensor(SLOPE), persistent=False)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Analyze (B, T) recordings, each as it would be alone.

        Returns:
            (B, S, 2F) float32: the spectrum and its change a frame; what lies past an utterance's own number of frames
            repeats its last one.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = normalize_waveforms(waveforms, lengths, EPSILON)
            pieces = waveforms.unfold(1, self.geometry.receptive_field_samples, self.geometry.hop_samples)
            bands = self.mel(pieces)  # (B, S, F)
        count, valid = valid_frames(bands, self.geometry, lengths)
        bands = center(bands, count, valid)
        around = neighbors(bands, count, 2)  # (B, S, 5, F)
        return torch.cat((around[:, :, 2], slopes(around, self.slope)), dim=2)


def mel_edges(num_bands: int) -> npt.NDArray[np.float64]:
    """Return the frequencies in Hz at which bands begin and end, (num_bands + 2,): each is between three of them."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges: npt.NDArray[np.float64] = 700 * (10 ** (np.linspace(0, highest, num_bands + 2) / 2595) - 1)
    return edges


def mel_filters(num_samples: int, num_bands: int) -> Tensor:
    """Return triangles of height 1 on HTK's mel scale up to 8 kHz: (num_samples // 2 + 1, num_bands)."""
    hertz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)[:, None]
    edges = mel_edges(num_bands)
    rising = (hertz - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - hertz) / np.diff(edges)[1:]
    return torch.from_numpy(np.minimum(rising, falling).clip(min=0).astype(np.float32))


class Cepstra(nn.Module):
    """Mel cepstra and their changes, of each frame and those beside it, standardized over the recording.

    Loudness alone moves all log-mel bands at once, so that clusters of them part frames by it first of all; here every
    coefficient counts the same.
    """

    transform: Tensor

    def __init__(self, geometry: FrameGeometry, num_bands: int) -> None:
        super().__init__()
        from torchaudio.functional import create_dct

        self.log_mel = LogMel(geometry, num_bands)
        number = min(NUM_COEFFICIENTS, num_bands)
        self.register_buffer("transform", create_dct(number, num_bands, "ortho"), persistent=False)
        self.dim = 2 * number * (2 * NUM_NEIGHBORS + 1)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Analyze recordings, each as it would be alone: as `LogMel`, (B, S, ``dim``)."""
        spectra = self.log_mel(waveforms, lengths)
        count, valid = valid_frames(spectra, self.log_mel.geometry, lengths)
        with torch.autocast(waveforms.device.type, enabled=False):
            bands, changes = spectra.chunk(2, dim=2)
            cepstra = torch.cat((bands @ self.transform, changes @ self.transform), dim=2)
        return neighbors(standardize(cepstra, count, valid), count, NUM_NEIGHBORS).flatten(2)


def valid_frames(values: Tensor, geometry: FrameGeometry, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return how many of the frames in (B, S, ...) values each utterance has, (B, 1), and which, (B, S, 1) bool."""
    positions = torch.arange(values.shape[1], device=values.device).expand(values.shape[:2])
    count = torch.full_like(positions[:, :1], values.shape[1])
    if lengths is not None:
        count = geometry.num_frames(lengths)[:, None]
    return count, (positions < count)[:, :, None]


def center(values: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """Take from each channel of (B, S, C) values its mean over the frames of `valid_frames`."""
    return values - (values * valid).sum(dim=1, keepdim=True) / count[:, :, None]


def standardize(values: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """Give each channel mean 0 and variance 1 over those frames; one that never changes becomes 0."""
    values = center(values, count, valid)
    variance = (values.square() * valid).sum(dim=1, keepdim=True) / count[:, :, None]
    return values / (variance.sqrt() + 1e-3)


def neighbors(values: Tensor, count: Tensor, reach: int) -> Tensor:
    """Return each frame of (B, S, C) among those beside it: (B, S, 2 ``reach`` + 1, C).

    Beyond the first frame and the last, of ``count`` (B, 1), these are repeated.
    """
    positions = torch.arange(values.shape[1], device=values.device)
    offsets = torch.arange(-reach, reach + 1, device=values.device)
    around = torch.minimum((positions[:, None] + offsets).clamp(min=0), count[:, :, None] - 1)
    rows = torch.arange(len(values), device=values.device)[:, None, None]
    return values[rows, around]


def slopes(around: Tensor, slope: Tensor) -> Tensor:
    """Return the slopes of lines through five frames: (B, S, 5, C) weighed by (5,), which is `SLOPE`, to (B, S, C)."""
    with torch.autocast(around.device.type, enabled=False):
        return torch.einsum("bsnf,n->bsf", around, slope)


def frames_at(
    values: Tensor, count: Tensor, geometry: FrameGeometry, wanted: FrameGeometry, num_samples: int
) -> Tensor:
    """Bring frames of one geometry to the places of another's: frame t gets number floor(t x hop / other hop).

    Args:
        values: (B, P, C).
        count: (B, 1) frames of each utterance; the last one stands for those that would follow.
        geometry: Of the values.
        wanted: Of the result.
        num_samples: Of the waveforms.

    Returns:
        (B, S, C).
    """
    positions = torch.arange(int(wanted.num_frames(num_samples)), device=values.device)
    sources = torch.minimum(positions * wanted.hop_samples // geometry.hop_samples, count - 1)
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, sources]
