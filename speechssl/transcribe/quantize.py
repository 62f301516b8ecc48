"""Recordings in, discrete units out: the cluster of every frame."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from speechssl import __version__
from speechssl.checkpoint.kmeans_files import read_any_clusters
from speechssl.data.audio import Waveform
from speechssl.data.manifest import is_manifest, read_manifest
from speechssl.data.recording import Recording
from speechssl.errors import ConfigError, SpeechSSLError
from speechssl.model.device import Precision
from speechssl.objective.clusters import Clusters, LayerDescription, nearest_centers
from speechssl.terminal import count, escaped, print_error, print_status
from speechssl.transcribe.extract import encode_whole, open_layer
from speechssl.transcribe.inference import Inference
from speechssl.transcribe.inputs import find_inputs, spooled_stdin
from speechssl.transcribe.outputs import prepare_file, write_text
from speechssl.transcribe.windows import CONTEXT_SECONDS, WINDOW_SECONDS

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Source:
    path: str
    start: float  # in seconds
    open: Callable[[], Waveform | Recording]


def quantize_files(
    model: Path,
    files: Sequence[str],
    clusters_file: Path,
    output: Path,
    layer: int | None = None,
    merge: bool = False,
    durations: bool = False,
    device: str | None = None,
    precision: Precision | None = None,
    language: str | None = None,
) -> bool:
    """Write the units of recordings, as the command does.

    Args:
        model: Of any kind and format, as for `read_model`.
        files: As for `find_inputs`; manifests, too.
        clusters_file: Of this model, as for `read_any_clusters`.
        output: A table, written atomically: ``path``, ``start`` in seconds, ``units`` with spaces between them. Beside
            it goes a file of the same name with the suffix .json: what the units depend on.
        layer: Needed if the clusters do not state theirs.
        merge: Whether runs of the same unit become one.
        durations: Whether a column ``durations`` has the frames of each run.
        device, precision: As for `Transcriber.load`.
        language: As for `Transcriber.load`, if the clusters do not state it.

    Returns:
        Whether all recordings went well; each failure costs a line on stderr.

    Raises:
        SpeechSSLError: the clusters are not this model's, or something is unfit.
    """
    if output.suffix == ".json":
        raise ConfigError(f"{output}: expected a name for a table, such as units.tsv; what it depends on is in .json")
    if durations and not merge:
        raise ConfigError("--durations: expected beside --merge, without which every duration is one frame")
    prepare_file(output)
    clusters = read_any_clusters(clusters_file)
    if clusters.description is not None:
        language = clusters.description.source.language
    described, inference = open_layer(model, _find_layer(clusters, layer), device, precision, language)
    clusters.check(described)
    temporary = output.with_name(f".{output.name[:50]}.{os.getpid()}.tmp")
    try:
        with ExitStack() as stack:
            sources, failures = _find_sources(files, stack)
            num_sources, num_failed = len(sources) + len(failures), len(failures)
            for failure in failures:
                print_error(failure)
            table = stack.enter_context(temporary.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
            num_failed += _write_rows(table, sources, inference, clusters, merge, durations)
        if num_failed < num_sources:
            about = _describe(described, clusters, inference.precision, merge)
            write_text(output.with_suffix(".json"), json.dumps(about, indent=2, ensure_ascii=False) + "\n")
            temporary.replace(output)
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    print_status(f"{count(num_sources, 'recording')}, {num_failed} failed, on {inference.describe()}")
    return not num_failed


def _find_layer(clusters: Clusters, layer: int | None) -> int:
    stated = layer if clusters.description is None else clusters.description.source.layer
    if stated is None:
        raise ConfigError(f"{clusters.path}: does not say of which layer it is: expected --layer, found none")
    if layer is not None and layer != stated:
        raise ConfigError(f"--layer: expected {stated}, that of {clusters.path}, found {layer}")
    return stated


def _find_sources(files: Sequence[str], stack: ExitStack) -> tuple[list[_Source], list[SpeechSSLError]]:
    """Find the recordings and the utterances of manifests that are meant, in the order given."""
    sources: list[_Source] = []
    failures: list[SpeechSSLError] = []
    for file in dict.fromkeys(files):
        if Path(file).is_file() and is_manifest(file):
            manifest = read_manifest(file)
            for number, row in enumerate(manifest):
                sources.append(_Source(row.path, row.start / row.sample_rate, partial(manifest.read, number)))
            continue
        inputs, errors = find_inputs([file])
        failures += errors
        readable = stack.enter_context(spooled_stdin(inputs))
        sources += [_Source(found.path, 0.0, found.open) for found in readable]
    return sources, failures


def _write_rows(
    table: IO[str], sources: Sequence[_Source], inference: Inference, clusters: Clusters, merge: bool, durations: bool
) -> int:
    """Write a header and a row for each recording; return how many failed, each with a line on stderr."""
    num_columns = 4 if durations else 3
    _write_row(table, ("path", "start", "units", "durations")[:num_columns])
    num_failed = 0
    encoded = encode_whole(inference, ((escaped(source.path), source.open) for source in sources))
    for source, features in zip(sources, encoded, strict=True):
        if isinstance(features, SpeechSSLError):
            print_error(features)
            num_failed += 1
            continue
        units, lengths = _runs(nearest_centers(features[0], clusters.centers).numpy(), merge)
        row = (escaped(source.path), f"{source.start:.10g}", _joined(units), _joined(lengths))
        _write_row(table, row[:num_columns])
    return num_failed


def _runs(ids: Ids, merge: bool) -> tuple[Ids, Ids]:
    """Return units, and how many frames each lasts."""
    if not merge:
        return ids, np.ones_like(ids)
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    return ids[starts], np.diff(starts, append=len(ids))


def _describe(source: LayerDescription, clusters: Clusters, precision: str, is_merged: bool) -> dict[str, Any]:
    """Return everything that the units depend on besides the recordings."""
    return {
        "format": "speechssl-units",
        "format_version": 1,
        "speechssl_version": __version__,
        "source": source.to_dict(),
        "window_seconds": WINDOW_SECONDS,
        "context_seconds": CONTEXT_SECONDS,
        "precision": precision,
        "merged": is_merged,
        "num_clusters": len(clusters.centers),
        "clusters_file": str(clusters.path),
        "clusters_digest": clusters.digest,
        "clusters": None if clusters.description is None else clusters.description.to_dict(),
    }


def _joined(numbers: Ids) -> str:
    return " ".join(map(str, numbers.tolist()))


def _write_row(table: IO[str], cells: Sequence[str]) -> None:
    table.write("\t".join(cells) + "\n")
