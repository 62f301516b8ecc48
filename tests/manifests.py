"""Manifests without a file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speechssl.data.columns import Array, Columns, pack_texts
from speechssl.data.manifest import Manifest, Utterance


def make_manifest(path: Path, utterances: Sequence[Utterance]) -> Manifest:
    """Return the manifest that a file with these utterances would give, its root being the current folder."""
    arrays: dict[str, Array] = {
        name: np.array([getattr(utterance, name) for utterance in utterances], np.int64)
        for name in ("num_samples", "start", "sample_rate")
    }
    for name in ("path", "text", "speaker", "language"):
        arrays |= pack_texts(name, [getattr(utterance, name) for utterance in utterances])
    return Manifest(path, "", "digest", 3, Columns(arrays))
