"""What is suspicious about a run: each line of its log against limits, and what is done about it."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from speechssl.data.manifest import Manifest
from speechssl.errors import TrainingError
from speechssl.objective.objective import Limit
from speechssl.terminal import print_status
from speechssl.train.guard import check_limits
from speechssl.train.log import read_log
from speechssl.train.writers import read_lines, write_lines

WARNINGS_FILE = "warnings.jsonl"
Response = Literal["warn", "stop", "roll_back"]
_WINDOW = 5  # lines of the log, over which a loss is averaged
_MOST_LISTED = 200_000  # utterances that lengths are compared of
_LEAST_SPREAD = 0.3  # of lengths, over their mean: those that are all alike say nothing

SOUND = (
    Limit(
        "silence",
        at_most=0.9,
        lines=3,
        is_fatal=False,
        lower_rate_helps=False,
        meaning="nearly all of the audio is silence; usual causes: recordings that were decoded "
        "wrongly or to the wrong scale, a channel that nobody speaks on, spans of a manifest "
        "beside the speech; `speechssl check` names them",
    ),
    Limit(
        "level_deviation",
        at_least=2.0,
        lines=3,
        is_fatal=False,
        lower_rate_helps=False,
        meaning="the level of the recordings hardly changes (dB), as that of noise, not of speech; "
        "usual causes: a wrong sample format or byte order, compressed bytes read as samples, "
        "noise louder than the speech; listen to some",
    ),
)
CLIPPED = Limit(
    "clip_scale",
    at_least=0.05,
    lines=5,
    from_share=0.1,
    is_fatal=False,
    lower_rate_helps=False,
    meaning="gradients are cut to a small part of their length, nearly all of them, so that a hard "
    "batch counts no more than an easy one; try optimizer.max_gradient_norm near the gradient_norm "
    "of the log, or a lower learning rate if that norm is growing",
)
RISING = Limit(
    "loss_rise",
    at_most=0.5,
    lines=3,
    is_fatal=False,
    meaning="the loss is rising: so much of what it had fallen it has risen again; usual causes: a "
    "learning rate that is too high or whose warmup is too short; try a third of "
    "optimizer.learning_rate, or set optimizer.max_gradient_norm",
)
BLANK = Limit(
    "nothing_said",
    at_most=0.9,
    split="dev",
    lines=2,
    from_share=0.25,
    is_fatal=False,
    lower_rate_helps=False,
    meaning="the model says nothing about nearly all recordings of the dev set: CTC stays on its "
    "blank plateau; try fewer time masks and less dropout (regularization), a higher learning rate or "
    "a longer training, and look whether the texts belong to the recordings",
)
SHIFTED = Limit(
    "length_agreement",
    at_least=0.5,
    is_fatal=False,
    lower_rate_helps=False,
    meaning="longer recordings do not have longer texts (the correlation over the training manifest): "
    "do the texts belong to other recordings, as by a line that is missing in one of two "
    "lists?",
)

_DIVERGED = "the model has come apart since the last checkpoint, which is kept; try a lower optimizer.learning_rate"


class RollBackError(Exception):
    """A run has to go back to its latest checkpoint and learn more slowly; the message says why."""


class Health:
    """Looks at each line of a run's log, once it is written; resumes with the lines that stand there already.

    A limit that is not fatal is said once in a run, on stderr and in ``warnings.jsonl``, or ends the run if
    ``response`` is "stop". With "roll_back", the caller is told of any that a lower learning rate might keep.

    Args:
        run: Its folder.
        history: The lines of its log.
        limits: What lines are compared with. Values that a line does not have are passed over if not fatal.
        facts: Values for limits that do not change in a run.
        num_steps: Planned updates.
        response: To what is not fatal.
        since: Only lines after this step count, the run having gone back to it.
    """

    def __init__(
        self,
        run: Path,
        history: Sequence[Mapping[str, Any]],
        limits: Sequence[Limit],
        facts: Mapping[str, float],
        num_steps: int,
        response: Response,
        since: int = 0,
    ) -> None:
        self.limits, self.facts, self.num_steps, self.response = limits, facts, num_steps, response
        self._run = run
        self._warnings = read_warnings(run, max((line["step"] for line in history), default=0))
        self._losses: list[float] = []
        self._in_a_row = dict.fromkeys(limits, 0)
        for line in (line for line in history if line["step"] > since):
            self._find_problems(line["step"], line["split"], line)

    def check(self, step: int, split: str, metrics: Mapping[str, float]) -> str | None:
        """Look at a line of the log; return why the run has to go back, if it has.

        Raises:
            TrainingError: the loss is not finite, which no way back mends, or a value is out of a limit that is fatal,
                or out of any if that is the response.
        """
        loss = metrics.get("loss", 0.0)
        if not math.isfinite(loss):  # on the dev set: in training it has ended the run before
            raise TrainingError(f"step {step}: expected a finite loss on the {split} set, found {loss}: {_DIVERGED}")
        try:
            check_limits([limit for limit in self.limits if limit.is_fatal and limit.split == split], metrics, step)
        except TrainingError as error:
            if self.response == "roll_back":
                return str(error)
            raise
        said = {warning["kind"] for warning in self._warnings}
        for limit, problem in self._find_problems(step, split, metrics):
            if self.response == "stop":
                raise TrainingError(f"step {step}: {problem}")
            if self.response == "roll_back" and limit.lower_rate_helps:
                return f"step {step}: {problem}"
            if limit.metric not in said:
                self._warnings = add_warning(self._run, self._warnings, step, limit.metric, problem)
        return None

    def _find_problems(self, step: int, split: str, metrics: Mapping[str, Any]) -> list[tuple[Limit, str]]:
        """Return the limits that were left for as many lines as they bear."""
        if split == "train" and "loss" in metrics:
            # The CTC loss of an utterance is that of a long batch or a short one; that of a label compares.
            self._losses.append(metrics.get("loss_per_label", metrics["loss"]))
        values = {**metrics, **self.facts, "loss_rise": loss_rise(self._losses)}
        found = []
        for limit in self.limits:
            if limit.is_fatal or limit.split != split or step < limit.from_share * self.num_steps:
                continue
            problem = limit.find_problem(values, step) if limit.metric in values else None
            self._in_a_row[limit] = self._in_a_row[limit] + 1 if problem else 0
            if problem and self._in_a_row[limit] >= limit.lines:
                found.append((limit, problem))
        return found


def read_warnings(run: Path, last_step: int) -> list[dict[str, Any]]:
    """Return what a run was warned of up to a step."""
    return [warning for warning in read_lines(run / WARNINGS_FILE) if warning["step"] <= last_step]


def add_warning(
    run: Path, warnings: Sequence[dict[str, Any]], step: int, kind: str, message: str
) -> list[dict[str, Any]]:
    """Print a warning, and write it behind others, which it returns with it."""
    print_status(f"warning: step {step}: {message}")
    added = [*warnings, {"step": step, "kind": kind, "message": message}]
    write_lines(run / WARNINGS_FILE, added)
    return added


def note_end(run: Path, error: TrainingError) -> None:
    """Write why a run ended before its time behind its warnings, if the disk takes it: its report says so."""
    step = max((line["step"] for line in read_log(run)), default=0)
    note = {"step": step, "kind": "end", "message": f"ended: {error}"}
    before = [warning for warning in read_lines(run / WARNINGS_FILE) if warning != note]
    with suppress(OSError):
        write_lines(run / WARNINGS_FILE, [*before, note])


def loss_rise(losses: Sequence[float]) -> float:
    """Return how much of its fall a loss has risen again: the last lines over the best before, 0 if there are few.

    A loss that has not fallen by a tenth of itself is measured by that tenth.
    """
    means = [fmean(losses[end - _WINDOW : end]) for end in range(_WINDOW, len(losses) + 1)]
    if len(means) <= _WINDOW:
        return 0.0
    best, last = min(means[:-_WINDOW]), means[-1]
    return (last - best) / max(losses[0] - best, 0.1 * abs(best), 1e-9)


def length_agreement(manifest: Manifest) -> float | None:
    """Return the correlation of the durations and the lengths of the texts; None where it would say nothing."""
    seconds = manifest.seconds[:_MOST_LISTED]
    letters = np.array([len(manifest[index].text or "") for index in range(len(seconds))], dtype=np.float64)
    seconds, letters = seconds[letters > 0], letters[letters > 0]
    if len(seconds) < 20 or min(values.std() / values.mean() for values in (seconds, letters)) < _LEAST_SPREAD:
        return None
    agreement = float(np.corrcoef(seconds, letters)[0, 1])
    return agreement if math.isfinite(agreement) else None
