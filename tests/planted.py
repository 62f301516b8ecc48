"""A model that reads planted answers: the level of a frame is the symbol that it says."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from torch import Tensor, nn

from speechssl.checkpoint.native import save_model
from speechssl.checkpoint.saved_model import CTCCheckpoint, ModelDescription
from speechssl.data.units import Letters, Units
from speechssl.frames import FrameGeometry
from speechssl.model.ctc import CTCModel, CTCOutput
from speechssl.model.encoder import EncoderConfig
from speechssl.model.feature_encoder import FeatureEncoderConfig
from speechssl.model.transformer import TransformerConfig

FRAME = 160
LEVEL = 0.01
VOCABULARY = Letters.from_texts(["абвгде abcdefghijklmnopqrstuvwxyz"])
TINY = EncoderConfig(
    feature_encoder=FeatureEncoderConfig(dims=(8, 8), kernels=(10, 8), strides=(10, 8)),
    context=TransformerConfig(
        num_layers=1, model_dim=16, num_heads=2, ffn_dim=16, position_kernel=4, position_groups=2
    ),
)

Say = Callable[[str], npt.NDArray[np.float32]]
Plant = Callable[..., Path]


def planted_speech(text: str, units: Units = VOCABULARY) -> npt.NDArray[np.float32]:
    """Two frames a symbol, then one of blank."""
    ids = [level for symbol in units.encode(text) for level in (symbol, symbol, 0)]
    levels = np.repeat(np.array([*ids, 0], dtype=np.float32) * LEVEL, FRAME)
    levels[1::2] *= -1
    return levels


class PlantedModel(nn.Module):
    """Says of each frame the symbol whose id is the frame's loudness in hundredths, and remembers how it was called."""

    def __init__(self, num_units: int = len(VOCABULARY)) -> None:
        super().__init__()
        self.num_units = num_units
        self.weight = nn.Parameter(torch.zeros(3))
        self.encoder = SimpleNamespace(geometry=FrameGeometry((FRAME,), (FRAME,)), config=EncoderConfig())
        self.batch_shapes: list[tuple[int, int]] = []
        self.inference_modes: list[bool] = []
        self.sureness = 1.0  # log odds of the symbol that is said

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> CTCOutput:
        self.batch_shapes.append(tuple(waveforms.shape))
        self.inference_modes.append(torch.is_inference_mode_enabled())
        if lengths is None:
            lengths = torch.full((len(waveforms),), waveforms.shape[1])
        levels = waveforms.abs().unfold(1, FRAME, FRAME).mean(dim=2) / LEVEL
        symbols = nn.functional.one_hot(levels.round().long(), self.num_units)
        return CTCOutput((self.sureness * symbols).log_softmax(dim=2), lengths // FRAME)


@pytest.fixture
def checkpoint() -> CTCCheckpoint:
    description = ModelDescription(kind="ctc", step=7, encoder=EncoderConfig())
    return CTCCheckpoint(PlantedModel(), VOCABULARY, description)  # type: ignore[arg-type]


@pytest.fixture
def planted_waveform() -> Say:
    """A waveform that says a text."""
    return planted_speech


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Write a recording that says a text, and give its path."""

    def write(text: str, name: str = "speech.wav") -> Path:
        soundfile.write(tmp_path / name, planted_speech(text), 16_000)
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, as saved."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = CTCModel(TINY, len(VOCABULARY))
    torch.nn.init.normal_(model.head.weight)  # so that different sounds give different letters
    save_model(folder, ModelDescription(kind="ctc", step=1, encoder=TINY), model.state_dict(), VOCABULARY)
    return folder
