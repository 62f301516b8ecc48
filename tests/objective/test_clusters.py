import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from speechssl.errors import ConfigError
from speechssl.objective import clusters
from speechssl.objective.clusters import (
    Clusters,
    ClustersDescription,
    LayerDescription,
    describe_layer,
    fit_centers,
    nearest_centers,
    read_clusters,
    save_clusters,
)

SOURCE = LayerDescription(
    model="models/base",
    model_digest="0123",
    layer=9,
    channels=3,
    normalize_waveforms=True,
    hop_samples=320,
    frame_samples=400,
)
DESCRIPTION = ClustersDescription(
    source=SOURCE,
    window_seconds=60.0,
    context_seconds=5.0,
    precision="float32",
    manifest_digest="4567",
    share=0.1,
    num_frames=1000,
    seed=0,
)


@pytest.mark.parametrize("most_whole_frames", [10_000, 100])
def test_planted_clusters_are_found_again_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most_whole_frames: int
) -> None:
    monkeypatch.setattr(clusters, "MOST_WHOLE_FRAMES", most_whole_frames)
    generator = np.random.default_rng(0)
    planted = 10 * generator.normal(size=(6, 4)).astype(np.float32)
    features = planted[generator.integers(6, size=3000)] + generator.normal(0, 0.1, (3000, 4)).astype(np.float32)
    features.tofile(tmp_path / "features")
    in_file = np.memmap(tmp_path / "features", np.float32, "r", shape=(3000, 4))
    found, again = fit_centers(features, 6, 1), fit_centers(in_file, 6, 1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, again)
    distances = np.linalg.norm(found[:, None] - planted, axis=2)
    assert distances.min(axis=0).max() < 0.1


def test_many_frames_are_clustered_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.cluster

    asked: dict[str, Any] = {}

    class Recorder:
        def __init__(self, num_clusters: int, **settings: Any) -> None:
            asked.update(settings, num_clusters=num_clusters)
            self.cluster_centers_ = np.zeros((num_clusters, 1), np.float32)

        def fit(self, features: Any) -> "Recorder":
            return self

    monkeypatch.setattr(sklearn.cluster, "MiniBatchKMeans", Recorder)
    fit_centers(np.zeros((clusters.MOST_WHOLE_FRAMES + 1, 1), np.float32), 500, 3)
    published = {"n_init": 20, "batch_size": 10_000, "max_iter": 100, "max_no_improvement": 100}
    expected = published | {"reassignment_ratio": 0.0, "num_clusters": 500, "random_state": 3}
    assert expected.items() <= asked.items()


@pytest.mark.parametrize("is_autocast", [False, True])
def test_the_nearest_center_is_found_in_float32(is_autocast: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 50, 8)
    centers = features[0, 0] + 0.01 * torch.randn(7, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        found = nearest_centers(features, centers)
    assert torch.equal(found, torch.cdist(features.double(), centers[None].double()).argmin(dim=2))


def test_a_file_says_what_it_was_told(tmp_path: Path) -> None:
    centers = torch.randn(5, 3)
    save_clusters(tmp_path / "c.safetensors", centers, DESCRIPTION)
    found = read_clusters(tmp_path / "c.safetensors")
    assert torch.equal(found.centers, centers)
    assert found.description == DESCRIPTION
    assert len(found.digest) == 64
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"centers": torch.zeros(2, 3)}, {}, "expected a file of `speechssl cluster`"),
        ({"other": torch.zeros(2, 3)}, {"description": "{}"}, "expected a file of `speechssl cluster`"),
        ({"centers": torch.zeros(2, 3).double()}, {"description": "{}"}, r"found \(2, 3\) float64"),
        ({"centers": torch.zeros(3)}, {"description": "{}"}, r"found \(3,\) float32"),
        ({"centers": torch.full((2, 3), torch.nan)}, {"description": "{}"}, "expected finite centers"),
        ({"centers": torch.zeros(2, 3)}, {"description": "{"}, "expected a description in JSON"),
        ({"centers": torch.zeros(2, 3)}, {"description": "[]"}, "expected a description, found list"),
        ({"centers": torch.zeros(2, 3)}, {"description": "{}"}, "source: this setting is required"),
        (
            {"centers": torch.zeros(2, 3)},
            {"description": json.dumps(DESCRIPTION.to_dict() | {"format_version": 2})},
            "format_version",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], message: str
) -> None:
    save_file(tensors, tmp_path / "c.safetensors", metadata)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/c\.safetensors: [^\n]*{message}[^\n]*$"):
        read_clusters(tmp_path / "c.safetensors")


def test_a_file_that_is_not_there_or_cut_off(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c: expected clusters: No such file"):
        read_clusters(tmp_path / "c")
    save_clusters(tmp_path / "c", torch.zeros(5, 3), DESCRIPTION)
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-4])
    with pytest.raises(ConfigError, match=r"c: expected clusters: "):
        read_clusters(tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_digest", "other"),
        ("language", "fra"),
        ("layer", 8),
        ("normalize_waveforms", False),
        ("normalize_waveforms", 1e-7),
        ("hop_samples", 160),
        ("frame_samples", 401),
    ],
)
def test_clusters_of_something_else_are_refused(name: str, value: object) -> None:
    held = Clusters(Path("c"), "", torch.zeros(5, 3), DESCRIPTION)
    held.check(SOURCE)
    held.check(SOURCE.model_copy(update={"model": "elsewhere"}))
    what = name.replace("_", " ")
    with pytest.raises(ConfigError, match=rf"^c: expected clusters of models/base with {what} {value}, found {what} "):
        held.check(SOURCE.model_copy(update={name: value}))


@pytest.mark.parametrize("description", [None, DESCRIPTION])
def test_centers_of_another_width_are_refused(description: ClustersDescription | None) -> None:
    with pytest.raises(ConfigError, match="with channels 3, found channels 4"):
        Clusters(Path("c"), "", torch.zeros(5, 4), description).check(SOURCE)


def test_a_layer_is_described_by_its_encoder(make_encoder: Any) -> None:
    encoder = make_encoder(normalize=True)
    found = describe_layer(Path("a/b"), "12", encoder, 2, "fra")
    assert (found.model, found.language, found.layer, found.channels) == ("a/b", "fra", 2, 32)
    assert (found.normalize_waveforms, found.hop_samples, found.frame_samples) == (True, 20, 25)
