"""Models by name on the Hugging Face Hub: fetched into its cache, and from then on used from there."""

import hashlib
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from speechssl.errors import CheckpointError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The files of a model folder that may hold its weights, or say which do, in the order in which they are tried."""

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SMALL = ("*.json", "README.md")
_PARTS = (("model.safetensors", "model-*-of-*.safetensors"), ("pytorch_model.bin", "pytorch_model-*-of-*.bin"))


def find_model(model: str | os.PathLike[str], language: str | None = None) -> Path:
    """Return where a model lies: a path that exists, or the folder of a name on the hub, fetched if need be.

    Args:
        model: A path, or ``owner/name``, or ``owner/name@revision``.
        language: Whose adapter is wanted too, if the model has adapters.

    Raises:
        CheckpointError: the hub has no such model or cannot be reached, or the package for it is missing.
    """
    path = Path(model)
    name, _, revision = str(model).partition("@")
    if path.exists() or not _NAME.fullmatch(name):
        return path
    adapters = [] if language is None else [f"adapter.{language}.{suffix}" for suffix in ("safetensors", "bin")]
    folder = path
    for parts in _PARTS:
        folder = _fetch(name, revision or None, [*_SMALL, *adapters, *parts])
        if any((folder / weights).is_file() for weights in WEIGHTS):
            break
    return folder


def _fetch(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    try:
        from huggingface_hub import constants, errors, snapshot_download, utils
    except ImportError:
        reason = "no such model folder, and models on the hub need pip install 'speechssl[hub]'"
        raise CheckpointError(f"{name}: {reason}") from None
    if not sys.stderr.isatty():
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    started = time.time()
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name}: {constants.ENDPOINT} has no revision {revision!r} of it") from None
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        login = "if it is private or gated, set HF_TOKEN or run `hf auth login`"
        kind = "restricts it" if isinstance(error, errors.GatedRepoError) else "has none of that name"
        raise CheckpointError(f"{name}: no such model folder, and {constants.ENDPOINT} {kind}; {login}") from None
    except errors.LocalEntryNotFoundError as error:
        cause = f" ({_first_line(error.__cause__)})" if error.__cause__ else ""
        reason = f"neither a folder nor complete in the cache, and {constants.ENDPOINT} cannot be reached{cause}"
        raise CheckpointError(f"{name}: {reason}") from None
    except (OSError, ValueError, getattr(errors, "HTTPError", OSError)) as error:
        raise CheckpointError(f"{name}: cannot be fetched from {constants.ENDPOINT}: {_first_line(error)}") from None
    _verify(folder, started)
    return folder


def _verify(folder: Path, started: float) -> None:
    """Compare what was fetched just now with its digest, by which the cache names large files."""
    for path in folder.iterdir():
        file = path.resolve()
        if not re.fullmatch(r"[0-9a-f]{64}", file.name) or file.stat().st_mtime < started - 1:
            continue
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != file.name:
            path.unlink()
            file.unlink()
            raise CheckpointError(f"{path}: damaged on the way, and deleted again: expected SHA-256 {file.name}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
