"""``speechssl cluster`` and ``speechssl quantize``, around a tiny HuBERT of transformers."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import hf_models
import joblib
import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result
from sklearn.cluster import MiniBatchKMeans
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.reader import read_model
from speechssl.data.manifest import Utterance, write_manifest
from speechssl.objective.clusters import read_clusters
from speechssl.transcribe import cluster as clustering

LENGTHS = (4_000, 2_500, 3_100)


@pytest.fixture(scope="module")
def hubert() -> Any:
    return hf_models.build("hubert-base")


@pytest.fixture
def place(hubert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A model and recordings in the current folder, and a manifest with a part of the first one and all of another."""
    monkeypatch.chdir(tmp_path)
    hf_models.save(hubert, tmp_path / "model")
    generator = np.random.default_rng(0)
    noises = [generator.normal(0, 0.1, length).astype(np.float32) for length in LENGTHS]
    for number, noise in enumerate(noises):
        soundfile.write(f"{number}.wav", noise, 16_000, subtype="FLOAT")
    write_manifest("few.tsv", [Utterance("0.wav", 1_600, start=800), Utterance("1.wav", 2_500)], ".")
    return [torch.from_numpy(noise) for noise in noises]


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app, [command, "model", *map(str, arguments), "--device", "cpu"])


def cluster(*arguments: object) -> Result:
    return run("cluster", "few.tsv", "--layer", 2, "--num", 5, "--share", 0.9, "-o", "c.safetensors", *arguments)


def quantize(*arguments: object) -> Result:
    return run("quantize", *arguments, "-o", "units.tsv")


def rows() -> list[list[str]]:
    return [line.split("\t") for line in Path("units.tsv").read_text("utf-8").splitlines()]


def hidden_states(hubert: Any, waveform: torch.Tensor, layer: int) -> np.ndarray:
    normalized = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
    with torch.no_grad():
        return hubert(normalized[None], output_hidden_states=True).hidden_states[layer][0].numpy()


def nearest(features: np.ndarray, centers: np.ndarray) -> list[int]:
    return np.linalg.norm(features[:, None] - centers, axis=2).argmin(axis=1).tolist()


def test_units_are_the_nearest_centers_of_the_hidden_states(place: list[torch.Tensor], hubert: Any) -> None:
    assert cluster().exit_code == 0
    result = quantize("0.wav", "1.wav", "2.wav", "few.tsv", "--clusters", "c.safetensors")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("5 recordings, 0 failed, on cpu")
    centers = read_clusters(Path("c.safetensors")).centers.numpy()
    heard = [*place, place[0][800:2400], place[1]]
    header, *found = rows()
    assert header == ["path", "start", "units"]
    assert [row[:2] for row in found] == [
        ["0.wav", "0"],
        ["1.wav", "0"],
        ["2.wav", "0"],
        ["0.wav", "0.05"],
        ["1.wav", "0"],
    ]
    units = [[int(unit) for unit in row[2].split(" ")] for row in found]
    assert units == [nearest(hidden_states(hubert, waveform, 2), centers) for waveform in heard]
    assert len({unit for row in units for unit in row}) == 5


def test_a_file_of_fairseq_gives_the_same_units(place: list[torch.Tensor], hubert: Any) -> None:
    features = np.concatenate([hidden_states(hubert, waveform, 3) for waveform in place])
    k_means = MiniBatchKMeans(6, n_init=1, random_state=0).fit(features)
    joblib.dump(k_means, "km.bin")
    assert quantize("0.wav", "--clusters", "km.bin", "--layer", 3).exit_code == 0
    predicted = k_means.predict(hidden_states(hubert, place[0], 3)).tolist()
    assert [int(unit) for unit in rows()[1][2].split(" ")] == predicted
    about = json.loads(Path("units.json").read_text("utf-8"))
    assert (about["clusters"], about["source"]["layer"], about["num_clusters"]) == (None, 3, 6)
    result = quantize("0.wav", "--clusters", "km.bin")
    expected = "error: km.bin: does not say of which layer it is: expected --layer, found none\n"
    assert (result.exit_code, result.stderr) == (1, expected)


def test_runs_are_merged_and_have_durations(place: list[torch.Tensor]) -> None:
    assert cluster().exit_code == 0
    assert quantize("0.wav", "1.wav", "--clusters", "c.safetensors").exit_code == 0
    whole = [row[2].split(" ") for row in rows()[1:]]
    expected = [[(unit, len(list(run))) for unit, run in groupby(units)] for units in whole]
    assert any(length > 1 for row in expected for _, length in row), "there is something to merge"
    assert quantize("0.wav", "1.wav", "--clusters", "c.safetensors", "--merge", "--durations").exit_code == 0
    header, *found = rows()
    assert header == ["path", "start", "units", "durations"]
    assert [list(zip(row[2].split(" "), map(int, row[3].split(" ")), strict=True)) for row in found] == expected
    assert json.loads(Path("units.json").read_text("utf-8"))["merged"]
    assert quantize("0.wav", "1.wav", "--clusters", "c.safetensors", "--merge").exit_code == 0
    assert [row[2].split(" ") for row in rows()[1:]] == [[unit for unit, _ in row] for row in expected]
    result = quantize("0.wav", "--clusters", "c.safetensors", "--durations")
    assert result.stderr.startswith("error: --durations: expected beside --merge")


