import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from speechssl.model.feature_encoder import FeatureEncoder, FeatureEncoderConfig
from speechssl.model.norm import ChannelNorm, FrameNorm, UtteranceNorm

NORMS = pytest.mark.parametrize("norm", ["group", "layer", "utterance"])


def make_config(tiny_config, norm: str) -> FeatureEncoderConfig:
    """Tiny, and as published for this norm: "utterance" is wav2vec's."""
    wav2vec = {"activation": "relu", "log_compression": True} if norm == "utterance" else {}
    return tiny_config(norm=norm).feature_encoder.model_copy(update=wav2vec)


def reference(encoder: FeatureEncoder, waveform: Tensor, *, norms: str) -> Tensor:
    """One waveform through the published stack, step by step: (T,) to (S, C)."""
    x = waveform[None, None, :]
    for number, layer in enumerate(encoder.layers):
        x = F.conv1d(x, layer.conv.weight, layer.conv.bias, stride=encoder.geometry.strides[number])
        if norms == "group" and number == 0:
            deviation, mean = torch.std_mean(x, dim=2, correction=0, keepdim=True)
            x = (x - mean) / (deviation.square() + encoder.config.norm_epsilon).sqrt()
            x = x * layer.norm.weight[:, None] + layer.norm.bias[:, None]
        elif norms != "group":
            dims = (1,) if norms == "layer" else (1, 2)
            deviation, mean = torch.std_mean(x, dim=dims, correction=0, keepdim=True)
            x = (x - mean) / (deviation.square() + encoder.config.norm_epsilon).sqrt()
            x = x * layer.norm.weight[:, None] + layer.norm.bias[:, None]
        x = x.clamp(min=0) if norms == "utterance" else x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return (x.abs() + 1).log()[0].T if norms == "utterance" else x[0].T


@NORMS
@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
def test_each_utterance_is_encoded_as_by_the_paper(tiny_config, padded_batch, norm: str, epsilon: float) -> None:
    torch.manual_seed(0)
    encoder = FeatureEncoder(make_config(tiny_config, norm).model_copy(update={"norm_epsilon": epsilon}))
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


@pytest.mark.parametrize("bias", [True, False])
def test_pieces_that_do_not_overlap_are_encoded_as_by_the_paper(bias: bool) -> None:
    torch.manual_seed(0)
    config = FeatureEncoderConfig(
        dims=(6, 8, 10, 7), kernels=(7, 4, 3, 2), strides=(5, 4, 2, 2), norm="layer", bias=bias
    )
    encoder = FeatureEncoder(config)
    waveforms = torch.randn(2, 1_203)
    frames = encoder(waveforms)
    for row, waveform in zip(frames, waveforms, strict=True):
        torch.testing.assert_close(row, reference(encoder, waveform, norms="layer"), rtol=1e-4, atol=2e-5)
    gradients = torch.autograd.grad(frames.square().sum(), list(encoder.parameters()))
    rows = [reference(encoder, waveform, norms="layer").square().sum() for waveform in waveforms]
    torch.testing.assert_close(
        gradients, torch.autograd.grad(sum(rows), list(encoder.parameters())), rtol=1e-4, atol=1e-4
    )


@NORMS
def test_number_of_frames_is_the_geometrys(tiny_config, norm: str) -> None:
    config = make_config(tiny_config, norm)
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


@pytest.mark.parametrize(("norm", "kind"), [("layer", FrameNorm), ("utterance", UtteranceNorm)])
def test_other_norms_stand_after_every_layer(tiny_config, norm: str, kind: type) -> None:
    norms = [layer.norm for layer in FeatureEncoder(make_config(tiny_config, norm)).layers]
    assert [type(norm) for norm in norms] == [kind] * 3


@NORMS
def test_initialization_is_the_published_one(norm: str) -> None:
    torch.manual_seed(0)
    config = FeatureEncoderConfig(dims=(64, 96), kernels=(30, 5), strides=(2, 2), norm=norm, bias=True)
    for layer, inputs in zip(FeatureEncoder(config).layers, (30, 5 * 64), strict=True):
        weight, bias, bound = layer.conv.weight, layer.conv.bias, inputs**-0.5
        if norm == "utterance":  # PyTorch's: uniform within the bound
            assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        else:
            assert weight.abs().max().item() > 3 * bound
            assert weight.std().item() == pytest.approx(2**0.5 * bound, rel=0.05)
        assert 0.8 * bound < bias.abs().max().item() <= bound
        if layer.norm is not None:
            assert layer.norm.weight.eq(1).all()
            assert layer.norm.bias.eq(0).all()


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
