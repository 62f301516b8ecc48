import math
from collections import Counter

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from speechssl.model.cpu import Dropout
from speechssl.model.position import PositionalConvolution
from speechssl.model.transformer import TransformerConfig, TransformerContext, TransformerLayer

LENGTHS = (30, 17, 1, 23)
STYLES = pytest.mark.parametrize("norm_first", [False, True])


def make_network(tiny_config, **context: object) -> TransformerContext:
    """A network whose parts all matter: with the small weights of the start, attention is nearly uniform."""
    torch.manual_seed(0)
    network = tiny_config(**context).context.build(32)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5 if "norm" in name else -0.5, 1.5 if "norm" in name else 0.5)
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def attend(layer: TransformerLayer, x: Tensor) -> Tensor:
    """Self-attention of one utterance, head by head: (S, D) to (S, D)."""
    attention = layer.attention
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    width = x.shape[1] // attention.num_heads
    heads = []
    for first in range(0, x.shape[1], width):
        part = slice(first, first + width)
        weights = (query[:, part] @ key[:, part].T / math.sqrt(width)).softmax(dim=1)
        heads.append(weights @ value[:, part])
    return attention.output(torch.cat(heads, dim=1))


def feed_forward(layer: TransformerLayer, x: Tensor) -> Tensor:
    inner = layer.feed_forward.inner(x)
    return layer.feed_forward.output(inner * 0.5 * (1 + torch.erf(inner / 2**0.5)))


