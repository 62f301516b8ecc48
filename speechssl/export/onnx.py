"""A model as an ONNX graph that takes padded batches with their lengths, and as sherpa-onnx and onnx-asr want it.

Shapes: B batch, T samples, S frames, D model dim, V symbols.
"""

import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.checkpoint.saved_model import SavedModel
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.pieces import SPACE, Pieces
from speechssl.data.units import Letters
from speechssl.errors import CheckpointError
from speechssl.model.encoder import SpeechEncoder
from speechssl.terminal import print_status

Runtime = Literal["sherpa-onnx", "onnx-asr"]

MODEL_FILE, INT8_FILE = "model.onnx", "model.int8.onnx"
_SHERPA_HOP = 320  # samples from frame to frame, by which sherpa-onnx tells the time
_SHERPA_EPSILON = 1e-5  # that it adds to the variance of a recording


def write_onnx(folder: Path, saved: SavedModel, runtime: Runtime | None = None, *, int8: bool = False) -> None:
    """Write a model into an existing folder as ``model.onnx``, and what the runtime needs beside it.

    The graph has inputs ``input_values`` (B, T), as read, and ``input_lengths`` (B,) in samples, and outputs
    ``logprobs`` (B, S, V), or ``context`` (B, S, D) of a model without a head, and ``output_lengths`` (B,) in frames.
    Each row is what it would be alone. For sherpa-onnx it has ``x`` (B, T) and ``logits`` (B, S, V) alone.

    Args:
        folder: Where to.
        saved: The model.
        runtime: Who is to use it; None writes the graph as it is.
        int8: Write ``model.int8.onnx`` instead, whose matrices of the transformer and the head are 8-bit integers.

    Raises:
        CheckpointError: the runtime cannot serve this model exactly, or packages are missing.
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise CheckpointError(f"--format onnx needs the package {package}: pip install 'speechssl[onnx]'")
    if runtime is not None:
        _check(saved, runtime)
    file = folder / MODEL_FILE
    waveforms, lengths = torch.zeros(2, 2 * SAMPLE_RATE), torch.tensor([2 * SAMPLE_RATE, SAMPLE_RATE])
    if runtime == "sherpa-onnx":
        _trace(_SherpaGraph(saved).eval(), (waveforms,), ["x"], ["logits"], file)
    elif saved.vocabulary is None:
        graph = _EncoderGraph(saved.encoder("cpu")).eval()
        _trace(graph, (waveforms, lengths), ["input_values", "input_lengths"], ["context", "output_lengths"], file)
    else:
        ctc = _CTCGraph(saved, has_blank_padding=runtime == "onnx-asr").eval()
        _trace(ctc, (waveforms, lengths), ["input_values", "input_lengths"], ["logprobs", "output_lengths"], file)
    if int8:
        _quantize(file, folder / INT8_FILE)
        file.unlink()
    if runtime is not None:
        _write_symbols(folder, saved, runtime)
    elif saved.vocabulary is not None:
        saved.vocabulary.save(folder / "vocab.json")


class _EncoderGraph(nn.Module):
    def __init__(self, encoder: SpeechEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = self.encoder.extract_frames(waveforms, lengths)
        assert frames.lengths is not None
        return self.encoder.contextualize(frames), frames.lengths


class _CTCGraph(nn.Module):
    """Log probabilities.

    onnx-asr reads up to two frames beyond a row's end, where only the blank is possible, and would write special units
    out, so that these count as the blank.
    """

    def __init__(self, saved: SavedModel, *, has_blank_padding: bool) -> None:
        super().__init__()
        self.ctc = saved.ctc("cpu").model
        self.has_blank_padding = has_blank_padding
        self.join = _SpecialsJoined(saved)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        output = self.ctc(waveforms, lengths)
        log_probs = output.log_probs
        if self.has_blank_padding:
            log_probs = self.join(log_probs)
            valid = torch.arange(log_probs.shape[1]) < output.frame_lengths[:, None]
            log_probs = torch.where(valid[:, :, None], log_probs, self.join.only_blank)
        return log_probs, output.frame_lengths


class _SherpaGraph(nn.Module):
    """Log probabilities of whole recordings, which sherpa-onnx has normalized with an epsilon of its own.

    From the variance v that its normalization left, which is below 1 by the share that the epsilon has, that of the
    model's epsilon e follows: v + e / 1e-5 (1 - v). Frames longer than sherpa-onnx's are repeated.
    """

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        ctc = saved.ctc("cpu").model
        self.encoder, self.head = ctc.encoder, ctc.head
        epsilon = self.encoder.config.normalize_waveforms
        self.share = 1.0 if epsilon is True else float(epsilon) / _SHERPA_EPSILON
        self.encoder.config = self.encoder.config.model_copy(update={"normalize_waveforms": False})
        self.num_repeats = self.encoder.geometry.hop_samples // _SHERPA_HOP
        self.join = _SpecialsJoined(saved)

    def forward(self, waveforms: Tensor) -> Tensor:
        variance = waveforms.square().mean(dim=1, keepdim=True)
        waveforms = waveforms * torch.rsqrt(variance + self.share * (1 - variance))
        context = self.encoder.contextualize(self.encoder.extract_frames(waveforms))
        context = context.repeat_interleave(self.num_repeats, dim=1)  # before the head, whose V the graph states
        log_probs: Tensor = self.join(self.head(context).log_softmax(dim=2))
        return log_probs


class _SpecialsJoined(nn.Module):
    """Log probabilities (B, S, V) in which the blank stands for all special units: the greedy text stays."""

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        assert saved.vocabulary is not None
        self.only_blank = torch.full((len(saved.vocabulary),), -1e4)
        self.only_blank[saved.vocabulary.blank_id] = 0
        self.special_ids = sorted(saved.vocabulary.special_ids)
        self.is_special = torch.zeros(len(saved.vocabulary), dtype=torch.bool)
        self.is_special[self.special_ids] = True

    def forward(self, log_probs: Tensor) -> Tensor:
        if len(self.special_ids) == 1:
            return log_probs
        best = log_probs[:, :, self.special_ids].amax(dim=2, keepdim=True)
        return torch.where(self.is_special, best + self.only_blank, log_probs)


def _trace(model: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str], file: Path) -> None:
    axes = {name: {0: "batch", 1: "samples"} for name in names[:1]} | {name: {0: "batch"} for name in names[1:]}
    axes |= {name: {0: "batch", 1: "frames"} for name in outputs[:1]} | {name: {0: "batch"} for name in outputs[1:]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: sizes that are Python numbers, the same in every trace
        # By tracing: the exporter that is PyTorch's default takes half a minute for two layers.
        torch.onnx.export(
            model,
            inputs,
            str(file),
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )


def _quantize(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it advises a preparation, which changes nothing here
    try:
        # Convolutions stay: as integers they are slower and far less exact.
        quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], weight_type=QuantType.QUInt8)
    finally:
        logging.disable(logging.NOTSET)


def _check(saved: SavedModel, runtime: Runtime) -> None:
    """Refuse what a runtime would not transcribe as we do."""
    where = f"{saved.weights_file.parent}: cannot be served by {runtime}"
    units, encoder = saved.vocabulary, saved.description.encoder
    if not isinstance(units, Letters | Pieces) or units.kind == "phonemes":
        found = "none" if units is None else units.kind
        raise CheckpointError(f"{where}: expected a model with a head for letters or pieces, found {found}")
    if runtime == "sherpa-onnx":
        if not encoder.normalize_waveforms:
            raise CheckpointError(f"{where}: it normalizes every recording, and this model's are as they were read")
        if encoder.feature_encoder.geometry.hop_samples % _SHERPA_HOP:
            hop = encoder.feature_encoder.geometry.hop_samples
            raise CheckpointError(f"{where}: expected frames of a multiple of {_SHERPA_HOP} samples, found {hop}")
        return
    special = {*units.special_ids, units.delimiter_id}
    firsts = {symbol.removeprefix(SPACE)[0] for i, symbol in enumerate(units.symbols) if i not in special}
    if marks := sorted(first for first in firsts if not first.isalnum()):
        print_status(f"warning: onnx-asr leaves out the space before a word that begins with {' '.join(marks)}")


def _write_symbols(folder: Path, saved: SavedModel, runtime: Runtime) -> None:
    units = saved.vocabulary
    assert isinstance(units, Letters | Pieces)
    names = {units.blank_id: "<blk>", units.delimiter_id: SPACE}
    lines = [f"{names.get(i, symbol)} {i}\n" for i, symbol in enumerate(units.symbols)]
    if runtime == "sherpa-onnx":
        (folder / "tokens.txt").write_text("".join(lines), "utf-8")
        return
    (folder / "vocab.txt").write_text("".join(lines), "utf-8")
    hop_samples = saved.description.encoder.feature_encoder.geometry.hop_samples
    config = {"model_type": "wav2vec2-ctc", "subsampling_factor": hop_samples}
    (folder / "config.json").write_text(json.dumps(config) + "\n", "utf-8")