def test_everything_that_units_depend_on_is_stated(place: list[torch.Tensor]) -> None:
    assert cluster("--seed", 3).exit_code == 0
    assert quantize("0.wav", "--clusters", "c.safetensors").exit_code == 0
    about = json.loads(Path("units.json").read_text("utf-8"))
    held = read_clusters(Path("c.safetensors"))
    assert held.description is not None
    assert about["clusters"] == held.description.to_dict()
    assert about["clusters_digest"] == held.digest
    assert about["source"] == held.description.source.to_dict()
    assert about["source"] == {
        "model": "model",
        "model_digest": read_model("model").digest,
        "language": None,
        "layer": 2,
        "point": "output",
        "channels": 32,
        "normalize_waveforms": 1e-7,
        "padding": "ignored",
        "hop_samples": 20,
        "frame_samples": 35,
    }
    assert (held.description.share, held.description.seed, held.description.precision) == (0.9, 3, "float32")


def test_the_same_frames_are_drawn_again_and_are_the_share_that_was_asked_for(
    place: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fit(features: Any, num_clusters: int, seed: int) -> Any:
        assert isinstance(features, np.memmap), "frames lie in a file"
        seen.append(np.array(features))
        return seen[-1][:num_clusters]

    monkeypatch.setattr(clustering, "fit_centers", fit)
    for options in ((), (), ("--seed", 1), ("--share", 1.0), ("--share", 0.3)):
        assert cluster(*options).exit_code == 0
    again, other, whole, few = seen[1:]
    assert np.array_equal(seen[0], again)
    assert not np.array_equal(seen[0][:50], other[:50])
    assert len(whole) == 79 + 124
    assert 0.8 * len(whole) < len(again) < len(whole)
    assert 0.2 * len(whole) < len(few) < 0.4 * len(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer", 3), "--layer: expected 2, that of c.safetensors, found 3"),
        (("--clusters", "no.bin"), "no.bin: No such file or directory"),
        (
            ("--clusters", "few.tsv"),
            "few.tsv: expected clusters of `speechssl cluster` or a k-means model that joblib wrote",
        ),
        (("-o", "units.json"), "units.json: expected a name for a table"),
    ],
)
def test_what_does_not_fit_is_one_line(place: list[torch.Tensor], options: tuple[object, ...], message: str) -> None:
    assert cluster().exit_code == 0
    result = quantize("0.wav", "--clusters", "c.safetensors")
    Path("units.tsv").unlink()
    result = run("quantize", "0.wav", "--clusters", "c.safetensors", "-o", "units.tsv", *options)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"error: {message}")
    assert not Path("units.tsv").exists()


def test_clusters_of_another_model_are_refused(place: list[torch.Tensor], hubert: Any) -> None:
    assert cluster().exit_code == 0
    other = hf_models.build("hubert-base")
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    hf_models.save(other, Path("model"))
    result = quantize("0.wav", "--clusters", "c.safetensors")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("error: c.safetensors: expected clusters of model with model digest ")


def test_recordings_that_cannot_be_read_are_named_and_the_others_written(place: list[torch.Tensor]) -> None:
    Path("1.wav").write_bytes(b"no sound")
    soundfile.write("2.wav", np.zeros(20), 16_000)
    assert cluster().exit_code == 1, "an utterance of the manifest is missing"
    assert Path("c.safetensors").exists()
    result = quantize("0.wav", "1.wav", "2.wav", "--clusters", "c.safetensors")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in errors] == ["1.wav", "2.wav"]
    assert [row[0] for row in rows()] == ["path", "0.wav"]
    result = quantize("few.tsv", "--clusters", "c.safetensors")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: few.tsv:4: 1.wav: expected audio")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--share", 0), "--share: expected more than 0 and at most 1, found 0"),
        (("--share", 1.5), "--share: expected more than 0 and at most 1, found 1.5"),
        (("--layer", 4), "--layer: expected a number from 0 to 3, found 4"),
        (("--num", 1000), "--num: expected at most the 1"),
        (("--share", 1e-9), "--num: expected at most the 0 frames that were drawn, found 5"),
        (("-o", "few.tsv/c"), "few.tsv/c: cannot be written"),
    ],
)
def test_clusters_that_cannot_be_found_are_one_line(
    place: list[torch.Tensor], options: tuple[object, ...], message: str
) -> None:
    result = cluster(*options)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"error: {message}")
    assert not Path("c.safetensors").exists()