def reference(network: TransformerContext, x: Tensor) -> list[Tensor]:
    """One utterance (S, C): the input of the first layer, the output of each, and the final output."""
    x = network.projection(x)
    conv = network.position.conv
    kernel = conv.kernel_size[0]
    positions = F.conv1d(x.T[None], conv.weight, conv.bias, padding=kernel // 2, groups=conv.groups)[0].T[: len(x)]
    x = x + F.gelu(positions)
    if not network.norm_first:
        x = network.norm(x)
    outputs = [x]
    for layer in network.layers:
        if network.norm_first:
            x = x + attend(layer, layer.attention_norm(x))
            x = x + feed_forward(layer, layer.feed_forward_norm(x))
        else:
            x = layer.attention_norm(x + attend(layer, x))
            x = layer.feed_forward_norm(x + feed_forward(layer, x))
        outputs.append(x)
    return [*outputs, network.norm(x) if network.norm_first else x]


@STYLES
def test_each_utterance_is_transformed_as_by_the_paper(tiny_config, norm_first: bool) -> None:
    network = make_network(tiny_config, norm_first=norm_first).double()
    x = torch.randn(4, 30, 32, dtype=torch.float64)
    for lengths in (LENGTHS, None):
        frame_lengths = None if lengths is None else torch.tensor(lengths)
        outputs = [*network.layer_outputs(x, frame_lengths), network(x, frame_lengths)]
        for row, length in enumerate(lengths or (30,) * 4):
            for output, expected in zip(outputs, reference(network, x[row, :length]), strict=True):
                torch.testing.assert_close(output[row, :length], expected, rtol=1e-9, atol=1e-9)


@STYLES
def test_garbage_in_the_padding_changes_nothing(tiny_config, norm_first: bool) -> None:
    network = make_network(tiny_config, norm_first=norm_first)
    x = torch.randn(4, 30, 32)
    valid = torch.arange(30) < torch.tensor(LENGTHS)[:, None]
    garbage = torch.where(valid[:, :, None], x, 1e4 * torch.randn(4, 30, 32))
    expected = network(x, torch.tensor(LENGTHS))[valid]
    assert torch.equal(network(garbage, torch.tensor(LENGTHS))[valid], expected)


@STYLES
def test_padding_gets_no_gradient(tiny_config, norm_first: bool) -> None:
    network = make_network(tiny_config, norm_first=norm_first)
    x = torch.randn(2, 30, 32, requires_grad=True)
    network(x, torch.tensor([30, 12]))[1, :12].square().sum().backward()
    assert x.grad is not None
    assert x.grad[1, :12].abs().amax(dim=1).min() > 0
    assert not x.grad[1, 12:].any()
    assert not x.grad[0].any()


@STYLES
def test_feed_forward_outputs_are_what_the_parts_add(tiny_config, norm_first: bool) -> None:
    network = make_network(tiny_config, norm_first=norm_first, dropout=0.5, layer_drop=0.5).double()
    x, frame_lengths = torch.randn(4, 30, 32, dtype=torch.float64), torch.tensor(LENGTHS)
    inputs = list(network.layer_outputs(x, frame_lengths))
    found = list(network.feed_forward_outputs(x, frame_lengths))
    assert len(found) == len(network.layers)
    for layer, before, output in zip(network.layers, inputs, found, strict=False):
        attended = layer.attention_norm(before) if norm_first else before
        bias = network.attention_bias(x, torch.arange(30) < frame_lengths[:, None])
        after = before + layer.attention(attended, bias)
        expected = feed_forward(layer, layer.feed_forward_norm(after) if norm_first else layer.attention_norm(after))
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(output[row, :length], expected[row, :length], rtol=1e-9, atol=1e-9)


def test_what_no_feed_forward_output_depends_on_has_no_gradient(tiny_config) -> None:
    for norm_first, adapter_dim in ((False, None), (True, None), (True, 4)):
        network = make_network(tiny_config, norm_first=norm_first, adapter_dim=adapter_dim).train()
        torch.stack(list(network.feed_forward_outputs(torch.randn(1, 30, 32)))).sum().backward()
        unread = {id(parameter) for module in network.after_last_feed_forward for parameter in module.parameters()}
        assert unread == {id(parameter) for parameter in network.parameters() if parameter.grad is None}


def test_an_utterance_without_frames_spoils_no_other(tiny_config) -> None:
    network = make_network(tiny_config)
    x = torch.randn(2, 30, 32)
    both = network(x, torch.tensor([30, 0]))
    torch.testing.assert_close(both[0], network(x[:1], torch.tensor([30]))[0], rtol=1e-5, atol=1e-5)


def test_attention_adds_a_bias_to_its_scores(tiny_config) -> None:
    layer = make_network(tiny_config).layers[0]
    x, bias = torch.randn(1, 30, 32), torch.randn(4, 30, 30)
    query, key, value = (
        projection(x[0]).view(30, 4, 8).transpose(0, 1)
        for projection in (layer.attention.query, layer.attention.key, layer.attention.value)
    )
    weights = (query @ key.transpose(1, 2) / 8**0.5 + bias).softmax(dim=2)
    expected = layer.attention.output((weights @ value).transpose(0, 1).flatten(1))
    torch.testing.assert_close(layer.attention(x, bias[None])[0], expected, rtol=1e-4, atol=1e-5)


class TestHiding:
    def test_hidden_frames_are_the_mask_embedding(self, tiny_config) -> None:
        network = make_network(tiny_config)
        frames, mask = torch.randn(4, 30, 32), torch.rand(4, 30) < 0.4
        expected = network.projection(frames)
        expected[mask] = network.mask_embedding
        found = network(frames, torch.tensor(LENGTHS), mask)
        network.projection = torch.nn.Identity()
        assert torch.equal(found, network(expected, torch.tensor(LENGTHS)))

    def test_masked_channels_are_zero_in_hidden_frames_too(self, tiny_config) -> None:
        network = make_network(tiny_config)
        frames, mask, channel_mask = torch.randn(4, 30, 32), torch.rand(4, 30) < 0.4, torch.rand(4, 32) < 0.3
        expected = network.projection(frames)
        expected[mask] = network.mask_embedding
        found = network(frames, None, mask, channel_mask)
        network.projection = torch.nn.Identity()
        assert torch.equal(found, network(expected * ~channel_mask[:, None, :]))


class TestPositionalConvolution:
    @pytest.mark.parametrize("kernel", [1, 4, 7, 8])
    def test_keeps_the_number_of_frames(self, kernel: int) -> None:
        position = PositionalConvolution(8, kernel, 2)
        for num_frames in (1, 2, 20):
            assert position(torch.randn(3, num_frames, 8)).shape == (3, num_frames, 8)

    @pytest.mark.parametrize(("kernel", "before", "after"), [(8, 4, 3), (7, 3, 3), (4, 2, 1)])
    def test_frame_sees_its_neighbors(self, kernel: int, before: int, after: int) -> None:
        position = PositionalConvolution(8, kernel, 2)
        x = torch.randn(1, 40, 8, requires_grad=True)
        position(x)[0, 20].sum().backward()
        assert x.grad is not None
        seen = x.grad[0].abs().amax(dim=1).nonzero().flatten().tolist()
        assert seen == list(range(20 - before, 20 + after + 1))

    def test_groups_do_not_mix(self) -> None:
        x = torch.randn(1, 10, 8, requires_grad=True)
        PositionalConvolution(8, 4, 2)(x)[..., :4].sum().backward()
        assert x.grad is not None
        assert x.grad[..., :4].any()
        assert not x.grad[..., 4:].any()

    def test_weight_has_one_norm_a_tap(self) -> None:
        conv = PositionalConvolution(8, 6, 2).conv
        norms, directions = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
        assert norms.shape == (1, 1, 6)
        assert directions.shape == (8, 4, 6)
        with torch.no_grad():
            norms.copy_(torch.arange(1.0, 7.0).view(1, 1, 6))
        torch.testing.assert_close(conv.weight.square().sum(dim=(0, 1)).sqrt(), torch.arange(1.0, 7.0))


class TestNoise:
    def test_there_is_none_without_probabilities(self, tiny_config) -> None:
        network = make_network(tiny_config)
        x = torch.randn(2, 20, 32)
        torch.testing.assert_close(network.train()(x), network.eval()(x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "name", ["input_dropout", "dropout", "attention_dropout", "activation_dropout", "layer_drop"]
    )
    def test_each_probability_acts_in_training_alone(self, tiny_config, name: str) -> None:
        quiet, noisy = make_network(tiny_config), make_network(tiny_config, **{name: 0.5})
        x = torch.randn(2, 20, 32)
        assert torch.equal(noisy(x), quiet(x))
        noisy.train()
        torch.manual_seed(0)
        assert not torch.allclose(noisy(x), quiet(x), atol=1e-2)

    def test_dropout_stands_where_the_paper_has_it(self, tiny_config) -> None:
        network = make_network(tiny_config)
        calls: Counter[str] = Counter()
        for name, module in network.named_modules():
            if isinstance(module, Dropout):
                module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        network(torch.randn(2, 20, 32))
        each = {"dropout": 2, "feed_forward.dropout": 1}
        layers = {f"layers.{number}.{name}": count for number in range(2) for name, count in each.items()}
        assert calls == {"input_dropout": 1, "dropout": 1} | layers

    def test_layer_drop_leaves_out_its_share_of_the_layers(self, tiny_config) -> None:
        network = make_network(tiny_config, layer_drop=0.3, num_layers=3).train()
        x = torch.randn(1, 4, 32)
        with torch.no_grad():
            counts = [0, 0]
            for _ in range(600):
                start, after_first, *_ = network.layer_outputs(x)
                counts[torch.equal(after_first, start)] += 1
        assert abs(counts[1] / 600 - 0.3) < 4 * (0.3 * 0.7 / 600) ** 0.5

    def test_every_parameter_has_a_gradient_when_its_layer_is_left_out(self, tiny_config) -> None:
        network = make_network(tiny_config, layer_drop=0.999).train()
        torch.manual_seed(0)
        x = torch.randn(1, 10, 32)
        output = network(x)
        assert torch.equal(output, next(network.layer_outputs(x))), "both layers were to be left out"
        output.square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()) != name.startswith(("layers.", "mask_embedding")), name


@pytest.mark.parametrize("kernel", [64, 65])
@pytest.mark.parametrize("num_frames", [1, 64, 65, 66, 300])
def test_positions_by_fourier_transforms_are_those_of_the_convolution(kernel: int, num_frames: int) -> None:
    convolution = PositionalConvolution(12, kernel, 3)
    convolution.reset_parameters()
    x = torch.randn(2, num_frames, 12)
    for _ in range(2):  # with other weights too
        torch.nn.init.normal_(convolution.conv.bias)
        expected = convolution(x)  # with a gradient, so by the convolution itself
        calls = []
        handle = convolution.conv.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        with torch.inference_mode():
            found = convolution(x)
        handle.remove()
        assert not calls
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for part in convolution.conv.parametrizations.weight.parameters():
                part.mul_(1.5)


@pytest.mark.parametrize(
    "values",
    [{"model_dim": 96, "num_heads": 7}, {"model_dim": 24, "num_heads": 4}, {"layer_drop": 1.0}, {"num_layers": 0}],
)
def test_an_impossible_network_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TransformerConfig(**values)  # type: ignore[arg-type]
