"""Recordings that cannot be read: left out up to a stated share, counted and named."""

from collections.abc import Sequence
from pathlib import Path

from speechssl.data.batches import TaskBatch
from speechssl.data.manifest import Manifest
from speechssl.errors import TrainingError
from speechssl.terminal import print_status
from speechssl.train.writers import read_lines, write_lines

UNREADABLE_FILE = "unreadable.jsonl"
_MOST_LISTED = 3

Found = tuple[str, str]  # where an utterance stands, and what is wrong with it


class UnreadableCount:
    """Counts the utterances that a run could not read, each once, and names them in ``unreadable.jsonl``.

    Args:
        run: Its folder.
        manifests: Of each part of a batch's audio.
        max_share: Of all their utterances.
        first_step: The count is that of this step: what a run that was killed found later is found again.
    """

    def __init__(self, run: Path, manifests: Sequence[Manifest], max_share: float, first_step: int) -> None:
        self.manifests, self.max_share = manifests, max_share
        self._file = run / UNREADABLE_FILE
        self._lines = [line for line in read_lines(self._file) if line["step"] <= first_step]
        self._waiting: list[Found] = []

    def add(self, batch: TaskBatch) -> None:
        """Remember what was not read for a batch of this rank."""
        for manifest, audio in zip(self.manifests, batch.audios, strict=True):
            self._waiting += [(manifest.where(found.index), found.problem) for found in audio.unreadable]

    def take(self) -> list[Found]:
        """Return what was remembered since the last time."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def count(self, step: int, found: Sequence[Found]) -> None:
        """Count what all ranks could not read, and say so.

        Raises:
            TrainingError: it is more than allowed.
        """
        known = {line["where"] for line in self._lines}
        problems: dict[str, str] = {}  # the first of each utterance, whose crops may have several
        for where, problem in sorted(found):
            problems.setdefault(where, problem)
        new = [(where, problem) for where, problem in problems.items() if where not in known]
        if not new:
            return
        self._lines += [{"step": step, "where": where, "problem": problem} for where, problem in new]
        write_lines(self._file, self._lines)
        total = sum(map(len, self.manifests))
        number = len(self._lines)
        listed = "; ".join(f"{where}: {problem}" for where, problem in new[:_MOST_LISTED])
        rest = f" and {len(new) - _MOST_LISTED} more" if len(new) > _MOST_LISTED else ""
        said = f"step {step}: {number} of {total} utterances cannot be read, {self._file} names them"
        if number > self.max_share * total:
            raise TrainingError(f"{said}; trainer.max_unreadable allows a share of {self.max_share:g}: {listed}{rest}")
        print_status(f"warning: {said}; others took the place of {listed}{rest}")
