"""Where a calibration lies: beside the weights, or beside the settings of a language model, known by their digest."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self

from speechssl.config import Config
from speechssl.decode.calibration import Calibration
from speechssl.decode.settings import BeamSearchConfig
from speechssl.errors import CheckpointError, system_errors
from speechssl.files import digest_files, write_text_file


class _Content(Config):
    format: Literal["speechssl-calibration"] = "speechssl-calibration"
    sha256: str
    calibration: Calibration


@dataclass(frozen=True)
class CalibrationFile:
    """The calibration of a model that decodes in some way.

    Attributes:
        path: Where it lies.
        inputs: The files on which confidences depend: those of the weights, and the language model.
        settings: What else they depend on.
    """

    path: Path
    inputs: tuple[Path, ...]
    settings: str = ""

    @classmethod
    def of(cls, weights_files: Sequence[Path], lm: Path | None = None) -> Self:
        """Return that of a model, with the language model or the settings in ``lm`` or without one."""
        if lm is None:
            return cls(beside(weights_files[0]), tuple(weights_files))
        config = BeamSearchConfig.read(lm)
        settings = {name: value for name, value in config.to_dict().items() if name != "lm"}
        return cls(beside(lm), (*weights_files, config.lm), json.dumps(settings, sort_keys=True))

    def read(self) -> Calibration | None:
        """Return the calibration; None if there is none, and with a warning if it is of others than the inputs.

        Raises:
            CheckpointError: it is malformed or cannot be read.
        """
        if not self.path.is_file():
            return None
        try:
            content = json.loads(self.path.read_text("utf-8"))
            if not isinstance(content, dict):
                raise ValueError(f"expected an object, found {type(content).__name__}")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: expected a calibration: {error}") from None
        stored = _Content.from_dict(content, str(self.path))
        if stored.sha256 == self._digest():
            return stored.calibration
        inputs = ", ".join(path.name for path in self.inputs)
        expected = f"expected a calibration of {inputs}{' and these settings' if self.settings else ''}"
        warnings.warn(
            f"{self.path}: {expected}, found one of others: confidences are uncalibrated (run speechssl calibrate)",
            stacklevel=2,
        )
        return None

    def write(self, calibration: Calibration) -> None:
        """Store a calibration.

        Raises:
            CheckpointError: it cannot be written, or the inputs cannot be read.
        """
        content = _Content(sha256=self._digest(), calibration=calibration).to_dict()
        with system_errors(CheckpointError, self.path):
            write_text_file(self.path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")

    def _digest(self) -> str:
        try:
            files = digest_files(self.inputs)
        except OSError as error:
            raise CheckpointError(f"{error.filename}: {error.strerror or error}") from None
        return sha256(f"{files} {self.settings}".encode()).hexdigest() if self.settings else files


def copy_calibration(weights_files: Sequence[Path], exported: Sequence[Path]) -> None:
    """Give files of the same weights in another form the calibration of a model, if it has one."""
    if calibration := CalibrationFile.of(weights_files).read():
        CalibrationFile.of(exported).write(calibration)


def beside(path: Path) -> Path:
    """Return where the calibration lies that belongs to a file of weights or of settings."""
    return path.with_name(f"{path.name}.calibration.json")
