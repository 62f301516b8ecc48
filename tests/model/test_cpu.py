"""The ways around a slow CPU give what PyTorch's own ways give."""

import pytest
import torch
from torch import Tensor

from speechssl.model import cpu
from speechssl.model.cpu import Dropout
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.position import PositionalConvolution
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


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_zeroes_its_share_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(400, 501) + 1
    y = Dropout(probability)(x)
    zeros = y == 0
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert abs(zeros.float().mean().item() - probability) < 4 * deviation
    torch.testing.assert_close(y[~zeros], x[~zeros] / (1 - probability), rtol=1e-4, atol=0)
    assert y.mean().item() == pytest.approx(x.mean().item(), rel=0.01)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_elements_are_independent(probability: float) -> None:
    """Four elements share a draw: that must not show at any distance."""
    torch.manual_seed(0)
    number = 200_000
    dropped = (Dropout(probability)(torch.ones(number)) == 0).double()
    spectrum = torch.fft.rfft((dropped - dropped.mean()) / dropped.std())
    correlations = torch.fft.irfft(spectrum.abs().square(), number) / number
    assert correlations[0].item() == pytest.approx(1, rel=1e-3)
    assert correlations[1:].abs().max() < 6.5 / number**0.5


def test_is_deterministic_under_a_seed_and_new_at_every_call() -> None:
    dropout, x = Dropout(0.3), torch.ones(1000)
    torch.manual_seed(7)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(7)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    torch.manual_seed(8)
    assert not torch.equal(dropout(x), first)


def test_is_the_identity_in_evaluation_and_without_probability() -> None:
    x = torch.randn(5, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 0, 3), (3, 1, 5)])
def test_takes_any_size(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape) + 1
    y = Dropout(0.5)(x)
    assert y.shape == x.shape
    assert bool(((y == 0) | ((y - 2 * x).abs() < 1e-6)).all())


@pytest.mark.parametrize(
    "x",
    [torch.rand(40, 30).T + 1, torch.rand(60, 20)[::2, 1::3] + 1, (torch.rand(40, 1) + 1).expand(40, 30)],
    ids=["transposed", "strided", "expanded"],
)
def test_takes_tensors_of_any_layout(x: Tensor) -> None:
    torch.manual_seed(0)
    y = Dropout(0.5)(x)
    torch.manual_seed(0)
    assert torch.equal(y, Dropout(0.5)(x.contiguous()))
    assert 0.4 < (y == 0).float().mean() < 0.6


def test_gradient_is_that_of_the_kept_elements() -> None:
    torch.manual_seed(0)
    x = torch.rand(100, requires_grad=True)
    y = Dropout(0.25)(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y.detach() != 0) / 0.75, rtol=1e-4, atol=0)


def test_keeps_the_type() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert Dropout(0.5)(torch.ones(9, dtype=dtype)).dtype == dtype


def test_mean_and_variance_are_those_of_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_BLOCK_WINDOWS", 100)
    conv = make_encoder("group", bias=True).feature_encoder.layers[0].conv
    waveforms, lengths = torch.stack([hum(3001), hum(3001).flip(0)]), torch.tensor([3001, 1804])
    with torch.no_grad():
        mean, variance = cpu.output_statistics(conv, waveforms, lengths)
        for row, length in enumerate(lengths):
            valid = waveforms[row, :length].double()
            output = torch.nn.functional.conv1d(valid[None], conv.weight.double(), conv.bias.double(), conv.stride)
            assert close(mean[row], output.mean(dim=1))
            assert close(variance[row], output.var(dim=1, correction=0))


@pytest.mark.parametrize(
    ("norm", "normalize", "bias"),
    [("group", False, False), ("group", True, True), ("layer", True, True), ("utterance", True, False)],
)
@pytest.mark.parametrize("is_padded", [True, False])
def test_frames_in_inference_are_those_of_training(
    norm: str, normalize: bool, bias: bool, is_padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_SLICE_FRAMES", 60)
    encoder = make_encoder(norm, normalize, bias)
    lengths = torch.tensor([4000, 60, 3001] if is_padded else [4000] * 3)
    waveforms = torch.zeros(3, 4000)
    for row, length in enumerate(lengths):
        waveforms[row, :length] = hum(int(length))
    expected = encoder.extract_frames(waveforms, lengths if is_padded else None)  # with a gradient
    slices = []
    convolve = encoder.feature_encoder.layers[-1].register_forward_hook(lambda *_: slices.append(1))
    with torch.inference_mode():
        found = encoder.extract_frames(waveforms, lengths if is_padded else None)
    convolve.remove()
    assert len(slices) == (1 if norm == "utterance" else 10)
    for row, num_frames in enumerate(encoder.geometry.num_frames(lengths).tolist()):
        assert close(found.values[row, :num_frames], expected.values[row, :num_frames])
    assert (found.lengths is None) is not is_padded


def test_spectra_follow_weights_however_they_change() -> None:
    torch.manual_seed(0)
    position = PositionalConvolution(12, cpu.FFT_KERNEL, 3)
    position.reset_parameters()
    x = torch.randn(2, 90, 12)
    optimizer = torch.optim.AdamW(position.parameters(), lr=0.1, fused=True)
    weight = position.conv.parametrizations.weight

    def update() -> None:
        position(x).square().sum().backward()
        optimizer.step()

    changes = [
        update,
        lambda: weight.original0.data.mul_(2),
        lambda: weight.original1.detach()[3, 2, 5].add_(1),
        lambda: position.load_state_dict({name: 2 * value for name, value in position.state_dict().items()}),
    ]
    for change in changes:
        with torch.inference_mode():
            before = position(x)
        change()
        fresh = PositionalConvolution(12, cpu.FFT_KERNEL, 3)
        fresh.load_state_dict(position.state_dict())
        with torch.inference_mode():
            found, expected = position(x), fresh(x)
        assert torch.equal(found, expected)
        assert not torch.allclose(found, before, rtol=1e-3)


def test_spectra_are_made_once_for_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    position = PositionalConvolution(12, cpu.FFT_KERNEL, 3)
    position.reset_parameters()
    transforms: list[tuple[int, ...]] = []
    transform = torch.fft.rfft
    monkeypatch.setattr(torch.fft, "rfft", lambda x, *size: transforms.append(x.shape) or transform(x, *size))
    with torch.inference_mode():
        for _ in range(3):
            position(torch.randn(2, 90, 12))
    assert [shape for shape in transforms if len(shape) == 3] == [(12, 4, cpu.FFT_KERNEL)]
