"""Recordings in, features out: the outputs of an encoder's layers at each frame, and when the frame is."""

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from speechssl.checkpoint.reader import load_encoder, read_model
from speechssl.data.audio import SAMPLE_RATE
from speechssl.errors import AudioError, ConfigError, SpeechSSLError
from speechssl.files import ordinary_permissions, replaced_file
from speechssl.frames import FrameGeometry
from speechssl.model.device import Precision
from speechssl.model.encoder import SpeechEncoder
from speechssl.objective.clusters import LayerDescription, describe_layer
from speechssl.terminal import count, print_error, print_status
from speechssl.transcribe.inference import Inference, Outputs, Source, make_results
from speechssl.transcribe.inputs import find_inputs, spooled_stdin
from speechssl.transcribe.outputs import prepare_file
from speechssl.transcribe.windows import cut_windows

SUFFIXES = (".safetensors", ".npz")

Layer = int | str | None  # from 0, the input of the first; "all"; None is the final output of the encoder
Array = npt.NDArray[Any]


def extract_files(
    model: Path,
    files: Sequence[str],
    layer: str | None,
    output: Path,
    device: str | None = None,
    precision: Precision | None = None,
    language: str | None = None,
) -> bool:
    """Write the features of recordings into one file, as the command does.

    All of them are in memory until the file is written. A recording of more than a minute is encoded in the windows in
    which it would be transcribed.

    Args:
        model: A model folder or a training run, of any kind.
        files: As for `find_inputs`.
        layer: A number from 0 (the input of the first layer), "all", or None for the final output.
        output: A ``.safetensors`` or ``.npz`` file, written atomically. By the path of each recording it has features
            (S, D) float32, in ``path:times`` the centers of the frames (S,) float64 in seconds; with all layers,
            ``path:0``, ``path:1`` and so on instead of ``path``. Metadata: ``model``, ``layer``, ``hop_seconds``
            (npz: a JSON object in ``__metadata__``).
        device, precision, language: As for `Transcriber.load`.

    Returns:
        Whether all recordings went well; each failure costs a line on stderr.
    """
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"{output}: expected a name that ends in {' or '.join(SUFFIXES)}, found {output.name!r}")
    prepare_file(output)
    inputs, failures = find_inputs(files)
    for failure in failures:
        print_error(failure)
    encoder = load_encoder(model, device, language)
    inference = make_inference(encoder, _parse_layer(layer, encoder.config.context.num_layers), precision)
    arrays: dict[str, Array] = {}
    num_failed = len(failures)
    with spooled_stdin(inputs) as readable:
        encoded = encode_whole(inference, ((file.label, file.open) for file in readable))
        for file, features in zip(inputs, encoded, strict=True):
            if isinstance(features, SpeechSSLError):
                print_error(features)
                num_failed += 1
                continue
            name = _as_utf8(file.path)
            names = [f"{name}:{number}" for number in range(len(features))] if layer == "all" else [name]
            arrays |= zip(names, (tensor.numpy() for tensor in features), strict=True)
            arrays[f"{name}:times"] = frame_times(encoder.geometry, len(features[0]))
    if arrays:
        hop_seconds, layer_name = encoder.geometry.hop_samples / SAMPLE_RATE, "final" if layer is None else layer
        metadata = {"model": _as_utf8(str(model)), "layer": layer_name, "hop_seconds": str(hop_seconds)}
        _write(output, arrays, {"format": "speechssl-features"} | metadata)
    print_status(f"{count(len(inputs) + len(failures), 'file')}, {num_failed} failed, on {inference.describe()}")
    return not num_failed


def make_inference(encoder: SpeechEncoder, layer: Layer, precision: Precision | None = None) -> Inference:
    """Prepare an encoder, in evaluation mode, to give the output of a layer, or of all of them in one pass."""

    def represent(waveforms: Tensor, lengths: Tensor | None) -> Sequence[Tensor]:
        frames = encoder.extract_frames(waveforms, lengths)
        if isinstance(layer, str):
            return list(encoder.layer_outputs(frames))
        return [encoder.contextualize(frames, layer=layer)]

    return Inference(represent, encoder.geometry, next(encoder.parameters()).device, precision)


def frame_times(geometry: FrameGeometry, num_frames: int) -> npt.NDArray[np.float64]:
    """Return the center of what each frame sees, in seconds: (S,)."""
    center = geometry.receptive_field_samples / 2
    return (np.arange(num_frames) * geometry.hop_samples + center) / SAMPLE_RATE


def _parse_layer(layer: str | None, num_layers: int) -> Layer:
    if layer is None or layer == "all":
        return layer
    if not layer.isdecimal() or int(layer) > num_layers:
        raise ConfigError(f'--layer: expected "all" or a number from 0 to {num_layers}, found {layer!r}')
    return int(layer)


def open_layer(
    model: Path, layer: int, device: str | None, precision: Precision | None, language: str | None
) -> tuple[LayerDescription, Inference]:
    """Read a model to use the output of one layer; return what it is, and what gives it.

    Args:
        model: Of any kind and format, as for `read_model`.
        layer: From 1; 0 is the input of the first.
        device, precision, language: As for `Transcriber.load`.

    Raises:
        SpeechSSLError: there is no such model or layer.
    """
    saved = read_model(model, language)
    encoder = saved.encoder(device)
    num_layers = encoder.config.context.num_layers
    if not 0 <= layer <= num_layers:
        raise ConfigError(f"--layer: expected a number from 0 to {num_layers}, found {layer}")
    return describe_layer(model, saved.digest, encoder, layer, language), make_inference(encoder, layer, precision)


def encode_whole(inference: Inference, sources: Iterable[Source]) -> Iterator[list[Tensor] | SpeechSSLError]:
    """Yield the features of each recording, (S, D) on the CPU a layer, or what is wrong with it."""
    geometry = inference.geometry

    def join(outputs: Outputs) -> list[Tensor]:
        parts = [part for _, part in outputs]
        if not parts:
            shortest, found = geometry.receptive_field_samples, outputs.num_samples
            raise AudioError(f"{outputs.name}: expected a frame ({shortest} samples) or more, found {found}")
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]

    return make_results(inference.run(sources, partial(cut_windows, geometry=geometry)), join)


def _as_utf8(name: str) -> str:
    """Escape what is no UTF-8: neither format could hold it."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _write(output: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    try:
        with replaced_file(output) as temporary:
            if output.suffix == ".npz":
                # Not np.savez(), whose own arguments a recording could be named like.
                with zipfile.ZipFile(temporary, "w") as archive:
                    for name, array in {**arrays, "__metadata__": np.array(json.dumps(metadata))}.items():
                        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                            np.lib.format.write_array(file, array, allow_pickle=False)
            else:
                with ordinary_permissions(temporary):
                    safetensors.numpy.save_file(dict(arrays), temporary, dict(metadata))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{output}: {getattr(error, 'strerror', None) or error}") from None
