"""Manifests in, clusters out: the centers of what a layer of a model says of their frames."""

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from speechssl.data.manifest import read_manifest, read_utterance
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.model.device import Precision
from speechssl.objective.clusters import ClustersDescription, fit_centers, save_clusters
from speechssl.rng import keyed_generator
from speechssl.terminal import count, print_error, print_status
from speechssl.transcribe.extract import encode_whole, open_layer
from speechssl.transcribe.outputs import prepare_file
from speechssl.transcribe.windows import CONTEXT_SECONDS, WINDOW_SECONDS

_DRAW = 10  # the purpose of the generator that draws frames


def cluster_manifests(
    model: Path,
    manifests: Sequence[Path],
    layer: int,
    num_clusters: int,
    output: Path,
    share: float = 0.1,
    seed: int = 0,
    device: str | None = None,
    precision: Precision | None = None,
    language: str | None = None,
) -> bool:
    """Write the clusters of a layer of a model, as the command does.

    The frames that are drawn lie in a temporary file, so memory does not grow with their number.

    Args:
        model: Of any kind and format, as for `read_model`.
        manifests: Whose utterances are encoded, each as it would be alone.
        layer: From 1; 0 is the input of the first.
        num_clusters: How many.
        output: The file to write, as `save_clusters` does.
        share: Of all frames, which are drawn one by one.
        seed: Of the draw and of k-means.
        device, precision, language: As for `Transcriber.load`.

    Returns:
        Whether all utterances could be read; each that could not costs a line on stderr.

    Raises:
        SpeechSSLError: model, layer or manifests are unfit, or there are fewer frames than clusters.
    """
    prepare_file(output)
    described, inference = open_layer(model, layer, device, precision, language)
    read = [read_manifest(manifest) for manifest in manifests]
    utterances = [utterance for manifest in read for utterance in manifest]
    sources = ((utterance.path, lambda utterance=utterance: read_utterance(utterance)) for utterance in utterances)
    with tempfile.TemporaryFile() as file:
        num_frames, dim, num_failed = _draw_frames(encode_whole(inference, sources), file, share, seed)
        if num_frames < num_clusters:
            raise ConfigError(f"--num: expected at most the {num_frames} frames that were drawn, found {num_clusters}")
        features = np.memmap(file, np.float32, "r", shape=(num_frames, dim))
        centers = torch.from_numpy(fit_centers(features, num_clusters, seed))
    description = ClustersDescription(
        source=described,
        window_seconds=WINDOW_SECONDS,
        context_seconds=CONTEXT_SECONDS,
        precision=inference.precision,
        manifest_digest=hashlib.sha256("".join(manifest.digest for manifest in read).encode()).hexdigest(),
        share=share,
        num_frames=num_frames,
        seed=seed,
    )
    save_clusters(output, centers, description)
    print_status(
        f"{count(len(utterances), 'utterance')}, {num_failed} failed, {num_frames} frames in {num_clusters} clusters, "
        f"on {inference.describe()}"
    )
    return not num_failed


def _draw_frames(
    encoded: Iterable[list[Tensor] | SpeechSSLError], file: IO[bytes], share: float, seed: int
) -> tuple[int, int, int]:
    """Write the frames that are drawn one after another; return their number, their channels, and the failures."""
    num_frames = dim = num_failed = 0
    for index, features in enumerate(encoded):
        if isinstance(features, SpeechSSLError):
            print_error(features)
            num_failed += 1
            continue
        [frames] = features
        is_drawn = keyed_generator(seed, index, _DRAW).random(len(frames)) < share
        drawn = frames[torch.from_numpy(is_drawn)]
        file.write(drawn.numpy().tobytes())
        num_frames += len(drawn)
        dim = frames.shape[1]
    file.flush()
    return num_frames, dim, num_failed
