"""Clusters of vectors that describe frames, and the file that holds those of a model's layer.

The number of the nearest center is a frame's discrete unit: a target of HuBERT (Hsu et al., 2021,
https://arxiv.org/abs/2106.07447), or a symbol for models of language. Units mean something only beside everything that
they depend on, so the file states it.

Shapes: N frames, D channels, K clusters.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from speechssl import __version__
from speechssl.config import Config, differences
from speechssl.errors import ConfigError
from speechssl.files import ordinary_permissions, replaced_file
from speechssl.model.encoder import SpeechEncoder

MOST_WHOLE_FRAMES = 200_000
"""More frames than these are clustered by mini-batches."""

_DESCRIPTION = "description"


def fit_centers(features: npt.NDArray[np.float32], num_clusters: int, seed: int) -> npt.NDArray[np.float32]:
    """Find clusters by k-means: all frames at each step, or mini-batches of many frames as HuBERT's authors do.

    Args:
        features: (N, D) with N at least K; it may lie in a file.
        num_clusters: K.
        seed: Of the first centers and of the mini-batches. The same seed gives the same centers.

    Returns:
        (K, D).
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans  # here, since it is slow to load
    from threadpoolctl import threadpool_limits

    if len(features) <= MOST_WHOLE_FRAMES:
        k_means: Any = KMeans(num_clusters, n_init=1, max_iter=50, random_state=seed)
    else:
        k_means = MiniBatchKMeans(
            num_clusters,
            n_init=20,
            batch_size=10_000,
            max_iter=100,
            max_no_improvement=100,
            reassignment_ratio=0.0,
            tol=0.0,
            compute_labels=False,
            random_state=seed,
        )
    with threadpool_limits(1):  # several threads would add in an order of their own each time
        centers: npt.NDArray[np.float32] = k_means.fit(features).cluster_centers_.astype(np.float32)
    return centers


def nearest_centers(features: Tensor, centers: Tensor) -> Tensor:
    """Return which of (K, D) centers is nearest to each of (..., D) features: (...) int64."""
    with torch.autocast(features.device.type, enabled=False):  # or near centers would be one
        nearest: Tensor = (centers.square().sum(dim=1) - 2 * features.float() @ centers.T).argmin(dim=-1)
    return nearest


class LayerDescription(Config):
    """A layer of a model, and how recordings reach it: what its outputs depend on.

    Attributes:
        model: Where it was read from, as it was named.
        model_digest: The SHA-256 of its weights, by which it is known.
        language: Of the adapter of a model of many languages.
        layer: From 1; 0 is the input of the first.
        point: What of the layer: its output with everything that belongs to it, residual connections and norms.
        channels: Of that.
        normalize_waveforms: As in the encoder's configuration.
        padding: A recording is encoded as if it were alone in its batch.
        hop_samples: Between the starts of frames, at 16 kHz.
        frame_samples: What a frame hears.
    """

    model: str
    model_digest: str
    language: str | None = None
    layer: int = Field(ge=0)
    point: Literal["output"] = "output"
    channels: int = Field(ge=1)
    normalize_waveforms: bool | Annotated[float, Field(gt=0)]
    padding: Literal["ignored"] = "ignored"
    hop_samples: int = Field(ge=1)
    frame_samples: int = Field(ge=1)


def describe_layer(
    model: Path | str, model_digest: str, encoder: SpeechEncoder, layer: int, language: str | None = None
) -> LayerDescription:
    """Describe a layer of the encoder of a model; the arguments are as the attributes."""
    return LayerDescription(
        model=str(model).encode("utf-8", "backslashreplace").decode("utf-8"),
        model_digest=model_digest,
        language=language,
        layer=layer,
        channels=layer_dim(encoder, layer),
        normalize_waveforms=encoder.config.normalize_waveforms,
        hop_samples=encoder.geometry.hop_samples,
        frame_samples=encoder.geometry.receptive_field_samples,
    )


