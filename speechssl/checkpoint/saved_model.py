"""A model as it lies on a disk, whatever its format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import AliasChoices, Field
from torch import Tensor

from speechssl import __version__
from speechssl.checkpoint.foreign import Names, listed, to_ours
from speechssl.config import Config
from speechssl.data.audio import SAMPLE_RATE
from speechssl.data.manifest import Manifest
from speechssl.data.units import Units
from speechssl.errors import CheckpointError
from speechssl.files import digest_files
from speechssl.model.ctc import CTCModel
from speechssl.model.device import resolve_device
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.model.unfilled import Unfilled

_ENCODER_PREFIX = "encoder."


class TrainingData(Config):
    """One data set a model has seen, with the license that the training configuration gave."""

    stage: str
    license: str = Field(validation_alias=AliasChoices("license", "licence"))  # the latter of earlier versions
    hours: float | None  # None of what others trained
    labeled: bool = Field(validation_alias=AliasChoices("labeled", "labelled"))  # the latter of earlier versions

    @classmethod
    def of(cls, stage: str, license_: str, manifest: Manifest, *, labeled: bool) -> Self:
        """Describe the utterances of a manifest, all of them."""
        return cls(stage=stage, license=license_, hours=float(manifest.seconds.sum()) / 3600, labeled=labeled)


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


Network = TypeVar("Network", bound=torch.nn.Module)
NO_LICENSE = "no license in the file"
NO_SETTINGS = "no settings in the file: heads, strides and normalization are those of published models of its sizes"


@dataclass(frozen=True)
class CTCCheckpoint:
    """A CTC model in evaluation mode, on the device asked for."""

    model: CTCModel
    vocabulary: Units
    description: ModelDescription
    weights_files: tuple[Path, ...] = ()  # what its weights were read from; none if they were made in memory


@dataclass(frozen=True)
class SavedModel:
    """A model on a disk.

    Attributes:
        vocabulary: Its symbols if it has a CTC head.
        weights_files: What its weights are read from, at least one.
        read_weights: Reads them, by their names in a `CTCModel` or a pretraining model; raises `CheckpointError`.
        family: What kind of model it is, and whose.
        has_languages: Whether it has a choice of languages, of which one was chosen.
        names: The names of the weights in the files, if they are others than ours.
        remarks: What is missing or had to be assumed, a line each.
    """

    description: ModelDescription
    vocabulary: Units | None
    weights_files: tuple[Path, ...]
    read_weights: Callable[[], Mapping[str, Tensor]]
    family: str = "speechssl"
    names: Names | None = None
    remarks: tuple[str, ...] = ()
    has_languages: bool = False

    @property
    def weights_file(self) -> Path:
        """The first file of the weights, which errors name."""
        return self.weights_files[0]

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """All weights, on the CPU, read when they are first asked for."""
        return self.read_weights()

    @property
    def encoder_weights(self) -> dict[str, Tensor]:
        """Those of the encoder, by their names in it."""
        return {
            name.removeprefix(_ENCODER_PREFIX): tensor
            for name, tensor in self.weights.items()
            if name.startswith(_ENCODER_PREFIX)
        }

    @property
    def digest(self) -> str:
        """The SHA-256 of the weights' files, one after another.

        Raises:
            CheckpointError: one cannot be read.
        """
        try:
            return digest_files(self.weights_files)
        except OSError as error:
            raise CheckpointError(f"{error.filename}: {error.strerror or error}") from None

    def encoder(self, device: torch.device | str | None = None) -> SpeechEncoder:
        """Return the encoder in evaluation mode, on a device; None is the GPU if there is one, else the CPU.

        Raises:
            CheckpointError: the weights are damaged or those of another architecture, or there is no such device.
        """
        encoder = self._filled(lambda: SpeechEncoder(self.description.encoder), self.encoder_weights)
        return encoder.eval().to(resolve_device(device))

    def ctc(self, device: torch.device | str | None = None) -> CTCCheckpoint:
        """Return the fine-tuned model; as for `encoder`.

        Raises:
            CheckpointError: it is not fine-tuned, or as for `encoder`.
        """
        if self.vocabulary is None:
            found = "; ".join((f"a {self.description.kind} one", *self.remarks))
            raise CheckpointError(f"{self.weights_file.parent}: expected a fine-tuned (ctc) model, found {found}")
        num_symbols = len(self.vocabulary)
        model = self._filled(lambda: CTCModel(self.description.encoder, num_symbols), self.weights)
        model = model.eval().to(resolve_device(device))
        return CTCCheckpoint(model, self.vocabulary, self.description, self.weights_files)

    def _filled(self, build: Callable[[], Network], weights: Mapping[str, Tensor]) -> Network:
        with torch.device("meta"), Unfilled():  # no memory for sizes that are stated and not there
            self.check(build(), weights)
        with Unfilled():
            model = build()
        model.load_state_dict(weights)
        return model

    def fill(self, model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Give a model these weights of the files; as for `check`."""
        self.check(model, weights)
        model.load_state_dict(weights)

    def check(self, model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Compare the weights of the files with those of a model.

        Raises:
            CheckpointError: names or shapes are others than the model's; all are listed.
        """
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        found = {name: tensor.shape for name, tensor in weights.items()}
        wrong = []
        for name in sorted({*expected, *found}):
            if expected.get(name) != found.get(name):
                theirs = self.names and (self.names.theirs(name) or self.names.theirs(f"{_ENCODER_PREFIX}{name}"))
                wanted = tuple(expected[name]) if name in expected else "no such weight"
                there = tuple(found[name]) if name in found else "none"
                wrong.append(f"{theirs or name}: expected {wanted}, found {there}")
        if wrong:
            raise CheckpointError(f"{self.weights_file}: {listed(wrong)}")


def foreign_model(
    file: Path,
    family: str,
    names: Names,
    weights: Mapping[str, Tensor],
    encoder: EncoderConfig,
    tokens: Units | None = None,
    *,
    step: int = 0,
    remarks: tuple[str, ...] = (NO_LICENSE,),
) -> SavedModel:
    """Return the model in a file of another toolkit, of which nothing else is known.

    Args:
        file: Where it lies, by whose name it is called.
        family: What kind of model it is, and whose.
        names: The names of its weights.
        weights: By these names; those that are missing, left over or of another shape are found when they are needed.
        encoder: Its sizes.
        tokens: What its outputs stand for, if it has a CTC head.
        step: Updates that it was trained for.
        remarks: What is missing or had to be assumed.
    """
    has_head = tokens is not None
    description = ModelDescription(
        speechssl_version="-",
        kind="ctc" if has_head else "pretrained",
        step=step,
        encoder=encoder,
        training_data=(TrainingData(stage=file.name, license="unknown", hours=None, labeled=has_head),),
    )
    read_weights = partial(to_ours, weights, names, encoder, file)
    return SavedModel(description, tokens, (file,), read_weights, family, names, remarks)
