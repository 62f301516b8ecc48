import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from speechssl.model.feature_encoder import ChannelNorm, FeatureEncoder, FeatureEncoderConfig, FrameNorm


def reference(encoder: FeatureEncoder, waveform: Tensor, *, norms: str) -> Tensor:
    """One waveform through the published stack, step by step: (T,) to (S, C)."""
    x = waveform[None, None, :]
    for number, layer in enumerate(encoder.layers):
        x = F.conv1d(x, layer.conv.weight, layer.conv.bias, stride=encoder.geometry.strides[number])
        if norms == "group" and number == 0:
            deviation, mean = torch.std_mean(x, dim=2, correction=0, keepdim=True)
            x = (x - mean) / (deviation.square() + 1e-5).sqrt()
            x = x * layer.norm.weight[:, None] + layer.norm.bias[:, None]
        elif norms == "layer":
            deviation, mean = torch.std_mean(x, dim=1, correction=0, keepdim=True)
            x = (x - mean) / (deviation.square() + 1e-5).sqrt()
            x = x * layer.norm.weight[:, None] + layer.norm.bias[:, None]
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return x[0].T


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_each_utterance_is_encoded_as_by_the_paper(tiny_config, padded_batch, norm: str) -> None:
    torch.manual_seed(0)
    encoder = FeatureEncoder(tiny_config(norm=norm).feature_encoder)
    for name, parameter in encoder.named_parameters():  # norms that do something
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    waveforms, lengths = padded_batch
    frames = encoder(waveforms, lengths)
    for row, waveform, length in zip(frames, waveforms, lengths.tolist(), strict=True):
        expected = reference(encoder, waveform[:length], norms=norm)
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=2e-5)
    for row, waveform in zip(encoder(waveforms), waveforms, strict=True):
        torch.testing.assert_close(row, reference(encoder, waveform, norms=norm), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_number_of_frames_is_the_geometrys(tiny_config, norm: str) -> None:
    config = tiny_config(norm=norm).feature_encoder
    encoder = FeatureEncoder(config)
    for num_samples in (35, 36, 54, 55, 74, 75, 511):
        frames = encoder(torch.randn(2, num_samples))
        assert frames.shape == (2, config.geometry.num_frames(num_samples), 24)


def test_base_model_gives_a_frame_every_20_milliseconds() -> None:
    with torch.device("meta"):
        encoder = FeatureEncoder(FeatureEncoderConfig())
        assert [encoder(torch.empty(1, n)).shape for n in (400, 719, 720, 16_000, 250_000)] == [
            (1, 1, 512),
            (1, 1, 512),
            (1, 2, 512),
            (1, 49, 512),
            (1, 781, 512),
        ]


def test_group_norm_stands_after_the_first_layer_alone(tiny_config) -> None:
    norms = [layer.norm for layer in FeatureEncoder(tiny_config(norm="group").feature_encoder).layers]
    assert [type(norm) for norm in norms] == [ChannelNorm, type(None), type(None)]


def test_layer_norm_stands_after_every_layer(tiny_config) -> None:
    norms = [layer.norm for layer in FeatureEncoder(tiny_config(norm="layer").feature_encoder).layers]
    assert [type(norm) for norm in norms] == [FrameNorm, FrameNorm, FrameNorm]


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_have_a_bias_if_asked_for(bias: bool) -> None:
    config = FeatureEncoderConfig(dims=(4, 4), kernels=(4, 2), strides=(2, 2), bias=bias)
    assert [layer.conv.bias is not None for layer in FeatureEncoder(config).layers] == [bias, bias]


def test_group_norm_makes_gain_and_offset_irrelevant(tiny_config) -> None:
    torch.manual_seed(0)
    encoder = FeatureEncoder(tiny_config(norm="group").feature_encoder)
    waveforms = torch.randn(2, 500)
    lengths = torch.tensor([500, 300])
    same = encoder(waveforms * 8 + 0.5, lengths)
    torch.testing.assert_close(same[0], encoder(waveforms, lengths)[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(same[1, :14], encoder(waveforms, lengths)[1, :14], rtol=1e-3, atol=1e-4)


class TestChannelNorm:
    def norm(self) -> ChannelNorm:
        torch.manual_seed(0)
        norm = ChannelNorm(6)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        return norm

    def test_is_group_norm_of_the_valid_part(self) -> None:
        norm, x = self.norm(), torch.randn(4, 6, 50) * 3 + 2
        lengths = [50, 1, 17, 32]
        normalised = norm(x, torch.tensor(lengths))
        for row, values, length in zip(normalised, x, lengths, strict=True):
            expected = F.group_norm(values[None, :, :length], 6, norm.weight, norm.bias) if length > 1 else None
            if expected is None:  # torch refuses a single value, which is its own mean
                expected = norm.bias[None, :, None]
            torch.testing.assert_close(row[None, :, :length], expected, rtol=1e-4, atol=1e-5)

    def test_without_lengths_everything_is_valid(self) -> None:
        norm, x = self.norm(), torch.randn(4, 6, 50)
        torch.testing.assert_close(norm(x, None), norm(x, torch.full((4,), 50)), rtol=1e-4, atol=1e-5)

    def test_padding_gets_no_gradient_and_gives_none(self) -> None:
        norm, x = self.norm(), torch.randn(2, 6, 20, requires_grad=True)
        norm(x, torch.tensor([20, 8]))[1, :, :8].square().sum().backward()
        assert x.grad is not None
        assert x.grad[1, :, :8].abs().min() > 0
        assert not x.grad[1, :, 8:].any()
        assert not x.grad[0].any()

    @pytest.mark.parametrize("lengths", [None, torch.tensor([200, 150])])
    def test_statistics_are_float32(self, lengths: Tensor | None) -> None:
        norm = self.norm()
        x = (torch.randn(2, 6, 200) + 30).bfloat16()  # a sum in bfloat16 would lose the deviation
        normalised = norm(x, lengths)
        assert normalised.dtype == torch.bfloat16
        torch.testing.assert_close(normalised, norm(x.float(), lengths).bfloat16(), rtol=0, atol=0)


class TestFrameNorm:
    def test_is_layer_norm_of_each_frame_whatever_the_lengths(self) -> None:
        norm, x = FrameNorm(6), torch.randn(3, 6, 20) * 3 + 2
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        expected = F.layer_norm(x.transpose(1, 2), (6,), norm.weight, norm.bias).transpose(1, 2)
        torch.testing.assert_close(norm(x, None), expected)
        torch.testing.assert_close(norm(x, torch.tensor([20, 3, 11])), expected)

    def test_statistics_are_float32(self) -> None:
        norm, x = FrameNorm(64), (torch.randn(2, 64, 20) + 30).bfloat16()
        normalised = norm(x, None)
        assert normalised.dtype == torch.bfloat16
        torch.testing.assert_close(normalised, norm(x.float(), None).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "values",
    [
        {"dims": (8, 8), "kernels": (3,), "strides": (2, 2)},
        {"dims": (8, 8), "kernels": (3, 3), "strides": (2,)},
        {"dims": (), "kernels": (), "strides": ()},
        {"dims": (8, 0), "kernels": (3, 3), "strides": (2, 2)},
        {"dims": (8, 8), "kernels": (3, 3), "strides": (2, -1)},
        {"gradient_scale": 0.0},
    ],
)
def test_an_impossible_stack_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FeatureEncoderConfig(**values)  # type: ignore[arg-type]
