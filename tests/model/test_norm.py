import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.model.norm import ChannelNorm, FrameNorm, Norm, UtteranceNorm, _ValidGroupNorm

OVER_TIME = pytest.mark.parametrize("kind", [ChannelNorm, UtteranceNorm])
LENGTHS = (50, 1, 17, 32)


def make_norm(kind: type[Norm], dim: int = 6) -> Norm:
    """A norm that does something."""
    torch.manual_seed(0)
    norm = kind(dim)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def group_norm(norm: Norm, x: Tensor) -> Tensor:
    """PyTorch's, of one utterance without padding: (C, S) to the same shape."""
    if isinstance(norm, UtteranceNorm):
        return F.group_norm(x[None], 1, norm.weight, norm.bias)[0]
    if x.shape[1] == 1:  # which PyTorch refuses: a value that is its own mean
        return norm.bias[:, None]
    return F.group_norm(x[None], len(x), norm.weight, norm.bias)[0]


@OVER_TIME
class TestNormsOverTime:
    def test_are_group_norm_of_the_valid_part(self, kind: type[Norm]) -> None:
        norm, x = make_norm(kind), torch.randn(4, 6, 50) * 3 + 2
        for row, values, length in zip(norm(x, torch.tensor(LENGTHS)), x, LENGTHS, strict=True):
            torch.testing.assert_close(row[:, :length], group_norm(norm, values[:, :length]), rtol=1e-5, atol=1e-5)

    def test_gradients_are_those_of_group_norm(self, kind: type[Norm]) -> None:
        norm, alone = make_norm(kind), make_norm(kind)
        x, weight = torch.randn(4, 6, 50) * 3 + 2, torch.randn(4, 6, 50)
        padded = x.clone().requires_grad_()
        for number, length in enumerate(LENGTHS):
            weight[number, :, length:] = 0
        (norm(padded, torch.tensor(LENGTHS)) * weight).sum().backward()
        for row, gradient, factor, length in zip(x, padded.grad, weight, LENGTHS, strict=True):
            values = row[:, :length].clone().requires_grad_()
            (group_norm(alone, values) * factor[:, :length]).sum().backward()
            expected = torch.zeros_like(values) if values.grad is None else values.grad
            # A single frame's gradient of 0 is a difference of numbers of some hundreds: 1 / sqrt(epsilon).
            torch.testing.assert_close(gradient[:, :length], expected, rtol=1e-4, atol=1e-5 if length > 1 else 1e-4)
            assert not gradient[:, length:].any()
        torch.testing.assert_close(norm.weight.grad, alone.weight.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.bias.grad, alone.bias.grad, rtol=1e-4, atol=1e-5)

    def test_gradients_are_those_of_finite_differences(self, kind: type[Norm]) -> None:
        torch.manual_seed(0)
        lengths = torch.tensor([5, 7, 1])
        valid = torch.arange(7) < lengths[:, None, None]

        def normalize(*inputs: Tensor) -> Tensor:
            x, weight, bias = inputs
            return _ValidGroupNorm.apply(x, lengths, weight, bias, 4 if kind is ChannelNorm else 1, 1e-5) * valid

        inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3, 4, 7), (4,), (4,))]
        assert torch.autograd.gradcheck(normalize, inputs)

    def test_the_layout_in_memory_does_not_matter(self, kind: type[Norm]) -> None:
        norm, frames, lengths = make_norm(kind), torch.randn(4, 50, 6), torch.tensor(LENGTHS)
        transposed = frames.clone().requires_grad_()
        norm(transposed.transpose(1, 2), lengths).transpose(1, 2).square().sum().backward()
        straight = frames.transpose(1, 2).contiguous().requires_grad_()
        norm(straight, lengths).square().sum().backward()
        torch.testing.assert_close(transposed.grad, straight.grad.transpose(1, 2))

    def test_without_lengths_everything_is_valid(self, kind: type[Norm]) -> None:
        norm, x = make_norm(kind), torch.randn(4, 6, 50)
        torch.testing.assert_close(norm(x, None), norm(x, torch.full((4,), 50)), rtol=1e-5, atol=1e-5)

    def test_padding_gives_and_gets_nothing_whatever_it_holds(self, kind: type[Norm]) -> None:
        norm, x = make_norm(kind), torch.randn(2, 6, 20)
        results = []
        for filling, weight in ((0.0, 0.0), (1e4, 0.0), (0.0, 1e3)):
            padded = x.clone()
            padded[1, :, 8:] = filling
            padded.requires_grad_()
            y = norm(padded, torch.tensor([20, 8]))[1]
            (y[:, :8].square().sum() + weight * y[:, 8:].sum()).backward()
            assert padded.grad is not None
            assert padded.grad[1, :, :8].abs().min() > 0
            assert not padded.grad[1, :, 8:].any()
            assert not padded.grad[0].any()
            results.append((y[:, :8].detach(), padded.grad))
        for other in results[1:]:
            for found, expected in zip(other, results[0], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_an_utterance_without_a_frame_harms_nothing(self, kind: type[Norm]) -> None:
        norm, x = make_norm(kind), torch.randn(2, 6, 20, requires_grad=True)
        norm(x, torch.tensor([0, 20])).sum().backward()
        assert all(values.grad.isfinite().all() for values in (x, *norm.parameters()))

    def test_a_large_mean_costs_no_accuracy(self, kind: type[Norm]) -> None:
        norm, x = make_norm(kind), (torch.randn(2, 6, 3000) + 100).to(torch.float32)
        exact = [
            group_norm(norm.double(), row[:, :length].double()) for row, length in zip(x, (3000, 2000), strict=True)
        ]
        for row, expected in zip(norm.float()(x, torch.tensor([3000, 2000])), exact, strict=True):
            torch.testing.assert_close(row[:, : expected.shape[1]].double(), expected, rtol=0, atol=2e-4)

    @pytest.mark.parametrize("lengths", [None, torch.tensor([200, 150])])
    def test_statistics_are_float32(self, kind: type[Norm], lengths: Tensor | None) -> None:
        norm = make_norm(kind)
        x = (torch.randn(2, 6, 200) + 30).bfloat16()  # a sum in bfloat16 would lose the deviation
        normalized = norm(x, lengths)
        assert normalized.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(norm(x, lengths), normalized, rtol=0, atol=0)
        torch.testing.assert_close(normalized, norm(x.float(), lengths).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [None, torch.tensor([20, 8])])
def test_the_epsilon_is_the_given_one(lengths: Tensor | None) -> None:
    x = torch.randn(2, 6, 20)
    for kind, dims in ((ChannelNorm, (2,)), (UtteranceNorm, (1, 2)), (FrameNorm, (1,))):
        found = kind(6, epsilon=0.5)(x, lengths)[1, :, :8]
        valid = x[1:, :, : 20 if lengths is None else 8]
        centered = valid - valid.mean(dim=dims, keepdim=True)
        expected = centered / (centered.square().mean(dim=dims, keepdim=True) + 0.5).sqrt()
        torch.testing.assert_close(found, expected[0, :, :8], rtol=1e-4, atol=1e-5)


class TestFrameNorm:
    def test_is_layer_norm_of_each_frame_whatever_the_lengths(self) -> None:
        norm, x = make_norm(FrameNorm), torch.randn(3, 6, 20) * 3 + 2
        expected = F.layer_norm(x.transpose(1, 2), (6,), norm.weight, norm.bias).transpose(1, 2)
        torch.testing.assert_close(norm(x, None), expected)
        torch.testing.assert_close(norm(x, torch.tensor([20, 3, 11])), expected)

    def test_statistics_are_float32(self) -> None:
        norm, x = FrameNorm(64), (torch.randn(2, 64, 20) + 30).bfloat16()
        normalized = norm(x, None)
        assert normalized.dtype == torch.bfloat16
        torch.testing.assert_close(normalized, norm(x.float(), None).bfloat16(), rtol=0, atol=0)
