"""Recordings in, features out: what the layers of an encoder say of each frame, and when the frame is."""

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from speechssl.checkpoint.reader import load_encoder
from speechssl.data.audio import SAMPLE_RATE, Waveform
from speechssl.errors import AudioError, ConfigError
from speechssl.files import ordinary_permissions
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import SpeechEncoder
from speechssl.model.moments import WaveformMoments
from speechssl.terminal import print_error, print_status
from speechssl.transcribe.batches import is_out_of_memory, pad_waveforms
from speechssl.transcribe.sources import Source, find_sources
from speechssl.transcribe.windows import Blocks, cut_windows, length_of, whole_or_blocks, window_moments

BATCH_SECONDS = 60.0
SUFFIXES = (".safetensors", ".npz")

Array = npt.NDArray[Any]
Features = list[npt.NDArray[np.float32]]  # of a recording, (S, D) a layer


def extract_files(model: Path, files: Sequence[str], layer: str | None, output: Path, device: str | None) -> bool:
    """Write the features of recordings into one file, as the command does.

    All of them are in memory until the file is written. A recording of more than a minute is encoded in the windows in
    which it would be transcribed.

    Args:
        model: A model folder or a training run, of any kind.
        files: As for `find_sources`.
        layer: A number from 0 (the input of the first layer), "all", or None for the final output.
        output: A ``.safetensors`` or ``.npz`` file, written at once. By the path of each recording it has features
            (S, D) float32, in ``path:times`` the centers of the frames (S,) float64 in seconds; with all layers,
            ``path:0``, ``path:1`` and so on instead of ``path``. Metadata: ``model``, ``layer``, ``hop_seconds``
            (npz: a JSON object in ``__metadata__``).
        device: As for `load_encoder`.

    Returns:
        Whether all recordings went well; each failure costs a line on stderr.

    Raises:
        CheckpointError: the model cannot be loaded.
        ConfigError: there is no such layer, or the output cannot be written.
    """
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"{output}: expected a name that ends in {' or '.join(SUFFIXES)}, found {output.name!r}")
    if output.is_dir():
        raise ConfigError(f"{output}: expected a file to write, found a folder")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is found out before the work
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror or error}") from None
    sources, failures = find_sources(files)
    for failure in failures:
        print_error(failure)
    encoder = load_encoder(model, device)
    layers = _parse_layer(layer, encoder.config.context.num_layers)
    arrays: dict[str, Array] = {}
    num_failed = len(failures)
    for source, result in _extract(encoder, sources, layers):
        if isinstance(result, AudioError):
            print_error(result)
            num_failed += 1
            continue
        # A name that is no UTF-8 is escaped: neither format could hold it.
        name = source.path.encode("utf-8", "backslashreplace").decode("utf-8")
        for number, features in zip(layers, result, strict=True):
            arrays[f"{name}:{number}" if layer == "all" else name] = features
        arrays[f"{name}:times"] = frame_times(encoder.geometry, len(result[0]))
    metadata = {
        "format": "speechssl-features",
        "model": str(model).encode("utf-8", "backslashreplace").decode("utf-8"),
        "layer": "final" if layer is None else layer,
        "hop_seconds": str(encoder.geometry.hop_samples / SAMPLE_RATE),
    }
    if arrays:
        _write(output, arrays, metadata)
    num_files = len(sources) + len(failures)
    print_status(f"{num_files} file{'' if num_files == 1 else 's'}, {num_failed} failed")
    return not num_failed


def encode_layers(
    encoder: SpeechEncoder,
    waveforms: Sequence[Waveform],
    layers: Sequence[int | None],
    moments: WaveformMoments | None = None,
) -> list[Features]:
    """Represent recordings in one batch, each as it would be alone.

    Args:
        encoder: In evaluation mode.
        waveforms: (T,) each, mono at 16 kHz, at least a frame long.
        layers: One as for `SpeechEncoder.encode`, or several numbers in rising order, all found in one pass.
        moments: Of the recordings, if the waveforms are windows of them.

    Returns:
        Of each recording.
    """
    batch, lengths = pad_waveforms(waveforms)
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        on_device = batch.to(device), None if lengths is None else lengths.to(device)
        frames = encoder.extract_frames(*on_device, moments=moments)
        if len(layers) == 1:
            contexts: Iterable[Tensor] = (encoder.contextualize(frames, layer=layers[0]),)
        else:
            contexts = (context for n, context in enumerate(encoder.layer_outputs(frames)) if n in layers)
        outputs = [context.float().cpu().numpy() for context in contexts]
    num_frames = [encoder.geometry.num_frames(len(waveform)) for waveform in waveforms]
    # Copies, which do not keep the batch in memory.
    return [[output[row, :length].copy() for output in outputs] for row, length in enumerate(num_frames)]


