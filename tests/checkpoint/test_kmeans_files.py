import pickle
import re
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA

from speechssl.checkpoint import kmeans_files
from speechssl.checkpoint.kmeans_files import read_any_clusters
from speechssl.errors import CheckpointError, SpeechSSLError

FEATURES = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def k_means() -> MiniBatchKMeans:
    # The generator goes into the file, as do arrays of other types.
    return MiniBatchKMeans(7, n_init=1, random_state=np.random.RandomState(0), batch_size=100).fit(FEATURES)


@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)])
@pytest.mark.parametrize("protocol", [2, 5])
def test_centers_are_those_of_the_model(tmp_path: Path, k_means: Any, compress: Any, protocol: int) -> None:
    joblib.dump(k_means, tmp_path / "km.bin", compress=compress, protocol=protocol)
    found = read_any_clusters(tmp_path / "km.bin")
    np.testing.assert_array_equal(found.centers.numpy(), k_means.cluster_centers_)
    assert (found.centers.dtype, found.description, len(found.digest)) == (torch.float32, None, 64)


@pytest.mark.parametrize("changed", [np.asfortranarray, lambda centers: centers.astype(">f8"), np.float64])
def test_centers_in_another_order_or_type(tmp_path: Path, changed: Any) -> None:
    k_means = KMeans(3, n_init=1, random_state=0).fit(FEATURES)
    expected = k_means.cluster_centers_.copy()
    k_means.cluster_centers_ = changed(k_means.cluster_centers_)
    joblib.dump(k_means, tmp_path / "km.bin")
    np.testing.assert_array_equal(read_any_clusters(tmp_path / "km.bin").centers.numpy(), expected)


class Calls:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def refuse(path: Path) -> str:
    with pytest.raises(SpeechSSLError) as caught:
        read_any_clusters(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("compress", [0, 3])
@pytest.mark.parametrize("is_inside", [False, True])
def test_nothing_in_a_file_is_run(tmp_path: Path, k_means: Any, compress: int, is_inside: bool) -> None:
    proof = tmp_path / "ran"
    for attack in (Calls(Path.touch, proof), Calls(eval, f"open({str(proof)!r}, 'w')"), Calls(getattr, "", "join")):
        contents: Any = attack
        if is_inside:
            contents = pickle.loads(pickle.dumps(k_means))
            contents.cluster_centers_ = {"centers": [k_means.cluster_centers_, attack]}
        joblib.dump(contents, tmp_path / "km.bin", compress=compress)
        proof.unlink(missing_ok=True)
        assert re.search(r"found [\w.]+, which is refused: it could run code", refuse(tmp_path / "km.bin"))
        assert not proof.exists()


def test_what_safe_packages_have_is_not_run_either(tmp_path: Path) -> None:
    """A name of NumPy's that runs what it is given stands for itself only."""
    proof = tmp_path / "ran"
    opcodes = f"cnumpy.testing._private.utils\nrunstring\n(Vopen({str(proof)!r}, 'w')\n(dtR."
    (tmp_path / "km.bin").write_bytes(opcodes.encode())
    assert "found numpy.testing._private.utils.runstring" in refuse(tmp_path / "km.bin")
    assert not proof.exists()


@pytest.mark.parametrize("compress", [0, 3])
def test_other_contents_are_refused(tmp_path: Path, k_means: Any, compress: int) -> None:
    path = tmp_path / "km.bin"
    found = []
    for contents in (
        PCA(2).fit(FEATURES),
        {"cluster_centers_": k_means.cluster_centers_},
        k_means.cluster_centers_,
        KMeans(3),
    ):
        joblib.dump(contents, path, compress=compress)
        found.append(refuse(path).rpartition(", found ")[2])
    assert found == ["sklearn.decomposition._pca.PCA", "dict", "ndarray", "sklearn.cluster._kmeans.KMeans"]


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("xz", 3)])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, k_means: Any, compress: Any) -> None:
    path = tmp_path / "km.bin"
    joblib.dump(k_means, path, compress=compress)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        refuse(path)


def test_numbers_that_are_not_finite_or_no_numbers_are_refused(tmp_path: Path, k_means: Any) -> None:
    path = tmp_path / "km.bin"
    for centers, message in (
        (np.full((3, 2), np.nan), "expected finite centers"),
        (np.array([["a"]], dtype=object), "an array of 'O8'"),
        (np.zeros((3, 0)), r"found \(3, 0\) float32"),
    ):
        changed = pickle.loads(pickle.dumps(k_means))
        changed.cluster_centers_ = centers
        joblib.dump(changed, path)
        assert re.search(message, refuse(path))


def test_a_file_that_swells_is_refused(tmp_path: Path, k_means: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans_files, "_MAX_BYTES", 1_000_000)
    for compress in (0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3)):
        joblib.dump(np.zeros(10**6), tmp_path / "km.bin", compress=compress)
        assert "more than 1000000 bytes" in refuse(tmp_path / "km.bin")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"km\.bin: No such file or directory$"):
        read_any_clusters(tmp_path / "km.bin")
