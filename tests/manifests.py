"""Manifests without a file, and batches of manifests."""

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

import numpy as np

from speechssl.data.batch_reader import BatchReader
from speechssl.data.batches import BatchType, Example, load_batches
from speechssl.data.columns import Array, Columns, pack_texts
from speechssl.data.manifest import Manifest, Utterance
from speechssl.data.sampler import BatchPlan


def make_manifest(path: Path, utterances: Sequence[Utterance]) -> Manifest:
    """Return the manifest that a file with these utterances would give, its root being the current folder."""
    arrays: dict[str, Array] = {
        name: np.array([getattr(utterance, name) for utterance in utterances], np.int64)
        for name in ("num_samples", "start", "sample_rate")
    }
    for name in ("path", "text", "speaker", "language"):
        arrays |= pack_texts(name, [getattr(utterance, name) for utterance in utterances])
    return Manifest(path, "", "digest", 3, Columns(arrays))


def make_loader(
    manifest: Manifest,
    plans: Iterable[BatchPlan],
    collate: Callable[[list[Example]], BatchType],
    *,
    seed: int,
    num_workers: int,
) -> Generator[BatchType, None, None]:
    """Read batches in the given order, as training does."""
    read = BatchReader(manifest, collate, seed)
    return load_batches(read, read.where, plans, num_workers=num_workers)
