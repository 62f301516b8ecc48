import pytest
import torch
from torch import Tensor

from speechssl.model.dropout import Dropout


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
