"""Pretraining on clusters of a layer of a model: which files a run reads, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.saved_model import ModelDescription
from speechssl.errors import ConfigError, TrainingError
from speechssl.model.encoder import SpeechEncoder
from speechssl.train.pretrain import PretrainConfig, pretrain
from speechssl.transcribe.cluster import cluster_manifests


def config_of(corpus: Any, model: Path, *overrides: str) -> PretrainConfig:
    """Those of the corpus but for the objective, which is of another kind."""
    values = corpus.pretrain_config("trainer.num_steps=2", "trainer.checkpoint_steps=1").to_dict()
    targets = {"model": str(model), "layer": 1}
    values["objective"] = {"kind": "masked_prediction", "num_clusters": 6, "comparison_dim": 8, "targets": targets}
    values["objective"]["targets"] |= dict(override.split("=") for override in overrides)
    return PretrainConfig.from_dict(values, "test")


@pytest.fixture
def teacher(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of a pretrained model, by a name of its own."""
    saved = read_model(pretrained)
    (tmp_path / "teacher").mkdir()
    save_model(tmp_path / "teacher", saved.description, dict(saved.weights))
    return tmp_path / "teacher"


def test_a_run_goes_on_with_the_same_model_elsewhere_and_refuses_another(
    corpus: Any, teacher: Path, tmp_path: Path
) -> None:
    pretrain(config_of(corpus, teacher), tmp_path / "run")
    moved = teacher.rename(tmp_path / "moved")
    pretrain(config_of(corpus, moved), tmp_path / "run")
    saved = read_model(moved)
    weights = {name: weight + 1e-3 for name, weight in saved.weights.items()}
    save_model(moved, saved.description, weights)
    with pytest.raises(TrainingError, match=r"different settings \(inputs\.objective\.targets\.model was '"):
        pretrain(config_of(corpus, moved), tmp_path / "run")


def test_what_is_saved_has_the_clusters_and_not_the_model(corpus: Any, teacher: Path, tmp_path: Path) -> None:
    cluster_manifests(teacher, [corpus.train], 1, 6, tmp_path / "c", device="cpu")
    pretrain(config_of(corpus, teacher, f"clusters={tmp_path / 'c'}"), tmp_path / "run")
    weights = read_model(tmp_path / "run").weights
    assert {name for name in weights if name.startswith("objective.")} == {
        "objective.centers",
        "objective.embeddings",
        "objective.projection.weight",
        "objective.projection.bias",
    }
    assert torch.equal(weights["objective.centers"], load_file(tmp_path / "c")["centers"])
    training = load_file(tmp_path / "run" / "latest" / "training.safetensors")
    assert not any("teacher" in name for name in training)


def test_clusters_of_another_layer_are_refused(corpus: Any, teacher: Path, tmp_path: Path) -> None:
    cluster_manifests(teacher, [corpus.train], 0, 6, tmp_path / "c", device="cpu")
    with pytest.raises(ConfigError, match=r"c: expected clusters of .*teacher with layer 1, found layer 0 \(of "):
        pretrain(config_of(corpus, teacher, f"clusters={tmp_path / 'c'}"), tmp_path / "run")


def test_utterances_shorter_than_a_frame_of_the_model_are_refused(corpus: Any, tmp_path: Path) -> None:
    encoder = corpus.pretrain_config().encoder
    features = encoder.feature_encoder.model_copy(update={"kernels": (20, 8, 100)})
    encoder = encoder.model_copy(update={"feature_encoder": features})
    weights = {f"encoder.{name}": weight for name, weight in SpeechEncoder(encoder).state_dict().items()}
    (tmp_path / "slow").mkdir()
    save_model(tmp_path / "slow", ModelDescription(kind="pretrained", step=1, encoder=encoder), weights)
    with pytest.raises(ConfigError, match=r"^batches\.min_seconds: expected at least 0\.50\d+, a frame of .*slow, "):
        pretrain(config_of(corpus, tmp_path / "slow"), tmp_path / "run")
