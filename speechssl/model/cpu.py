"""What exists only because a CPU is slow: the same numbers, to rounding, by other ways than PyTorch's.

Shapes: B batch, T samples, S frames, C channels, D model dim.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.frames import FrameGeometry

FFT_KERNEL = 64  # from this width on, a convolution by Fourier transforms is faster
_DROPOUT_LEVELS = 2**16
_SLICE_FRAMES = 500  # of all rows together
_BLOCK_WINDOWS = 1 << 16  # whose products are added up at once
_SMALL_WEIGHTS = 1_000_000  # of all convolutions: below, oneDNN's code for one length costs more than it saves


def is_inference(x: Tensor) -> bool:
    """Whether a float32 tensor on a CPU needs no gradient: then the ways of this file are open.

    Not while a model is traced for another runtime or a compiler, which have their own ways.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
        return False
    return not torch.onnx.is_in_onnx_export() and not torch.compiler.is_compiling()


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014); on a CPU the probability is rounded to 1/65536.

    PyTorch draws one 64-bit number for an element, which takes a fifth of a small model's training step on a CPU.
    Here one such number decides over four elements. Compiled, it is PyTorch's own, fused with what is beside it.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of ``x`` at random and scale the others up; the identity in evaluation."""
        if not self.training or self.probability == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.probability)
        dropped = round(self.probability * _DROPOUT_LEVELS)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        scales = torch.empty_like(x, requires_grad=False)
        torch.ge(draws[: x.numel()].view(x.shape), dropped - _DROPOUT_LEVELS // 2, out=scales)  # 1 where x is kept
        return x * scales.mul_(_DROPOUT_LEVELS / (_DROPOUT_LEVELS - dropped))


def convolve_pieces(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Convolve (B, C, T) to (B, C', S); where pieces of the input do not overlap, or are of a waveform, as a product.

    The pieces are the rows of one matrix product, whose output is channels last in memory, as a norm over channels
    wants it: several times faster.
    """
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    if x.device.type != "cpu" or torch.onnx.is_in_onnx_export() or not (kernel == stride or conv.in_channels == 1):
        y: Tensor = conv(x)
        return y
    pieces = x.transpose(1, 2).unfold(1, kernel, stride)  # (B, S, C, kernel)
    weight = conv.weight
    if conv.in_channels > 1:
        pieces = pieces.transpose(2, 3)
        weight = weight.transpose(1, 2)
    return F.linear(pieces.flatten(2), weight.flatten(1), conv.bias).transpose(1, 2)


def encode_in_slices(
    waveforms: Tensor, geometry: FrameGeometry, layers: Sequence[Callable[[Tensor, None], Tensor]]
) -> Tensor:
    """Run a convolutional stack over a few hundred frames at a time, which stay in the cache and bound the memory.

    Args:
        waveforms: (B, T).
        geometry: Of the layers.
        layers: Each from (B, C, S) to (B, C', S'), without norms over time.

    Returns:
        (B, C, S).
    """
    num_frames = geometry.num_frames(waveforms.shape[1])
    slice_frames = max(1, _SLICE_FRAMES // len(waveforms))
    slices = []
    for first in range(0, num_frames, slice_frames):
        start, stop = geometry.span_samples(first, min(first + slice_frames, num_frames) - 1)
        x = waveforms[:, None, start:stop]
        for layer in layers:
            x = layer(x, None)
        slices.append(x)
    return torch.cat(slices, dim=2)


def output_statistics(conv: nn.Conv1d, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and variance over time of a convolution's output channels, without computing the output.

    The convolution is linear in the samples that it sees, so both follow from mean and covariance of these: 55 numbers
    for a kernel of 10, instead of 512 channels over 3,200 frames a second.

    Args:
        conv: Of one input channel, without padding.
        waveforms: (B, T).
        lengths: (B,) valid samples of each row; None if every row is valid throughout.

    Returns:
        (B, C) each, over the frames that see valid samples only.
    """
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    if lengths is None:
        lengths = torch.full((len(waveforms),), waveforms.shape[1])
    num_windows = ((lengths - kernel) // stride + 1).clamp(min=0)
    total = torch.zeros(len(waveforms), kernel, dtype=torch.float64)
    products = torch.zeros(len(waveforms), kernel, kernel, dtype=torch.float64)
    windows = waveforms.unfold(1, kernel, stride)  # (B, S, kernel)
    for first in range(0, windows.shape[1], _BLOCK_WINDOWS):
        some = windows[:, first : first + _BLOCK_WINDOWS].double()
        some = some * (torch.arange(first, first + some.shape[1]) < num_windows[:, None])[:, :, None]
        total += some.sum(dim=1)
        products += some.mT @ some
    count = num_windows.clamp(min=1)[:, None]
    mean = total / count
    covariance = products / count[:, :, None] - mean[:, :, None] * mean[:, None, :]
    weight = conv.weight[:, 0].double()
    output_mean = mean @ weight.T
    if conv.bias is not None:
        output_mean = output_mean + conv.bias
    variance = torch.einsum("ck,bkj,cj->bc", weight, covariance, weight).clamp(min=0)
    return output_mean.float(), variance.float()


def scaled_convolution(
    conv: nn.Conv1d, scale: Tensor, shift: Tensor, activation: Callable[[Tensor], Tensor]
) -> Callable[[Tensor, None], Tensor]:
    """Return a layer of a convolution whose output channels are scaled and shifted, by (B, C), and an activation.

    Scale and shift are part of each row's weights, so they cost nothing.
    """
    weights = scale[:, :, None, None] * conv.weight
    biases = shift if conv.bias is None else shift + scale * conv.bias

    def forward(x: Tensor, lengths: None) -> Tensor:
        rows = zip(x, weights, biases, strict=True)
        return activation(torch.stack([F.conv1d(row, weight, bias, conv.stride) for row, weight, bias in rows]))

    return forward


class FourierConvolution:
    """A wide grouped convolution by Fourier transforms of overlapping blocks: a thirtieth of the products.

    The transformed weights are kept and compared with the weights at each call. A count of changes would not do:
    fused optimizers do not raise it.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._spectra = torch.empty(0)

    def __call__(self, x: Tensor, conv: nn.Conv1d) -> Tensor:
        """Convolve (B, D, S) as ``conv`` does, whose weight is parametrized; of an even kernel a frame less."""
        kernel, groups = conv.kernel_size[0], conv.groups
        size, step = 2 * kernel, kernel + 1
        batch, dim, num_frames = x.shape
        num_blocks = -(-num_frames // step)
        left = kernel // 2
        blocks = F.pad(x, (left, (num_blocks - 1) * step + size - left - num_frames)).unfold(2, size, step)
        columns = torch.fft.rfft(blocks).permute(3, 1, 0, 2)  # (frequencies, D, B, blocks)
        columns = columns.reshape(-1, dim // groups, batch * num_blocks)
        products = self._weight_spectra(conv) @ columns  # a matrix for each frequency and group
        products = products.view(-1, dim, batch, num_blocks).permute(2, 1, 3, 0)
        assert conv.bias is not None
        output: Tensor = torch.fft.irfft(products, size)[:, :, :, :step].flatten(2) + conv.bias[:, None]
        return output

    def _weight_spectra(self, conv: nn.Conv1d) -> Tensor:
        """(frequencies x groups, D / groups, D / groups)."""
        parts = list(conv.parametrizations.weight.parameters())  # type: ignore[union-attr]
        if len(parts) != len(self._parts) or not all(map(torch.equal, parts, self._parts)):
            out_dim, in_dim, kernel = conv.weight.shape
            spectra = torch.fft.rfft(conv.weight, 2 * kernel).conj().permute(2, 0, 1)
            self._spectra = spectra.reshape(-1, out_dim // conv.groups, in_dim).resolve_conj().contiguous()
            self._parts = [part.clone() for part in parts]
        return self._spectra


@contextmanager
def small_model_training(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Train a small model in float32 on a CPU by one thread, unless OMP_NUM_THREADS is set, and plain matrix products.

    Its operations are so short that threads wait for each other longer than they save. oneDNN generates machine code
    for each new length, some milliseconds a layer, and hardly two batches have one length. NNPACK, which would take its
    place from 16 rows on, is slower than products. A large model gains more from each than it costs.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv1d)]
    num_weights = sum(weight.numel() for conv in convolutions for weight in conv.parameters())
    if device.type != "cpu" or dtype != torch.float32 or num_weights >= _SMALL_WEIGHTS:
        yield
        return
    has_onednn, num_threads = bool(torch.backends.mkldnn.enabled), torch.get_num_threads()
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.set_num_threads(num_threads)
        torch.backends.mkldnn.enabled = has_onednn  # type: ignore[assignment]
