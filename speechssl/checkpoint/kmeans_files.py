"""Files of k-means that fairseq's programs leave, which scikit-learn and joblib made: read without running anything.

Such a file is a pickle with the bytes of arrays between its instructions, behind the ones that describe each array, and
all of it may be compressed. Objects of scikit-learn, NumPy and joblib become placeholders that store what they are
given; other names are refused.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import math
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from speechssl.checkpoint.foreign import shortened
from speechssl.checkpoint.pickles import Placeholder, make_placeholder
from speechssl.errors import CheckpointError, system_errors
from speechssl.objective.clusters import Clusters, check_centers, read_clusters

_SAFE_PACKAGES = ("joblib", "numpy", "sklearn")
_MAX_BYTES = 1 << 30  # of a file, without compression
_ARRAY = "joblib.numpy_pickle.NumpyArrayWrapper"
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_COMPRESSED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZ": bz2.BZ2File,
    b"\xfd7": lzma.LZMAFile,
    b"\x5d\x00": lzma.LZMAFile,
}


def read_any_clusters(path: Path) -> Clusters:
    """Read clusters of `speechssl cluster`, or fairseq's, which do not say what they are clusters of.

    Raises:
        SpeechSSLError: it is no such file, or could run code.
    """
    with system_errors(CheckpointError, path), path.open("rb") as file:
        start = file.read(9)
    is_safetensors = start[8:] == b"{"  # behind the length of its header
    return read_clusters(path) if is_safetensors else _read_k_means(path)


def _read_k_means(path: Path) -> Clusters:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = f"{path}: expected clusters of `speechssl cluster` or a k-means model that joblib wrote"
    try:
        reader: Any = _Reader(io.BytesIO(_uncompressed(path)))
        k_means = reader.load()
    except CheckpointError as error:
        raise CheckpointError(f"{expected}, found {error}") from None
    except Exception as error:  # whatever the instructions lead to is in the file
        is_clear = isinstance(error, pickle.UnpicklingError | OSError | EOFError) and str(error)
        reason = shortened(str(error)) if is_clear else "it is damaged, or something else"
        raise CheckpointError(f"{expected}: {reason}") from None
    state = k_means.state if isinstance(k_means, Placeholder) else None
    centers = state.get("cluster_centers_") if isinstance(state, dict) else None
    if type(centers) is not np.ndarray or not k_means.origin.startswith("sklearn.cluster."):
        raise CheckpointError(f"{expected}, found {shortened(getattr(k_means, 'origin', type(k_means).__name__))}")
    tensor = torch.from_numpy(centers.astype(np.float32, order="C"))
    check_centers(path, tensor)
    return Clusters(path, digest, tensor, None)


def _uncompressed(path: Path) -> bytes:
    content: bytes
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        if start[:1] == b"\x78":  # zlib
            decompressor = zlib.decompressobj()
            content = decompressor.decompress(file.read(_MAX_BYTES), _MAX_BYTES + 1)
            if len(content) <= _MAX_BYTES and not decompressor.eof:
                raise EOFError("it ends too soon")
        else:
            opened = _COMPRESSED[start](file) if start in _COMPRESSED else file
            content = opened.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise CheckpointError(f"more than {_MAX_BYTES} bytes")
    return content


# The one written in Python, of which a step can be changed.
_Unpickler: Any = pickle._Unpickler


class _Reader(_Unpickler):  # type: ignore[misc]
    """Reads instructions, and the bytes of an array after those that describe it."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")
        self.file = file

    def find_class(self, module: str, name: str) -> type[Placeholder]:
        if module.partition(".")[0] not in _SAFE_PACKAGES:
            raise CheckpointError(f"{shortened(f'{module}.{name}')}, which is refused: it could run code")
        return make_placeholder(f"{module}.{name}")

    def load_build(self) -> None:
        super().load_build()
        described = self.stack[-1]
        if isinstance(described, Placeholder) and described.origin == _ARRAY:
            self.stack[-1] = self._read_array(described.state)

    dispatch = _Unpickler.dispatch | {pickle.BUILD[0]: load_build}

    def _read_array(self, state: dict[str, Any]) -> npt.NDArray[Any]:
        shape, dtype = state["shape"], _dtype(state["dtype"])
        if state.get("numpy_array_alignment_bytes") is not None:
            self.file.seek(self.file.read(1)[0], io.SEEK_CUR)
        count = math.prod(shape)
        content = self.file.read(count * dtype.itemsize)
        array = np.frombuffer(content, dtype, count)
        return array.reshape(shape[::-1]).T if state["order"] == "F" else array.reshape(shape)


def _dtype(described: Placeholder) -> np.dtype[Any]:
    """The type of the numbers of an array, of which the file has the letters and the order of the bytes."""
    letters, order = described.arguments[0], described.state[1]
    if letters not in _NUMBERS or order not in "<>=|":
        raise CheckpointError(f"an array of {shortened(repr(letters))}")
    return np.dtype(f"{order}{letters}")
