"""Statistics of the first layer without the layer, and the feature encoder that uses them."""

import pytest
import torch
from torch import Tensor

from speechssl.model import feature_encoder
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.moments import measure_recording, measure_waveforms
from speechssl.model.transformer import TransformerConfig

CONTEXT = TransformerConfig(num_layers=1, model_dim=16, num_heads=2, ffn_dim=16, position_kernel=4, position_groups=2)


def make_encoder(norm: str, normalize: bool = False, bias: bool = False) -> SpeechEncoder:
    torch.manual_seed(0)
    layers = {"dims": (16, 16, 24), "kernels": (10, 4, 3), "strides": (5, 2, 2)}
    config = EncoderConfig(
        feature_encoder=FeatureEncoderConfig(**layers, norm=norm, bias=bias),
        normalize_waveforms=normalize,
        context=CONTEXT,
    )
    encoder = SpeechEncoder(config).eval()
    for layer in encoder.feature_encoder.layers:
        if layer.norm is not None:
            torch.nn.init.normal_(layer.norm.weight)
            torch.nn.init.normal_(layer.norm.bias)
    return encoder


def hum(num_samples: int) -> Tensor:
    """Smooth and off center, so that neighboring samples say nearly the same."""
    torch.manual_seed(num_samples)
    return 0.05 + 0.2 * torch.sin(torch.arange(num_samples) / 40) + 0.01 * torch.randn(num_samples)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-5 * expected.norm())


def test_mean_and_variance_are_those_of_the_first_layer() -> None:
    encoder = make_encoder("group", bias=True)
    conv = encoder.feature_encoder.layers[0].conv
    waveforms, lengths = torch.stack([hum(3001), hum(3001).flip(0)]), torch.tensor([3001, 1804])
    moments = measure_waveforms(waveforms, lengths, encoder.geometry)
    mean, variance = moments.after_convolution(conv.weight, conv.bias)
    for row, length in enumerate(lengths):
        valid = waveforms[row, :length].double()
        assert moments.mean[row].item() == pytest.approx(valid.mean().item(), rel=1e-12)
        assert moments.variance[row].item() == pytest.approx(valid.var(correction=0).item(), rel=1e-9)
        output = torch.nn.functional.conv1d(valid[None], conv.weight.double(), conv.bias.double(), conv.stride)
        assert close(mean[row], output.mean(dim=1))
        assert close(variance[row], output.var(dim=1, correction=0))


@pytest.mark.parametrize("sizes", [(70,), (1000,), (3, 4000), (1, 2, 5000)])
def test_blocks_add_up_to_the_whole(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechssl.model.moments._BLOCK_WINDOWS", 100)
    geometry = make_encoder("group").geometry
    wave = hum(9003)
    blocks, rest = [], wave
    while len(rest):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(rest[:size])
        rest = rest[size:]
    found, expected = measure_recording(blocks, geometry), measure_waveforms(wave[None], None, geometry)
    for name in ("mean", "variance", "window_mean", "window_covariance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "normalize", "bias"),
    [("group", False, False), ("group", True, True), ("layer", True, True), ("utterance", True, False)],
)
@torch.no_grad()
def test_frames_by_given_statistics_are_those_of_each_recording_alone(
    norm: str, normalize: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_encoder, "_SLICE_FRAMES", 60)
    encoder = make_encoder(norm, normalize, bias)
    lengths = torch.tensor([4000, 60, 3001])
    waveforms = torch.zeros(3, 4000)
    for row, length in enumerate(lengths):
        waveforms[row, :length] = hum(int(length))
    moments = measure_waveforms(waveforms, lengths, encoder.geometry)
    found = encoder.extract_frames(waveforms, lengths, moments=moments)
    for row, length in enumerate(lengths):
        alone = encoder.extract_frames(waveforms[row : row + 1, :length])
        assert close(found.values[row, : alone.values.shape[1]], alone.values[0])
    assert found.lengths is not None
    assert found.lengths.tolist() == encoder.geometry.num_frames(lengths).tolist()


@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_frames_of_a_window_are_those_of_the_whole(normalize: bool) -> None:
    encoder = make_encoder("group", normalize)
    wave = torch.cat((hum(3000), 0.1 * hum(5000)))
    whole = encoder.extract_frames(wave[None]).values
    moments = measure_recording(wave.split(999), encoder.geometry)
    start, stop = encoder.geometry.span_samples(100, 199)
    window = encoder.extract_frames(wave[None, start:stop], moments=moments).values
    assert close(window, whole[:, 100:200])
    own = encoder.extract_frames(wave[None, start:stop]).values
    assert (own - whole[:, 100:200]).norm() > 0.02 * own.norm()
