"""What a run needs beside the model to go on exactly: tensors of the training and a few numbers."""

import errno
import json
import math
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed import ProcessGroup

from speechssl.errors import CheckpointError, SpeechSSLError
from speechssl.files import ordinary_permissions, replace_link, replaced_folder

_NUMBERS, _TENSORS, _CHECKSUMS = "training.json", "training.safetensors", "checksums.json"
_PARTS = "training"  # a folder instead of the tensors' file, if several processes have parts of them
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Progress:
    """Updates done, and the step and score of the best evaluation so far: lower is better, None before the first."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None

    def advanced(self, step: int, score: float | None) -> "Progress":
        """Return where it stands after more updates, and perhaps an evaluation; a NaN is never the best."""
        if score is not None and not math.isnan(score) and (self.best_score is None or score < self.best_score):
            return Progress(step, step, score)
        return Progress(step, self.best_step, self.best_score)


@contextmanager
def new_checkpoint(run: Path, progress: Progress, keep_last: int) -> Iterator[Path]:
    """Fill a folder that becomes a checkpoint of a run, to which ``latest`` points, and ``best`` if it is the best.

    A kill or a power cut at any moment leaves the previous checkpoint or the new one, never a part.

    Args:
        run: The run's folder.
        progress: Where it stands.
        keep_last: Checkpoints that are kept, as for `repair_links`.

    Raises:
        CheckpointError: the files cannot be written, such as on a full disk.
    """
    folder = _folder(run, progress.step)
    try:
        with replaced_folder(folder) as temporary:
            yield temporary
            (temporary / _NUMBERS).write_text(json.dumps(asdict(progress)) + "\n", "utf-8")
            files = [file for file in sorted(temporary.rglob("*")) if file.is_file()]
            checksums = {file.relative_to(temporary).as_posix(): _checksum(file) for file in files}
            (temporary / _CHECKSUMS).write_text(json.dumps(checksums) + "\n", "utf-8")
        repair_links(run, progress, keep_last)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written, the checkpoint before it is intact: {error}") from None


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], group: ProcessGroup | None = None) -> None:
    """Write what a training needs beside its model into a folder.

    Args:
        folder: Of a checkpoint.
        tensors: On the CPU.
        group: Processes that each have a part of the tensors: all call it, and `torch.distributed.checkpoint` writes
            a safetensors file of each.

    Raises:
        OSError: a process cannot write.
    """
    if group is None:
        with ordinary_permissions(folder / _TENSORS):
            safetensors.torch.save_file(dict(tensors), folder / _TENSORS, {"format": "pt"})
        return
    distributed: Any = import_module("torch.distributed.checkpoint")  # which takes a second

    writer = distributed.HuggingFaceStorageWriter(str(folder / _PARTS), save_distributed=True)
    try:
        distributed.save(dict(tensors), storage_writer=writer, process_group=group)
    except distributed.CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise OSError(str(cause)) from None


def repair_links(run: Path, progress: Progress, keep_last: int) -> None:
    """Make ``latest`` and ``best`` those of a state, and delete all checkpoints that are not kept.

    The last ``keep_last`` up to this state are kept, and what was the best when each was saved: ``best`` would
    otherwise be lost when a run falls back to one of them.
    """
    latest = _folder(run, progress.step)
    replace_link(run / "latest", latest)
    if progress.best_step is not None:
        replace_link(run / "best", _folder(run, progress.best_step))
    elif (run / "best").is_symlink():
        (run / "best").unlink()
    kept = [progress]
    for folder in _earlier(run, latest.name):
        if len(kept) < keep_last:
            with suppress(CheckpointError):
                kept.append(_read_progress(folder))
    keep = {_folder(run, step) for state in kept for step in (state.step, state.best_step) if step is not None}
    for folder in (run / "checkpoints").glob("*step_*"):
        if folder not in keep:
            shutil.rmtree(folder, ignore_errors=True)  # what somebody reads over a network stays until the next time


def find_progress(run: Path) -> tuple[Progress, Sequence[str]]:
    """Return where the last undamaged checkpoint of a run stands, and what is wrong with those after it.

    Every byte of it is compared with its checksum. `repair_links` makes it the latest; nothing is changed here.

    Raises:
        CheckpointError: all checkpoints are damaged, or gone.
        SpeechSSLError: one may not be read.
    """
    link = run / "latest"
    if not link.is_symlink():
        return Progress(), ()
    newest = run / "checkpoints" / link.readlink().name
    problems: list[str] = []
    for folder in (newest, *_earlier(run, newest.name)):
        try:
            _check(folder)
            return _read_progress(folder), problems
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(problems[0])  # to begin anew would throw the rest of the run away


def load_progress(run: Path) -> Progress:
    """Return where the latest checkpoint of a run stands; step 0 if it has none.

    Raises:
        CheckpointError: the checkpoint is damaged, or gone.
    """
    link = run / "latest"
    return _read_progress(link) if link.is_symlink() else Progress()


def _earlier(run: Path, name: str) -> list[Path]:
    """Return the folders of checkpoints before one of this name, newest first."""
    folders = [folder for folder in (run / "checkpoints").glob("step_*") if folder.name < name]
    return sorted(folders, reverse=True)


def _read_progress(folder: Path) -> Progress:
    file = folder / _NUMBERS
    try:
        numbers = Progress(**json.loads(file.read_text("utf-8")))
        is_right = isinstance(numbers.step, int) and isinstance(numbers.best_step, int | None)
        if not is_right or not isinstance(numbers.best_score, float | int | None):
            raise ValueError(f"found {numbers}")
        return numbers
    except FileNotFoundError:
        raise CheckpointError(f"{file}: expected the numbers of a training state, found no such file") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: expected the numbers of a training state: {error}") from None


def _check(folder: Path) -> None:
    """Compare the files of a checkpoint with their checksums, if it has some: earlier versions wrote none.

    Raises:
        CheckpointError: one differs, or is missing.
        SpeechSSLError: one may not be read.
    """
    file = folder / _CHECKSUMS
    if not file.exists():
        return
    try:
        checksums = json.loads(file.read_text("utf-8"))
        for name, checksum in checksums.items():
            file = folder / name
            if _checksum(file) != checksum:
                raise CheckpointError(f"{file}: expected what was written, found it truncated or damaged")
    except (ValueError, AttributeError):
        raise CheckpointError(f"{file}: expected checksums, found it truncated or damaged") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EIO):  # it may be whole, and is not given up
            raise SpeechSSLError(f"{file}: cannot be read: {error.strerror}") from None
        raise CheckpointError(f"{file}: expected what was written: {error.strerror}") from None


def _checksum(file: Path) -> int:
    """Return the CRC-32 of a file: damage is to be found, not forgery."""
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def load_training_tensors(run: Path, parts: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the tensors saved with the latest checkpoint, whoever wrote them: whole ones on the CPU, or parts.

    Args:
        run: The run's folder.
        parts: Weights of the model by name: of tensors for a weight that is sharded, and that were written in parts,
            only the same part is read, to its device.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    folder = run / "latest"
    try:
        if (folder / _PARTS).is_dir():
            return _load_parts(folder / _PARTS, parts or {})
        return safetensors.torch.load_file(folder / _TENSORS)
    except (SafetensorError, OSError) as error:
        file = folder / (_PARTS if (folder / _PARTS).is_dir() else _TENSORS)
        raise CheckpointError(f"{file}: expected a complete safetensors file: {error}") from None


def _load_parts(folder: Path, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    distributed: Any = import_module("torch.distributed.checkpoint")  # which takes a second

    reader = distributed.HuggingFaceStorageReader(str(folder))
    tensors = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        like = parts.get(key.split("/", 1)[1])
        if like is not None and hasattr(like, "full_tensor") and like.shape == stored.size:
            tensors[key] = torch.zeros_like(like)
        else:
            tensors[key] = torch.empty(stored.size, dtype=stored.properties.dtype)
    with warnings.catch_warnings(action="ignore"):  # that each process reads for itself
        distributed.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"