@torch.no_grad()
def layer_dim(encoder: SpeechEncoder, layer: int) -> int:
    """Return the channels of a layer's output, which in a causal network need not be those of the others."""
    device = next(encoder.parameters()).device
    samples = torch.zeros(1, encoder.geometry.num_samples(2), device=device)
    return encoder.contextualize(encoder.extract_frames(samples), layer=layer).shape[2]


class ClustersDescription(Config):
    """What the centers of a layer's outputs depend on.

    Attributes:
        source: The layer.
        window_seconds: Longer recordings are encoded in overlapping windows of this length ...
        context_seconds: ... of which this much on each inner side is not kept.
        precision: Of the encoder's products.
        manifest_digest: The SHA-256 of the manifests from which frames were drawn.
        share: Of their frames.
        num_frames: That were drawn and clustered.
        seed: Of the draw and of k-means.
    """

    format: Literal["speechssl-clusters"] = "speechssl-clusters"
    format_version: Literal[1] = 1
    speechssl_version: str = Field(default_factory=lambda: __version__)
    source: LayerDescription
    window_seconds: float = Field(gt=0)
    context_seconds: float = Field(ge=0)
    precision: str
    manifest_digest: str
    share: float = Field(gt=0, le=1)
    num_frames: int = Field(ge=1)
    seed: int = Field(ge=0)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centers that were read from a file.

    Attributes:
        path: Of the file.
        digest: Its SHA-256.
        centers: (K, D) float32, on the CPU.
        description: What they depend on; None if the file, which is another toolkit's, does not say.
    """

    path: Path
    digest: str
    centers: Tensor
    description: ClustersDescription | None

    def check(self, wanted: LayerDescription) -> None:
        """Raise a `ConfigError` if these are clusters of something else than the outputs of this layer."""
        found = wanted if self.description is None else self.description.source
        found = found.model_copy(update={"channels": self.centers.shape[1]})
        changes = differences(wanted.to_dict(), found.to_dict())
        changes.pop("model", None)  # the same weights may lie elsewhere
        for name, (expected, other) in changes.items():
            what = name.replace("_", " ")
            raise ConfigError(
                f"{self.path}: expected clusters of {wanted.model} with {what} {expected}, found {what} {other}"
                + (f" (of {found.model})" if self.description else "")
            )


def save_clusters(path: Path, centers: Tensor, description: ClustersDescription) -> None:
    """Write (K, D) centers and their description into a safetensors file, atomically.

    Raises:
        ConfigError: it cannot be written.
    """
    metadata = {"format": description.format, _DESCRIPTION: json.dumps(description.to_dict(), ensure_ascii=False)}
    try:
        with replaced_file(path) as temporary, ordinary_permissions(temporary):
            save_file({"centers": centers.contiguous()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def read_clusters(path: Path) -> Clusters:
    """Read what `save_clusters` wrote.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = sorted(file.keys())
            centers = file.get_tensor("centers") if names == ["centers"] else None
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: expected clusters: {getattr(error, 'strerror', None) or error}") from None
    if _DESCRIPTION not in metadata or centers is None:
        raise ConfigError(f"{path}: expected a file of `speechssl cluster`, found another")
    check_centers(path, centers)
    try:
        stated = json.loads(metadata[_DESCRIPTION])
    except ValueError as error:
        raise ConfigError(f"{path}: expected a description in JSON: {error}") from None
    if not isinstance(stated, dict):
        raise ConfigError(f"{path}: expected a description, found {type(stated).__name__}")
    return Clusters(path, digest, centers, ClustersDescription.from_dict(stated, str(path)))


def check_centers(path: Path, centers: Tensor) -> None:
    """Raise a `ConfigError` unless these are (K, D) finite float32 centers."""
    if centers.dtype != torch.float32 or centers.dim() != 2 or 0 in centers.shape:
        found = f"{tuple(centers.shape)} {str(centers.dtype).removeprefix('torch.')}"
        raise ConfigError(f"{path}: expected centers (clusters, channels) in float32, found {found}")
    if not centers.isfinite().all():
        raise ConfigError(f"{path}: expected finite centers, found others")
