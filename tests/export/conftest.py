"""Models at random as saved: small ones of each kind that other toolkits have, and of some that they have not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.saved_model import ModelDescription, TrainingData
from speechssl.data.units import Letters, Units
from speechssl.model.causal import CausalConfig
from speechssl.model.causal_transformer import CausalTransformerConfig
from speechssl.model.ctc import CTCModel
from speechssl.model.data2vec import Data2VecConfig
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.norm import Norm
from speechssl.model.transformer import TransformerConfig
from speechssl.model.wavlm import WavLMConfig
from speechssl.transcribe.transcriber import Transcriber

LETTERS = Letters(("<blank>", "|", *"abcdeé'"))
CONTEXT: dict[str, Any] = {"num_layers": 2, "model_dim": 32, "num_heads": 4, "ffn_dim": 48, "position_groups": 4}
FRAMES_20_MS: dict[str, Any] = {"dims": (16, 16, 24), "kernels": (10, 8, 8), "strides": (5, 8, 8)}
FRAMES_40_MS: dict[str, Any] = {"dims": (16, 16, 24, 24), "kernels": (20, 4, 4, 4), "strides": (10, 4, 4, 4)}
ENCODERS = {
    "base": EncoderConfig(
        feature_encoder=FeatureEncoderConfig(**FRAMES_20_MS), context=TransformerConfig(**CONTEXT, position_kernel=128)
    ),
    "large": EncoderConfig(
        feature_encoder=FeatureEncoderConfig(**FRAMES_20_MS, norm="layer", bias=True),
        context=TransformerConfig(**CONTEXT, position_kernel=7, norm_first=True),
        normalize_waveforms=True,
    ),
    "prompts": EncoderConfig(
        feature_encoder=FeatureEncoderConfig(**FRAMES_40_MS, norm="layer", norm_epsilon=5e-4),
        context=TransformerConfig(**CONTEXT, position_kernel=16, norm_first=True, dropout=0.0, layer_drop=0.0),
        normalize_waveforms=1e-8,
    ),
    "adapters": EncoderConfig(
        feature_encoder=FeatureEncoderConfig(**FRAMES_20_MS, norm="layer", bias=True),
        context=TransformerConfig(**CONTEXT, position_kernel=8, norm_first=True, adapter_dim=6),
        normalize_waveforms=1e-7,
    ),
    "wavlm": EncoderConfig(
        feature_encoder=FeatureEncoderConfig(**FRAMES_20_MS, norm_epsilon=1e-4),
        context=WavLMConfig(**CONTEXT, position_kernel=8, num_buckets=16, max_distance=40),
    ),
    "data2vec": EncoderConfig(
        feature_encoder=FeatureEncoderConfig(**FRAMES_20_MS, norm="layer"),
        context=Data2VecConfig(**CONTEXT, position_kernel=5, position_layers=3),
        normalize_waveforms=True,
    ),
    "wav2vec": EncoderConfig(
        feature_encoder=FeatureEncoderConfig(
            **FRAMES_20_MS, norm="utterance", activation="relu", log_compression=True, frame_norm=False
        ),
        context=CausalConfig(model_dim=24, kernels=(3, 4)),
    ),
    "causal_transformer": EncoderConfig(
        feature_encoder=FeatureEncoderConfig(**FRAMES_20_MS, norm="layer"),
        context=CausalTransformerConfig(**CONTEXT, position_kernel=8),
        normalize_waveforms=True,
    ),
}


@dataclass(frozen=True)
class Exported:
    """A saved model, and what it makes of waveforms."""

    folder: Path
    transcriber: Transcriber | None
    model: Any

    def transcribe(self, waveform: Tensor) -> str:
        assert self.transcriber is not None
        return self.transcriber.transcribe(waveform, 16_000).text


Save = Callable[..., Exported]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a random model: ``save(encoder, letters)``, without a head if ``letters`` is None."""

    def save(encoder: EncoderConfig, letters: Units | None = LETTERS, **description: Any) -> Exported:
        torch.manual_seed(0)
        model = CTCModel(encoder, len(letters or LETTERS))
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, Norm | nn.LayerNorm):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.2)
        nn.init.normal_(model.head.weight)  # so that different sounds give different letters
        folder = tmp_path / "model"
        folder.mkdir()
        kind = "pretrained" if letters is None else "ctc"
        description = {"step": 3, "training_data": (data(),)} | description
        weights = {name: weight for name, weight in model.state_dict().items() if letters or "head" not in name}
        save_model(folder, ModelDescription(kind=kind, encoder=encoder, **description), weights, letters)
        if letters is None:
            return Exported(folder, None, model.encoder.eval())
        return Exported(folder, Transcriber.load(folder, "cpu"), model.eval())

    return save


def data(license_: str = "CC-BY-4.0", stage: str = "finetune") -> TrainingData:
    return TrainingData(stage=stage, license=license_, hours=1.5, labeled=stage == "finetune")


@pytest.fixture
def make_data() -> Callable[..., TrainingData]:
    """``make_data(license, stage)``."""
    return data


@pytest.fixture
def sound() -> Callable[[int], Tensor]:
    """Noise that changes, off center: ``sound(num_samples)``."""

    def make(num_samples: int, level: float = 0.1) -> Tensor:
        generator = torch.Generator().manual_seed(num_samples)
        loudness = 1 + torch.sin(torch.arange(num_samples) / 500)
        return level * (0.2 + loudness * torch.randn(num_samples, generator=generator))

    return make


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> EncoderConfig:
    """Each kind."""
    return ENCODERS[request.param]


@pytest.fixture
def encoders() -> dict[str, EncoderConfig]:
    """All, by name."""
    return ENCODERS


@pytest.fixture
def letters() -> Letters:
    """Of the models that say nothing else."""
    return LETTERS
