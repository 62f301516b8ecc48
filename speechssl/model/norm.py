"""Normalisations of the convolutional networks; statistics see valid frames only, and are float32.

The published models take the statistics over padding too, so that a recording's features depend on what it is batched
with. Here they do not.

Shapes: B batch, C channels, S frames.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-5


class Norm(nn.Module):
    """What the norms have in common: a scale and a shift of each channel.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Scale by 1, shift by 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


class ChannelNorm(Norm):
    """Group norm with a group a channel: each channel over its utterance's valid frames."""

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, S) to the same shape; ``lengths`` (B,) None if nothing is padding."""
        return _normalize(x, lengths, self.weight, self.bias, num_groups=len(self.weight))


class UtteranceNorm(Norm):
    """Group norm with one group: each utterance over all its channels and valid frames."""

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, S) to the same shape; ``lengths`` (B,) None if nothing is padding."""
        return _normalize(x, lengths, self.weight, self.bias, num_groups=1)


class FrameNorm(Norm):
    """Layer norm of each frame over its channels."""

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, S) to the same shape; padding does not matter to it."""
        frames = x.transpose(1, 2).float()
        return F.layer_norm(frames, self.weight.shape, self.weight, self.bias, _EPSILON).transpose(1, 2).type_as(x)


def _normalize(x: Tensor, lengths: Tensor | None, weight: Tensor, bias: Tensor, num_groups: int) -> Tensor:
    if lengths is None:
        return F.group_norm(x.float(), num_groups, weight, bias, _EPSILON).type_as(x)
    dims = (2,) if num_groups == x.shape[1] else (1, 2)
    valid = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None, :]
    count = lengths.clamp(min=1)[:, None, None] * (x.shape[1] // num_groups)
    values = x.float()
    mean = (values * valid).sum(dim=dims, keepdim=True) / count
    centred = values - mean
    variance = (centred.square() * valid).sum(dim=dims, keepdim=True) / count
    scale = torch.rsqrt(variance + _EPSILON) * weight[:, None]
    return torch.addcmul(bias[:, None], centred, scale).type_as(x)
