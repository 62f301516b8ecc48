"""Our own format: a folder with ``config.json``, ``model.safetensors`` and, for CTC, ``vocab.json``."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from speechssl.checkpoint.foreign import read_json
from speechssl.checkpoint.saved_model import ModelDescription, SavedModel
from speechssl.data.units import Units
from speechssl.data.units_file import load_units
from speechssl.errors import CheckpointError, ConfigError
from speechssl.files import ordinary_permissions

_CONFIG, _WEIGHTS, _VOCABULARY = "config.json", "model.safetensors", "vocab.json"
_FORMER_WEIGHTS = {"objective.centres": "objective.centers"}  # names of earlier versions


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
    write_weights(folder, weights)
    if vocabulary is not None:
        vocabulary.save(folder / _VOCABULARY)
    (folder / _CONFIG).write_text(json.dumps(description.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write ``model.safetensors`` into a folder."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with ordinary_permissions(folder / _WEIGHTS):
        safetensors.torch.save_file(tensors, folder / _WEIGHTS, {"format": "pt"})


def read_folder(folder: Path, language: str | None = None) -> SavedModel | None:
    """Read a model folder; None if it holds something else.

    Raises:
        CheckpointError: its ``config.json`` or ``vocab.json`` is malformed.
    """
    file = folder / _CONFIG
    if not file.is_file():
        return None
    values = read_json(file)
    if not isinstance(values, dict) or values.get("format") != "speechssl":
        raise CheckpointError(f'{file}: expected "format": "speechssl"')
    try:
        description = ModelDescription.from_dict(values, str(file))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    vocabulary = load_units(folder / _VOCABULARY) if description.kind == "ctc" else None
    weights = folder / _WEIGHTS
    return SavedModel(description, vocabulary, (weights,), partial(_read_weights, weights))


def _read_weights(file: Path) -> dict[str, Tensor]:
    return {_FORMER_WEIGHTS.get(name, name): tensor for name, tensor in read_safetensors(file).items()}


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        file.open("rb").close()  # safetensors calls missing what may not be read
        return safetensors.torch.load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except PermissionError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: expected a complete safetensors file: {error}") from None
