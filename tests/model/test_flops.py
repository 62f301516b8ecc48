"""FLOPs of operations, and what GPUs can do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from speechssl.model.flops import FlopCounter, peak_flops


def count(compute: Callable[[], Tensor]) -> tuple[int, int]:
    """FLOPs forward, and of both ways."""
    with FlopCounter() as counter:
        output = compute()
        forward = counter.flops
        output.sum().backward()
    return forward, counter.flops


def test_products_and_convolutions_count_both_ways() -> None:
    linear = nn.Linear(5, 7)
    forward = 2 * 3 * 5 * 7
    assert count(lambda: linear(torch.ones(3, 5, requires_grad=True))) == (forward, 3 * forward)
    assert count(lambda: linear(torch.ones(3, 5))) == (forward, 2 * forward)  # nobody wants the input's gradient
    linear.requires_grad_(False)
    assert count(lambda: linear(torch.ones(3, 5, requires_grad=True))) == (forward, 2 * forward)
    convolution = nn.Conv1d(4, 6, 3, stride=2)
    forward = 2 * 2 * 10 * 6 * 4 * 3
    assert count(lambda: convolution(torch.ones(2, 4, 21, requires_grad=True))) == (forward, 3 * forward)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_counts_as_its_products_whatever_computes_it(backend: SDPBackend) -> None:
    query, key, value = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 6, 6))
    forward = 2 * 2 * (2 * 3 * 5 * 6 * 8)
    with sdpa_kernel(backend):
        assert count(lambda: F.scaled_dot_product_attention(query, key, value)) == (forward, 3 * forward)


def test_an_evaluation_does_not_count() -> None:
    with FlopCounter() as counter, torch.inference_mode():
        torch.mm(torch.ones(3, 5), torch.ones(5, 7))
    assert counter.flops == 0


@pytest.mark.parametrize(
    ("gpu", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA L4", 121, 30.3),
        ("Tesla V100-PCIE-16GB", None, 14),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GeForce RTX 4090 D", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA A10G", None, None),
        ("", None, None),
    ],
)
def test_a_gpu_is_known_by_the_words_of_its_name(gpu: str, bfloat16: float | None, float32: float | None) -> None:
    for dtype, expected in ((torch.bfloat16, bfloat16), (torch.float32, float32)):
        found = peak_flops(gpu, dtype)
        assert found == (None if expected is None else pytest.approx(expected * 1e12))
