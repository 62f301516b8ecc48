"""A model as it lies on a disk, whatever its format."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import AliasChoices, Field
from torch import Tensor

from speechssl import __version__
from speechssl.config import Config
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.units import Units
from speechssl.errors import CheckpointError
from speechssl.model.ctc import CTCModel
from speechssl.model.device import resolve_device
from speechssl.model.encoder import EncoderConfig, SpeechEncoder

_ENCODER_PREFIX = "encoder."


class TrainingData(Config):
    """One data set a model has seen, with the license that the training configuration gave."""

    stage: str
    license: str = Field(validation_alias=AliasChoices("license", "licence"))  # the latter of earlier versions
    hours: float
    labeled: bool = Field(validation_alias=AliasChoices("labeled", "labelled"))  # the latter of earlier versions


class ModelDescription(Config):
    """What is known of a model: the content of ``config.json`` in our own format.

    Attributes:
        format_version: Raised when older programs can no longer read the folder.
        kind: "pretrained" has an encoder and its objective, "ctc" an encoder and a head over ``vocab.json``.
        step: Updates of the last stage.
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
    """A CTC model in evaluation mode, on the device asked for."""

    model: CTCModel
    vocabulary: Units
    description: ModelDescription


@dataclass(frozen=True)
class SavedModel:
    """A model on a disk.

    Attributes:
        vocabulary: Its symbols if it has a CTC head.
        weights_file: What its weights are read from.
        read_weights: Reads them, by their names in a `CTCModel` or a pretraining model; raises `CheckpointError`.
    """

    description: ModelDescription
    vocabulary: Units | None
    weights_file: Path
    read_weights: Callable[[], Mapping[str, Tensor]]

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """All weights, on the CPU, read when they are first asked for."""
        return self.read_weights()

    @property
    def digest(self) -> str:
        """The SHA-256 of the weights' file.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            with self.weights_file.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{self.weights_file}: {error.strerror or error}") from None

    def encoder(self, device: torch.device | str | None = None) -> SpeechEncoder:
        """Return the encoder in evaluation mode, on a device; None is the GPU if there is one, else the CPU.

        Raises:
            CheckpointError: the weights are damaged or those of another architecture, or there is no such device.
        """
        encoder = SpeechEncoder(self.description.encoder)
        weights = {
            name.removeprefix(_ENCODER_PREFIX): tensor
            for name, tensor in self.weights.items()
            if name.startswith(_ENCODER_PREFIX)
        }
        self.fill(encoder, weights)
        return encoder.eval().to(resolve_device(device))

    def ctc(self, device: torch.device | str | None = None) -> CTCCheckpoint:
        """Return the fine-tuned model; as for `encoder`.

        Raises:
            CheckpointError: it is not fine-tuned, or as for `encoder`.
        """
        if self.vocabulary is None:
            found = self.description.kind
            raise CheckpointError(f"{self.weights_file.parent}: expected a fine-tuned (ctc) model, found a {found} one")
        model = CTCModel(self.description.encoder, len(self.vocabulary))
        self.fill(model, self.weights)
        return CTCCheckpoint(model.eval().to(resolve_device(device)), self.vocabulary, self.description)

    def fill(self, model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Give a model these weights of the file.

        Raises:
            CheckpointError: the names or shapes are others than the model's.
        """
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        found = {name: tensor.shape for name, tensor in weights.items()}
        for name in sorted({*expected, *found}):
            if expected.get(name) != found.get(name):
                wanted = tuple(expected[name]) if name in expected else "no such weight"
                there = tuple(found[name]) if name in found else "none"
                raise CheckpointError(f"{self.weights_file}: {name}: expected {wanted}, found {there}")
        model.load_state_dict(weights)