def encode_recording(encoder: SpeechEncoder, blocks: Blocks, layers: Sequence[int | None]) -> Features:
    """Represent a recording of any length, window by window.

    Args:
        encoder: As for `encode_layers`.
        blocks: (n,) each, mono at 16 kHz; gone through twice where the encoder normalizes over time.
        layers: As for `encode_layers`.

    Returns:
        (S, D) a layer.
    """
    moments = window_moments(encoder.config, blocks)
    parts: list[list[npt.NDArray[np.float32]]] = [[] for _ in layers]
    for window in cut_windows(blocks, encoder.geometry):
        (found,) = encode_layers(encoder, [window.samples], layers, moments)
        for kept, features in zip(parts, found, strict=True):
            kept.append(features[window.first_kept : window.stop_kept])
    return [np.concatenate(kept) for kept in parts]


def frame_times(geometry: FrameGeometry, num_frames: int) -> npt.NDArray[np.float64]:
    """The center of what each frame sees, in seconds: (S,)."""
    center = geometry.receptive_field_samples / 2
    return (np.arange(num_frames) * geometry.hop_samples + center) / SAMPLE_RATE


def _parse_layer(layer: str | None, num_layers: int) -> list[int | None]:
    if layer is None:
        return [None]
    if layer == "all":
        return list(range(num_layers + 1))
    if not layer.isdecimal() or int(layer) > num_layers:
        raise ConfigError(f'--layer: expected "all" or a number from 0 to {num_layers}, found {layer!r}')
    return [int(layer)]


def _extract(
    encoder: SpeechEncoder, sources: Sequence[Source], layers: Sequence[int | None]
) -> Iterator[tuple[Source, Features | AudioError]]:
    """Each recording's features or what is wrong with it, in order; batches are of neighbors."""
    for batch in _batches(encoder.geometry, sources):
        readable = [(source, recording) for source, recording in batch if not isinstance(recording, AudioError)]
        found = iter(_encode(encoder, readable, layers))
        for source, recording in batch:
            yield source, recording if isinstance(recording, AudioError) else next(found)


def _encode(
    encoder: SpeechEncoder, batch: Sequence[tuple[Source, Waveform | Blocks]], layers: Sequence[int | None]
) -> Sequence[Features | AudioError]:
    waveforms = [recording for _, recording in batch if isinstance(recording, np.ndarray)]
    try:
        if len(waveforms) == len(batch):
            return encode_layers(encoder, waveforms, layers) if batch else []
        return [encode_recording(encoder, recording, layers) for _, recording in batch]  # a long one, alone
    except AudioError as error:  # damaged after its first minute
        return [error]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return [AudioError(f"{source.path}: not enough memory for its features") for source, _ in batch]


def _batches(
    geometry: FrameGeometry, sources: Sequence[Source]
) -> Iterator[list[tuple[Source, Waveform | Blocks | AudioError]]]:
    batch: list[tuple[Source, Waveform | Blocks | AudioError]] = []
    longest = 0.0
    for source in sources:
        recording = _read(geometry, source)
        length = 0.0 if isinstance(recording, AudioError) else length_of(recording)
        if batch and (len(batch) + 1) * max(longest, length) > BATCH_SECONDS * SAMPLE_RATE:
            yield batch
            batch, longest = [], 0.0
        batch.append((source, recording))
        longest = max(longest, length)
    if batch:
        yield batch


def _read(geometry: FrameGeometry, source: Source) -> Waveform | Blocks | AudioError:
    try:
        recording = whole_or_blocks(source.open())
    except AudioError as error:
        return error
    if isinstance(recording, np.ndarray) and not geometry.num_frames(len(recording)):
        shortest = geometry.receptive_field_samples
        return AudioError(f"{source.path}: expected a frame ({shortest} samples) or more, found {len(recording)}")
    return recording


def _write(output: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        if output.suffix == ".npz":
            # Not np.savez(), whose own arguments a recording could be named like.
            with zipfile.ZipFile(temporary, "w") as archive:
                for name, array in {**arrays, "__metadata__": np.array(json.dumps(metadata))}.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, array, allow_pickle=False)
        else:
            with ordinary_permissions(temporary):
                safetensors.numpy.save_file(dict(arrays), temporary, dict(metadata))
        temporary.replace(output)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{output}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
