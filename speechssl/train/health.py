"""What is suspicious about a run: each line of its log against limits, and what is done about it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from speechssl.data.manifest import Manifest
from speechssl.errors import TrainingError
from speechssl.files import write_text_file
from speechssl.objective.objective import Limit
from speechssl.terminal import print_status
from speechssl.train.guard import check_limits
from speechssl.train.log import read_lines

WARNINGS_FILE = "warnings.jsonl"
_WINDOW = 5  # lines of the log, over which a loss is averaged
_MOST_LISTED = 200_000  # utterances that lengths are compared of
_LEAST_SPREAD = 0.3  # of lengths, over their mean: those that are all alike say nothing

SOUND = (
    Limit(
        "silence",
        at_most=0.9,
        lines=3,
        is_fatal=False,
        meaning="nearly all of the audio is silence; usual causes: recordings that were decoded "
        "wrongly or to the wrong scale, a channel that nobody speaks on, spans of a manifest "
        "beside the speech; `speechssl check` names them",
    ),
    Limit(
        "level_deviation",
        at_least=2.0,
        lines=3,
        is_fatal=False,
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
    meaning="the model says nothing about nearly all recordings of the dev set: CTC stays on its "
    "blank plateau; try fewer time masks and less dropout (regularization), a higher learning rate or "
    "a longer training, and look whether the texts belong to the recordings",
)
SHIFTED = Limit(
    "length_agreement",
    at_least=0.5,
    is_fatal=False,
    meaning="longer recordings do not have longer texts (the correlation over the training manifest): "
    "do the texts belong to other recordings, as by a line that is missing in one of two "
    "lists?",
)


class Health:
    """Looks at each line of a run's log, once it is written; resumes with the lines that stand there already.

    A limit that is not fatal is said once in a run, on stderr and in ``warnings.jsonl``, or ends the run if
    ``response`` is "stop".

    Args:
        run: Its folder.
        history: The lines of its log.
        limits: What lines are compared with. Values that a line does not have are passed over if not fatal.
        facts: Values for limits that do not change in a run.
        num_steps: Planned updates.
        response: To what is not fatal.
    """

    def __init__(
        self,
        run: Path,
        history: Sequence[Mapping[str, Any]],
        limits: Sequence[Limit],
        facts: Mapping[str, float],
        num_steps: int,
        response: Literal["warn", "stop"],
    ) -> None:
        self.limits, self.facts, self.num_steps, self.response = limits, facts, num_steps, response
        self._file = run / WARNINGS_FILE
        last = max((line["step"] for line in history), default=0)
        self._warnings = [warning for warning in read_lines(self._file) if warning["step"] <= last]
        self._losses: list[float] = []
        self._in_a_row = dict.fromkeys(limits, 0)
        for line in history:
            self._find_problems(line["step"], line["split"], line)

    def check(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Look at a line of the log.

        Raises:
            TrainingError: a value is out of a limit that is fatal, or out of any if that is the response.
        """
        check_limits([limit for limit in self.limits if limit.is_fatal and limit.split == split], metrics, step)
        said = {warning["kind"] for warning in self._warnings}
        for limit, problem in self._find_problems(step, split, metrics):
            if self.response == "stop":
                raise TrainingError(f"step {step}: {problem}")
            if limit.metric not in said:
                print_status(f"warning: step {step}: {problem}")
                self._warnings.append({"step": step, "kind": limit.metric, "message": problem})
                write_text_file(self._file, "".join(json.dumps(warning) + "\n" for warning in self._warnings))

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
