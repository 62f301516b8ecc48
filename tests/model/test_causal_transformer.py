"""Nothing of the future reaches a frame, and otherwise the network is as any transformer."""

import copy
import pickle
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from speechssl.model.causal import CausalConfig
from speechssl.model.causal_transformer import CausalTransformerConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import PositionalConvolution, TransformerConfig

SIZES: dict[str, Any] = {"num_layers": 3, "model_dim": 32, "num_heads": 4, "ffn_dim": 48, "position_groups": 4}
QUIET = {"input_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0}
FEATURES = FeatureEncoderConfig(dims=(12, 16, 24), kernels=(10, 4, 2), strides=(5, 2, 2), norm="layer", bias=True)


def make_encoder(*, kernel: int = 8, **values: Any) -> SpeechEncoder:
    torch.manual_seed(0)
    context = CausalTransformerConfig(**(SIZES | QUIET | {"position_kernel": kernel} | values))
    return SpeechEncoder(EncoderConfig(feature_encoder=FEATURES, context=context)).eval()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("kernel", [1, 8, 9, 64])  # the last is wide enough for Fourier transforms
@pytest.mark.parametrize("needs_gradients", [False, True])
def test_a_frame_does_not_know_the_future(kernel: int, norm_first: bool, needs_gradients: bool) -> None:
    encoder = make_encoder(kernel=kernel, norm_first=norm_first)
    geometry = encoder.geometry
    waveforms = torch.randn(2, 3000)
    with torch.set_grad_enabled(needs_gradients):
        before = [*encoder.layer_outputs(encoder.extract_frames(waveforms)), encode(encoder, waveforms)]
        for frame in (0, 1, 40, 100):
            changed = waveforms.clone()
            end = geometry.span_samples(0, frame)[1]
            changed[:, end:] = 3 * torch.randn(2, 3000 - end)
            after = [*encoder.layer_outputs(encoder.extract_frames(changed)), encode(encoder, changed)]
            for old, new in zip(before, after, strict=True):
                assert torch.equal(old[:, : frame + 1], new[:, : frame + 1]), frame
                assert not torch.isclose(old[:, frame + 1 :], new[:, frame + 1 :]).all(dim=2).any(), frame


def encode(encoder: SpeechEncoder, waveforms: Tensor) -> Tensor:
    return encoder.contextualize(encoder.extract_frames(waveforms))


def test_a_frame_knows_all_of_the_past() -> None:
    """Through attention; and the convolution alone sees its kernel."""
    encoder = make_encoder(kernel=5)
    frames = torch.randn(1, 60, 24, requires_grad=True)
    encoder.context(frames)[0, 40].square().sum().backward()
    assert frames.grad is not None
    assert frames.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == list(range(41))
    convolution = encoder.context.position
    x = torch.randn(1, 60, 32, requires_grad=True)
    convolution(x)[0, 40].square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist() == list(range(36, 41))


def test_positions_and_attention_are_computed_frame_by_frame() -> None:
    torch.manual_seed(0)
    convolution = PositionalConvolution(8, 4, 2, is_causal=True)
    convolution.reset_parameters()
    x = torch.randn(1, 10, 8)
    padded = torch.cat((torch.zeros(1, 3, 8), x), dim=1)
    for frame in range(10):
        window = padded[0, frame : frame + 4].T.unflatten(0, (2, 4))  # (groups, channels, kernel)
        weight = convolution.conv.weight.unflatten(0, (2, 4))
        expected = torch.einsum("gock,gck->go", weight, window).flatten() + convolution.conv.bias
        torch.testing.assert_close(convolution(x)[0, frame], F.gelu(expected), rtol=1e-4, atol=1e-5)

    attention = make_encoder().context.layers[0].attention
    x = torch.randn(1, 10, 32)
    for frame in range(10):
        so_far = x[:, : frame + 1]
        query, key, value = (
            part(so_far).view(-1, 4, 8).transpose(0, 1) for part in (attention.query, attention.key, attention.value)
        )
        weights = (query[:, -1:] @ key.mT / 8**0.5).softmax(dim=2)
        expected = attention.output((weights @ value).flatten())
        torch.testing.assert_close(attention(x, None)[0, frame], expected, rtol=1e-4, atol=1e-5)


def test_a_beginning_is_encoded_as_by_itself() -> None:
    """What a stream will rest on."""
    encoder, waveforms = make_encoder(), torch.randn(1, 3000)
    whole = encode(encoder, waveforms)
    for num_samples in (100, 777, 2000):
        beginning = encode(encoder, waveforms[:, :num_samples])
        torch.testing.assert_close(beginning, whole[:, : beginning.shape[1]], rtol=1e-4, atol=1e-5)


def test_a_padded_batch_is_its_recordings_one_by_one(padded_batch: tuple[Tensor, Tensor]) -> None:
    waveforms, lengths = padded_batch
    encoder = make_encoder()
    torch.manual_seed(1)
    mask = torch.rand(5, encoder.geometry.num_frames(1000)) < 0.3
    frames = encoder.extract_frames(waveforms, lengths)
    together = encoder.contextualize(frames, mask)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder.extract_frames(waveforms[row : row + 1, :length])
        num_frames = alone.values.shape[1]
        expected = encoder.contextualize(alone, mask[row : row + 1, :num_frames])[0]
        torch.testing.assert_close(together[row, :num_frames], expected, rtol=1e-4, atol=1e-5)


def test_only_what_it_may_see_differs_from_a_transformer() -> None:
    """The same weights, and for one frame, which has neither past nor future, the same output."""
    causal = make_encoder(kernel=1).context
    usual = TransformerConfig(**(SIZES | QUIET | {"position_kernel": 1})).build(24).eval()
    usual.load_state_dict(causal.state_dict())
    frames = torch.randn(1, 30, 24)
    torch.testing.assert_close(causal(frames[:, :1]), usual(frames[:, :1]))
    assert not torch.isclose(causal(frames)[0, :-1], usual(frames)[0, :-1]).all(dim=1).any()


def test_copies_and_pickles_are_causal_too() -> None:
    encoder, waveforms = make_encoder(), torch.randn(1, 1000)
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(encode(copied, waveforms), encode(encoder, waveforms))


@pytest.mark.parametrize("norm", ["group", "utterance"])
def test_a_feature_encoder_that_hears_the_whole_recording_is_refused(norm: Any) -> None:
    features = FEATURES.model_copy(update={"norm": norm})
    for context in (CausalTransformerConfig(), CausalConfig(norm="frame")):
        with pytest.raises(
            ValidationError, match=rf'needs feature_encoder.norm "layer": "{norm}" normalizes over the whole'
        ):
            EncoderConfig(feature_encoder=features, context=context)
    EncoderConfig(feature_encoder=features, context=CausalConfig())  # as wav2vec's own


def test_normalization_tells_a_frame_level_and_offset_of_the_whole_and_nothing_else() -> None:
    encoder, waveforms = make_encoder(), torch.randn(1, 3000)
    normalized = SpeechEncoder(encoder.config.model_copy(update={"normalize_waveforms": 1e-8})).eval()
    normalized.load_state_dict(encoder.state_dict())
    other = torch.cat((waveforms[:, :1000], waveforms[:, 1000:].flip(1)), dim=1)  # another future, the same two numbers
    louder = torch.cat((waveforms[:, :1000], 2 * waveforms[:, 1000:]), dim=1)
    num_frames = encoder.geometry.num_frames(1000)
    expected = encode(normalized, waveforms)[:, :num_frames]
    torch.testing.assert_close(encode(normalized, other)[:, :num_frames], expected, rtol=1e-4, atol=1e-5)
    assert (encode(normalized, louder)[:, :num_frames] - expected).abs().max() > 0.01
