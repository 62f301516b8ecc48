import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from speechssl.model.causal import CausalConfig, CausalContext

LENGTHS = (30, 17, 1, 23)


def make_network(*, kernels: tuple[int, ...] = (2, 3, 1, 4), residual: bool = True, **values: float) -> CausalContext:
    """A network whose parts all matter, for frames of 6 channels."""
    torch.manual_seed(0)
    network = CausalConfig(model_dim=8, kernels=kernels, residual=residual, **values).build(6)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network.eval()


def reference(network: CausalContext, x: Tensor, *, residual: bool) -> list[Tensor]:
    """One utterance (S, C) frame by frame: the input and the output of each layer."""
    outputs = [x]
    for layer in network.layers:
        kernel = layer.conv.kernel_size[0]
        seen = [torch.stack([x[max(frame - ago, 0)] for ago in reversed(range(kernel))], 1) for frame in range(len(x))]
        y = torch.stack([torch.einsum("dck,ck->d", layer.conv.weight, window) for window in seen]) + layer.conv.bias
        y = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt() * layer.norm.weight + layer.norm.bias
        y = y.clamp(min=0)
        if residual:
            before = x if x.shape == y.shape else x @ layer.residual.weight[:, :, 0].T
            y = (y + before) * 0.5**0.5
        outputs.append(y)
        x = y
    return outputs


@pytest.mark.parametrize("residual", [True, False])
def test_each_utterance_is_read_as_by_the_paper(residual: bool) -> None:
    network, frames = make_network(residual=residual), torch.randn(4, 30, 6)
    outputs = [*network.layer_outputs(frames, torch.tensor(LENGTHS)), network(frames, torch.tensor(LENGTHS))]
    for number, length in enumerate(LENGTHS):
        expected = reference(network, frames[number, :length], residual=residual)
        for output, layer in zip(outputs, (*expected, expected[-1]), strict=True):
            torch.testing.assert_close(output[number, :length], layer, rtol=1e-4, atol=1e-5)
    for row, values in zip(network(frames), frames, strict=True):
        torch.testing.assert_close(row, reference(network, values, residual=residual)[-1], rtol=1e-4, atol=1e-5)


def test_a_batch_equals_its_utterances() -> None:
    network, frames = make_network(kernels=tuple(range(2, 14))), torch.randn(4, 30, 6)
    for row, values, length in zip(network(frames, torch.tensor(LENGTHS)), frames, LENGTHS, strict=True):
        alone = network(values[None, :length])[0]
        assert (row[:length] - alone).norm() / alone.norm() < 1e-5


class Unnormalized(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("kernels", "residual", "seen"), [(tuple(range(2, 14)), True, 79), ((3,) * 9, False, 19), ((1,), True, 1)]
)
def test_without_norms_a_frame_sees_the_receptive_field_alone(
    kernels: tuple[int, ...], residual: bool, seen: int
) -> None:
    network = make_network(kernels=kernels, residual=residual).double()
    for layer in network.layers:
        layer.norm = Unnormalized()
        for parameter in layer.parameters():
            parameter.data.abs_()  # so that no ReLU is shut and nothing cancels
    frames = torch.rand(1, 120, 6, dtype=torch.float64, requires_grad=True)
    network(frames)[0, 100].sum().backward()
    reached = frames.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    assert reached == list(range(101 - seen, 101))


def test_with_norms_the_future_shows_through_its_statistics() -> None:
    network, frames = make_network(), torch.randn(1, 30, 6)
    later = torch.cat((frames[:, :20], 3 * frames[:, 20:]), dim=1)
    assert (network(frames)[:, :20] - network(later)[:, :20]).abs().max() > 0.01


def test_with_norms_of_frames_the_future_does_not() -> None:
    network, frames = make_network(norm="frame"), torch.randn(1, 30, 6)
    later = torch.cat((frames[:, :20], 3 * frames[:, 20:]), dim=1)
    assert torch.equal(network(frames)[:, :20], network(later)[:, :20])
    alone = network(frames[:, :25], torch.tensor([25]))
    torch.testing.assert_close(network(frames)[:, :25], alone)


def test_what_is_hidden_is_zero() -> None:
    network, frames = make_network(), torch.randn(2, 30, 6)
    mask = torch.rand(2, 30) < 0.4
    channel_mask = torch.tensor([[True, False, False, True, False, False], [False] * 5 + [True]])
    hidden = frames * ~mask[:, :, None] * ~channel_mask[:, None, :]
    assert torch.equal(next(network.layer_outputs(frames, None, mask, channel_mask)), hidden)
    assert torch.equal(network(frames, None, mask, channel_mask), network(hidden))
    assert CausalConfig(model_dim=8).mask_dim(6) == 6


def test_the_published_networks_have_their_sizes() -> None:
    with torch.device("meta"):
        large = CausalConfig().build(512)
        base = CausalConfig(kernels=(3,) * 9, residual=False).build(512)
    assert len(large.layers) == CausalConfig().num_layers == 12
    taps = 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 + 13
    assert sum(parameter.numel() for parameter in large.parameters()) == taps * 512 * 512 + 12 * 3 * 512
    assert sum(parameter.numel() for parameter in base.parameters()) == 27 * 512 * 512 + 9 * 3 * 512


def test_a_residual_connection_between_widths_is_a_map_without_bias() -> None:
    first, second, *_ = make_network().layers
    assert [tuple(parameter.shape) for parameter in first.residual.parameters()] == [(8, 6, 1)]
    assert not list(second.residual.parameters())


def test_dropout_acts_in_training_alone() -> None:
    frames = torch.randn(1, 30, 6)
    noisy, quiet = make_network(dropout=0.5), make_network()
    assert torch.equal(noisy(frames), quiet(frames))
    assert torch.equal(quiet.train()(frames), quiet.eval()(frames))
    assert not torch.equal(noisy.train()(frames), quiet(frames))


@pytest.mark.parametrize("kernels", [(), (3, 0)])
def test_impossible_kernels_are_refused(kernels: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        CausalConfig(kernels=kernels)
