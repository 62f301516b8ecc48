"""Normalizations of the convolutional networks; statistics see valid frames only, and are float32.

The published models take the statistics over padding too, so that a recording's features depend on what it is batched
with. Here they do not.

Shapes: B batch, C channels, S frames.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Norm(nn.Module):
    """What the norms have in common: a scale and a shift of each channel.

    Args:
        dim: Channels C.
        epsilon: What is added to the variance.
    """

    def __init__(self, dim: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
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
        return _normalize(x, lengths, self, num_groups=len(self.weight))

    def scale_and_shift(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """What each channel is multiplied by, then what is added, (B, C) each, by its mean and variance (B, C)."""
        scale = self.weight * torch.rsqrt(variance + self.epsilon)
        return scale, self.bias - mean * scale


class UtteranceNorm(Norm):
    """Group norm with one group: each utterance over all its channels and valid frames."""

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, S) to the same shape; ``lengths`` (B,) None if nothing is padding."""
        return _normalize(x, lengths, self, num_groups=1)


class FrameNorm(Norm):
    """Layer norm of each frame over its channels."""

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, C, S) to the same shape; padding does not matter to it."""
        frames = x.transpose(1, 2).float()
        return F.layer_norm(frames, self.weight.shape, self.weight, self.bias, self.epsilon).transpose(1, 2).type_as(x)


def _normalize(x: Tensor, lengths: Tensor | None, norm: Norm, num_groups: int) -> Tensor:
    if lengths is None:
        return F.group_norm(x.float(), num_groups, norm.weight, norm.bias, norm.epsilon).type_as(x)
    # For another runtime, which has no such kernel, and for a compiler, which fuses what it can look into.
    if torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling():
        return _normalize_by_masks(x.float(), lengths, norm, num_groups).type_as(x)
    y: Tensor = _ValidGroupNorm.apply(x.float(), lengths, norm.weight, norm.bias, num_groups, norm.epsilon)
    return y.type_as(x)


def _normalize_by_masks(x: Tensor, lengths: Tensor, norm: Norm, num_groups: int) -> Tensor:
    valid = (torch.arange(x.shape[2], device=x.device) < lengths[:, None]).type_as(x)[:, None, :]
    count = lengths.clamp(min=1).type_as(x)[:, None, None] * (len(norm.weight) // num_groups)

    def mean(values: Tensor) -> Tensor:
        """(B, C, S) to (B, C or 1, 1), over the group."""
        sums = (values * valid).sum(dim=2, keepdim=True)
        return (sums if num_groups == len(norm.weight) else sums.sum(dim=1, keepdim=True)) / count

    centered = x - mean(x)
    return centered * torch.rsqrt(mean(centered.square()) + norm.epsilon) * norm.weight[:, None] + norm.bias[:, None]


class _ValidGroupNorm(torch.autograd.Function):
    """Group norm over valid frames, by PyTorch's kernels for all frames: half the time of masked sums.

    Values are taken relative to a rough mean of their group, padding becomes 0. Then the mean and the mean square of
    the valid values are those of all, divided by the share of frames that is valid. Rows and channels count as the
    channels of one utterance, so that every row can have factors of its own.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, num_groups: int, epsilon: float
    ) -> Tensor:
        """Normalize x (B, C, S) in float32, of which ``lengths`` (B,) frames are valid, by weight and bias (C,)."""
        batch, dim, length = x.shape
        valid = (torch.arange(length, device=x.device) < lengths[:, None]).type_as(x)[:, None, :]
        share = lengths.clamp(min=1).type_as(x)[:, None, None] / length
        # A few frames suffice: the rough mean only has to lie so near that squares minus its square stay exact.
        some, some_valid = x[:, :, ::64], valid[:, :, ::64]
        rough = (some * some_valid).sum(dim=2) / some_valid.sum(dim=2).clamp(min=1)
        rough = rough.view(batch, num_groups, -1).mean(dim=2, keepdim=True)
        x = (x.contiguous() - rough).mul_(valid)
        y, mean, scale = torch.native_group_norm(
            x.view(1, batch * dim, length), None, None, 1, batch * dim, length, batch * num_groups, epsilon
        )
        mean, scale = mean.view_as(rough), scale.view_as(rough)
        valid_mean = mean / share
        variance = ((scale**-2 - epsilon + mean.square()) / share - valid_mean.square()).clamp(min=0)
        valid_scale = torch.rsqrt(variance + epsilon)
        factor = valid_scale * weight[:, None]
        y = y.view_as(x).mul_(factor / scale).add_(factor * (mean - valid_mean) + bias[:, None])
        ctx.save_for_backward(x, valid, share, valid_mean, valid_scale, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None, None]:  # type: ignore[no-untyped-def]
        """Return the gradients of x (B, C, S), weight (C,) and bias (C,), given that of the output (B, C, S)."""
        x, valid, share, mean, scale, weight = ctx.saved_tensors
        (batch, dim, length), num_groups = x.shape, mean.shape[1]
        # The kernel divides its sums by the number of all values: with a larger scale and a smaller weight the part
        # through the variance comes out right, and that through the mean is put right below.
        root = share.sqrt()
        dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
            (gradients[0] * valid).reshape(1, batch * dim, length),
            x.view(1, batch * dim, length),
            mean.view(1, -1),
            (scale / root).view(1, -1),
            (weight[:, None] * root).view(-1),
            1,
            batch * dim,
            length,
            batch * num_groups,
            [True, True, True],
        )
        dweight, dbias = dweight.view(batch, dim, 1), dbias.view(batch, dim, 1)
        dmean = (dbias * weight[:, None]).view(batch, num_groups, -1).mean(dim=2, keepdim=True) * scale
        dx = dx.view_as(x).sub_(dmean * (1 / share - 1) / length).mul_(valid)
        return dx, None, (dweight * root).sum(dim=(0, 2)), dbias.sum(dim=(0, 2)), None, None
