"""What a run needs beside the model to go on exactly: tensors of the training and a few numbers."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from speechssl.errors import CheckpointError
from speechssl.files import ordinary_permissions, replace_link, replaced_folder

_NUMBERS, _TENSORS = "training.json", "training.safetensors"


@dataclass(frozen=True)
class Progress:
    """Updates done, and the step and score of the best evaluation so far: lower is better, None before the first."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None

    def advanced(self, step: int, score: float | None) -> "Progress":
        """Return where it stands after more updates, and perhaps an evaluation; a NaN is never the best."""
        if score is not None and (self.best_score is None or score < self.best_score):
            return Progress(step, step, score)
        return Progress(step, self.best_step, self.best_score)


def save_checkpoint(
    run: Path, progress: Progress, tensors: Mapping[str, Tensor], write_model: Callable[[Path], None]
) -> None:
    """Write a checkpoint of a run and point ``latest``, and ``best`` if it is the best, to it.

    A kill or a power cut at any moment leaves the previous checkpoint or the new one, never a part.

    Args:
        run: The run's folder.
        progress: Where it stands.
        tensors: What the training needs beside the model, on the CPU.
        write_model: Writes the model's own files into a folder.

    Raises:
        CheckpointError: the files cannot be written, such as on a full disk.
    """
    folder = _folder(run, progress.step)
    try:
        with replaced_folder(folder) as temporary:
            write_model(temporary)
            with ordinary_permissions(temporary / _TENSORS):
                safetensors.torch.save_file(dict(tensors), temporary / _TENSORS, {"format": "pt"})
            (temporary / _NUMBERS).write_text(json.dumps(asdict(progress)) + "\n", "utf-8")
        replace_link(run / "latest", folder)
        repair_links(run, progress)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written, the checkpoint before it is intact: {error}") from None


def repair_links(run: Path, progress: Progress) -> None:
    """Make ``best`` agree with the latest state, and delete checkpoints that nothing points to."""
    keep = {progress.step, progress.best_step}
    if progress.best_step is not None:
        replace_link(run / "best", _folder(run, progress.best_step))
    elif (run / "best").is_symlink():
        (run / "best").unlink()
    for folder in (run / "checkpoints").glob("*step_*"):
        if folder not in {_folder(run, step) for step in keep if step is not None}:
            shutil.rmtree(folder, ignore_errors=True)  # what somebody reads over a network stays until the next time


def load_progress(run: Path) -> Progress:
    """Return where the run in a folder stands; step 0 if it has no checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged, or gone.
    """
    link = run / "latest"
    file = link / _NUMBERS
    if not file.exists():
        if link.is_symlink():  # no kill leaves this, and to begin anew would throw the rest of the run away
            raise CheckpointError(f"{file}: expected a checkpoint, found none behind the link to {link.readlink()}")
        return Progress()
    try:
        numbers = Progress(**json.loads(file.read_text("utf-8")))
        is_right = isinstance(numbers.step, int) and isinstance(numbers.best_step, int | None)
        if not is_right or not isinstance(numbers.best_score, float | int | None):
            raise ValueError(f"found {numbers}")
        return numbers
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: expected the numbers of a training state: {error}") from None


def load_training_tensors(run: Path) -> dict[str, Tensor]:
    """Return the tensors saved with the latest checkpoint, on the CPU.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    file = run / "latest" / _TENSORS
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: expected a complete safetensors file: {error}") from None


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"
