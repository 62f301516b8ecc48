"""Models on disk: a folder with ``config.json``, ``model.safetensors`` and, for CTC, ``vocab.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import AliasChoices, Field
from safetensors import SafetensorError
from torch import Tensor

from speechssl import __version__
from speechssl.config import Config
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.units import Letters, Units
from speechssl.errors import CheckpointError, ConfigError
from speechssl.files import ordinary_permissions
from speechssl.model.ctc import CTCModel
from speechssl.model.device import resolve_device
from speechssl.model.encoder import EncoderConfig, SpeechEncoder

_CONFIG, _WEIGHTS, _VOCABULARY = "config.json", "model.safetensors", "vocab.json"
_ENCODER_PREFIX = "encoder."
_FORMER_WEIGHTS = {"objective.centres": "objective.centers"}  # names of earlier versions


class TrainingData(Config):
    """One data set a model has seen.

    Attributes:
        stage: What it was used for.
        license: Its license, as given by the training configuration.
        hours: Audio in it.
        labeled: Whether its transcripts were used.
    """

    stage: str
    license: str = Field(validation_alias=AliasChoices("license", "licence"))  # the latter of earlier versions
    hours: float
    labeled: bool = Field(validation_alias=AliasChoices("labeled", "labelled"))  # the latter of earlier versions


class ModelDescription(Config):
    """What ``config.json`` says of a model.

    Attributes:
        format: Always "speechssl".
        format_version: Raised when older programs can no longer read the folder.
        speechssl_version: The version that wrote it.
        kind: "pretrained" has an encoder and its objective, "ctc" an encoder and a head over ``vocab.json``.
        sample_rate: Of the waveforms it takes.
        step: Updates of the last stage.
        encoder: Its architecture.
        objective: The configuration of the pretraining objective.
        training_data: Everything it was trained on, pretraining included.
    """

    format: Literal["speechssl"] = "speechssl"
    format_version: Literal[1] = 1
    speechssl_version: str = Field(default_factory=lambda: __version__)
    kind: Literal["pretrained", "ctc"]
    sample_rate: int = SAMPLE_RATE
    step: int
    encoder: EncoderConfig
    objective: dict[str, Any] | None = None
    training_data: tuple[TrainingData, ...] = ()


@dataclass(frozen=True)
class CTCCheckpoint:
    """A CTC model ready for use.

    Attributes:
        model: In evaluation mode, on the device asked for.
        vocabulary: Its symbols.
        description: Its ``config.json``.
    """

    model: CTCModel
    vocabulary: Units
    description: ModelDescription


def save_model(
    folder: Path,
    description: ModelDescription,
    weights: Mapping[str, Tensor],
    vocabulary: Units | None = None,
) -> None:
    """Write a model into an existing folder; ``replaced_folder`` makes that one step for its readers.

    Args:
        folder: Where to.
        description: What the model is.
        weights: The model's ``state_dict()``.
        vocabulary: The symbols of a CTC model.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with ordinary_permissions(folder / _WEIGHTS):
        safetensors.torch.save_file(tensors, folder / _WEIGHTS)
    if vocabulary is not None:
        vocabulary.save(folder / _VOCABULARY)
    (folder / _CONFIG).write_text(json.dumps(description.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")


def find_model(path: Path) -> Path:
    """The folder of a model: the path itself, or the ``best`` or else the ``latest`` checkpoint of a training run.

    Raises:
        CheckpointError: there is no model.
    """
    for candidate in (path, path / "best", path / "latest"):
        if (candidate / _CONFIG).is_file():
            return candidate
    if not path.exists():
        raise CheckpointError(f"{path}: no such model folder")
    raise CheckpointError(f"{path}: expected a model folder with {_CONFIG} or a training run with best/{_CONFIG}")


def load_description(path: Path) -> ModelDescription:
    """Read ``config.json`` of a model or training run.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    file = find_model(path) / _CONFIG
    try:
        values = json.loads(file.read_text("utf-8"))
        if not isinstance(values, dict) or values.get("format") != "speechssl":
            raise CheckpointError(f'{file}: expected "format": "speechssl"')
        return ModelDescription.from_dict(values, str(file))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file}: expected JSON: {error}") from None
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read all weights of a model or training run, on the CPU.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    file = find_model(path) / _WEIGHTS
    try:
        weights = safetensors.torch.load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: expected a complete safetensors file: {error}") from None
    return {_FORMER_WEIGHTS.get(name, name): tensor for name, tensor in weights.items()}


def load_ctc(path: Path | str, device: torch.device | str | None = None) -> CTCCheckpoint:
    """Load a fine-tuned model.

    Args:
        path: A model folder or a training run.
        device: Where to; None is the GPU if there is one, else the CPU.

    Raises:
        CheckpointError: there is no CTC model, or it is damaged.
    """
    path = Path(path)
    description = load_description(path)
    if description.kind != "ctc":
        raise CheckpointError(f"{path}: expected a fine-tuned (ctc) model, found a {description.kind} one")
    folder = find_model(path)
    vocabulary = Letters.load(folder / _VOCABULARY)
    model = CTCModel(description.encoder, len(vocabulary))
    _fill(model, load_weights(path), folder)
    return CTCCheckpoint(model.eval().to(resolve_device(device)), vocabulary, description)


def load_encoder(path: Path | str, device: torch.device | str | None = None) -> SpeechEncoder:
    """Load the encoder of any model, pretrained or fine-tuned, in evaluation mode.

    Args:
        path: A model folder or a training run.
        device: Where to; None is the GPU if there is one, else the CPU.

    Raises:
        CheckpointError: there is no model, or it is damaged.
    """
    path = Path(path)
    encoder = SpeechEncoder(load_description(path).encoder)
    weights = {
        name.removeprefix(_ENCODER_PREFIX): tensor
        for name, tensor in load_weights(path).items()
        if name.startswith(_ENCODER_PREFIX)
    }
    _fill(encoder, weights, find_model(path))
    return encoder.eval().to(resolve_device(device))


def _fill(model: torch.nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            wanted = tuple(expected[name]) if name in expected else "no such weight"
            there = tuple(found[name]) if name in found else "none"
            raise CheckpointError(f"{folder / _WEIGHTS}: {name}: expected {wanted}, found {there}")
    model.load_state_dict(weights)
