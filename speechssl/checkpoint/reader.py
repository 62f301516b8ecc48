"""Reading a model, in whatever format it lies there."""

from collections.abc import Callable
from pathlib import Path

import torch

from speechssl.checkpoint import huggingface, native, pytorch_files
from speechssl.checkpoint.foreign import read_json
from speechssl.checkpoint.hub import find_model
from speechssl.checkpoint.saved_model import CTCCheckpoint, SavedModel
from speechssl.errors import CheckpointError
from speechssl.model.encoder import SpeechEncoder

FORMATS: tuple[Callable[[Path, str | None], SavedModel | None], ...] = (
    huggingface.read_folder,
    native.read_folder,
    pytorch_files.read_file,
)
"""What reads each format, in the order in which they are tried: None says that it is another's."""


def read_model(path: Path | str, language: str | None = None) -> SavedModel:
    """Read a model, or the ``best`` or else the ``latest`` one of a training run; its weights follow when needed.

    Args:
        path: A model folder of ours or of transformers, a single file of another toolkit, a training run, or a name
            on the Hugging Face Hub: ``owner/name`` or ``owner/name@revision``. A path that exists is never taken for
            a name.
        language: Of a model with adapters and a vocabulary for each, such as "fra"; None is its own choice.

    Raises:
        CheckpointError: there is no model, or its description is malformed, or it lacks the language.
    """
    path = find_model(path, language)
    for candidate in (path, path / "best", path / "latest"):
        for read in FORMATS:
            if (model := read(candidate, language)) is not None:
                if language is not None and not model.has_languages:
                    raise CheckpointError(
                        f"{candidate}: expected a model with a choice of languages, found one without"
                    )
                return model
    if not path.exists():
        raise CheckpointError(f"{path}: no such model folder")
    if isinstance(adapter := read_json(path / "adapter_config.json"), dict):
        base = adapter.get("base_model_name_or_path") or "its base model"
        raise CheckpointError(
            f"{path}: expected a model, found an adapter of PEFT for {base} (save PEFT's merge_and_unload() of both)"
        )
    raise CheckpointError(f"{path}: expected a model folder with config.json or a training run with best/config.json")


def language_for(path: Path | str, language: str | None) -> str | None:
    """Return the language if the model has a choice of languages; else None, for `read_model`."""
    return language if language is not None and read_model(path).has_languages else None


def load_encoder(
    path: Path | str, device: torch.device | str | None = None, language: str | None = None
) -> SpeechEncoder:
    """Load the encoder of any model, pretrained or fine-tuned, in evaluation mode.

    Args:
        path: As for `read_model`.
        device: Where to; None is the GPU if there is one, else the CPU.
        language: As for `read_model`.

    Raises:
        CheckpointError: there is no model, or it is damaged.
    """
    return read_model(path, language).encoder(device)


def load_ctc(path: Path | str, device: torch.device | str | None = None, language: str | None = None) -> CTCCheckpoint:
    """Load a fine-tuned model; as `load_encoder`."""
    return read_model(path, language).ctc(device)
