from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.data.batches import TaskBatch, collate_audio
from speechssl.errors import ConfigError
from speechssl.frames import FrameGeometry, MaskConfig
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.objective.clusters import Clusters
from speechssl.objective.layer_targets import LayerTargets, LayerTargetsConfig
from speechssl.objective.masked_prediction import MaskedPredictionConfig, MaskedPredictionObjective
from speechssl.objective.objective import TargetSource
from speechssl.objective.teacher import split_weights, weights_beside

CONFIG = MaskedPredictionConfig(
    mask=MaskConfig(start_prob=0.1, span_frames=3),
    targets=LayerTargetsConfig(model="a/model", layer=1),
    num_clusters=4,
    comparison_dim=8,
)


@pytest.fixture
def teacher(make_encoder: Any) -> SpeechEncoder:
    """Of another geometry: a frame every 50 samples."""
    like: EncoderConfig = make_encoder().config
    features = FeatureEncoderConfig(dims=(12, 16), kernels=(10, 12), strides=(5, 10), norm="layer")
    torch.manual_seed(1)
    return SpeechEncoder(like.model_copy(update={"feature_encoder": features})).eval()


@pytest.fixture
def objective(teacher: SpeechEncoder, make_encoder: Any) -> MaskedPredictionObjective:
    return taken(CONFIG, teacher, make_encoder)


def taken(
    config: MaskedPredictionConfig, teacher: SpeechEncoder, make_encoder: Any, clusters: Clusters | None = None
) -> MaskedPredictionObjective:
    torch.manual_seed(0)
    objective = config.build(make_encoder().config)
    objective.take(TargetSource("a/model", "12", teacher, clusters))
    return objective


def test_a_frame_has_the_output_of_the_frame_that_began_last(
    teacher: SpeechEncoder, geometry: FrameGeometry, make_examples: Any
) -> None:
    targets = LayerTargets(LayerTargetsConfig(model="m", layer=1), teacher, geometry)
    audio = collate_audio(make_examples((620, 437, 185)))
    found = targets(audio.waveforms, audio.lengths)
    for row, (waveform, length) in enumerate(zip(audio.waveforms, audio.lengths.tolist(), strict=True)):
        frames = teacher.encode(waveform[None, :length], layer=1).context[0]
        for frame in range(geometry.num_frames(length)):
            expected = frames[min(frame * 20 // 50, len(frames) - 1)]
            torch.testing.assert_close(found[row, frame], expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_the_same_geometry_labels_frame_by_frame(
    make_encoder: Any, geometry: FrameGeometry, make_examples: Any
) -> None:
    encoder = make_encoder()
    waveform = collate_audio(make_examples((620,))).waveforms
    found = LayerTargets(LayerTargetsConfig(model="m", layer=2), encoder, geometry)(waveform)
    torch.testing.assert_close(found, encoder.encode(waveform, layer=2).context)


def test_the_model_stays_as_it_is_and_is_not_saved(
    objective: MaskedPredictionObjective, make_encoder: Any, make_examples: Any, geometry: FrameGeometry
) -> None:
    objective.prepare(None, [TaskBatch(collate_audio(make_examples((1000,))), {})], 0)  # type: ignore[arg-type]
    objective.train()
    assert not any(module.training for module in objective.features.modules() if module is not objective.features)
    batch = CONFIG.make_collate(geometry, 0)(make_examples())
    sum(term.sum * term.weight for term in objective(make_encoder(), batch, 0).values()).backward()
    teacher = objective.features.teacher.network
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(name.startswith("features.teacher.") for name in split_weights(objective)[1])
    assert split_weights(objective)[1]
    assert not weights_beside(objective)


def test_clusters_are_found_from_the_layer(
    objective: MaskedPredictionObjective, make_examples: Any, teacher: SpeechEncoder
) -> None:
    waveforms = collate_audio(make_examples((1000,))).waveforms
    objective.prepare(None, [TaskBatch(collate_audio(make_examples((1000,))), {})], 0)  # type: ignore[arg-type]
    features = objective.features(waveforms)
    assert objective.centers.shape == (4, 32)
    assert torch.equal(objective.targets(waveforms, None), torch.cdist(features, objective.centers[None]).argmin(dim=2))
    assert len(objective.targets(waveforms, None).unique()) == 4


def test_clusters_that_are_given_stay(teacher: SpeechEncoder, make_encoder: Any, make_examples: Any) -> None:
    centers = torch.randn(4, 32)
    objective = taken(CONFIG, teacher, make_encoder, Clusters(Path("c"), "", centers, None))
    assert objective.prepare_seconds == 0
    objective.prepare(None, [], 0)  # type: ignore[arg-type]
    assert torch.equal(objective.centers, centers)


def test_what_does_not_fit_is_refused(teacher: SpeechEncoder, make_encoder: Any) -> None:
    with pytest.raises(ConfigError, match=r"^objective\.num_clusters: expected the 5 of c, found 4$"):
        taken(CONFIG, teacher, make_encoder, Clusters(Path("c"), "", torch.zeros(5, 32), None))
    with pytest.raises(ConfigError, match=r"^c: expected clusters of a/model with channels 32, found channels 16$"):
        taken(CONFIG, teacher, make_encoder, Clusters(Path("c"), "", torch.zeros(4, 16), None))
    deep = CONFIG.model_copy(update={"targets": LayerTargetsConfig(model="a/model", layer=3)})
    with pytest.raises(ConfigError, match=r"^objective\.targets\.layer: expected 0 to 2, .* a/model, found 3$"):
        taken(deep, teacher, make_encoder)


def test_a_configuration_names_its_model(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("targets = { model = 'owner/name', layer = 6, clusters = 'c.bin' }", "utf-8")
    files = MaskedPredictionConfig.load([file]).target_files
    assert files is not None
    assert (str(files.model), files.clusters) == ("owner/name", tmp_path / "c.bin")
    file.write_text("targets = { layer = 6 }", "utf-8")
    with pytest.raises(ConfigError, match=r"targets\.model: .*(required|Path)"):
        MaskedPredictionConfig.load([file])
