"""The positional convolution of wav2vec 2.0's transformer.

Shapes: B batch, S frames, D model dim.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from speechssl.model import cpu
from speechssl.model.past import Past


class PositionalConvolution(nn.Module):
    """A wide grouped convolution over neighboring frames, or those before alone, added to them as their position."""

    def __init__(self, dim: int, kernel: int, groups: int, *, is_causal: bool = False) -> None:
        super().__init__()
        self.is_causal = is_causal
        padding = kernel - 1 if is_causal else kernel // 2  # what this gives beyond the last frame is cut off
        # One norm a tap over all channels, as published.
        self.conv = weight_norm(nn.Conv1d(dim, dim, kernel, padding=padding, groups=groups), dim=2)
        self._by_fourier = cpu.FourierConvolution()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the weights; torch refuses to pickle what is parametrized."""
        sizes = self.conv.in_channels, self.conv.kernel_size[0], self.conv.groups
        learns = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
        return _restored_convolution, (sizes, self.is_causal, self.state_dict(), learns, self.training)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As the table of the network says."""
        deviation = (4 / (self.conv.kernel_size[0] * self.conv.in_channels)) ** 0.5
        parts = self.conv.parametrizations.weight
        nn.init.normal_(parts.original1, std=deviation)
        parts.original0.copy_(torch.norm_except_dim(parts.original1, 2, 2))
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, S, D) to the same shape; padding is zero already."""
        x = x.transpose(1, 2)
        # A Fourier transform mixes a frame with later ones, if only by rounding errors.
        if cpu.is_inference(x) and self.conv.kernel_size[0] >= cpu.FFT_KERNEL and not self.is_causal:
            positions = self._by_fourier(x, self.conv)
        else:
            positions = self.conv(x)
        return F.gelu(positions[:, :, : x.shape[2]]).transpose(1, 2)

    def extend(self, x: Tensor, past: Past) -> Tensor:
        """(B, S, D) to the same shape, as `forward` if it is causal, after the frames before these."""
        x = x.transpose(1, 2)
        num_before = self.conv.kernel_size[0] - 1
        seen = past.extend(self, x, num_before, start=x.new_zeros(*x.shape[:2], num_before))
        return F.gelu(F.conv1d(seen, self.conv.weight, self.conv.bias, groups=self.conv.groups)).transpose(1, 2)


def _restored_convolution(
    sizes: tuple[int, int, int], is_causal: bool, weights: dict[str, Tensor], learns: dict[str, bool], training: bool
) -> PositionalConvolution:
    convolution = PositionalConvolution(*sizes, is_causal=is_causal).train(training)
    convolution.load_state_dict(weights, assign=True)
    for name, parameter in convolution.named_parameters():
        parameter.requires_grad_(learns[name])
    return convolution
