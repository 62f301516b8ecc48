"""What runs said of a few utterances of the dev set, from evaluation to evaluation."""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from speechssl.report.run import Run
from speechssl.report.transcripts import LEGEND, mark

_MOST_ROWS = 8  # of a run for an utterance


def describe_samples(runs: Sequence[Run]) -> str:
    """Return the utterances that were sampled, each with its transcripts over time by every run with the dev set."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.samples:
            groups.setdefault(run.record["inputs"].get("dev", ""), []).append(run)
    parts = []
    for group in groups.values():
        parts.append(f"<h3>{escape(group[0].config.data.dev.name)}</h3>")
        rows = []
        for number in dict.fromkeys(line["utterance"] for run in group for line in run.samples):
            lines = {run.name: [line for line in run.samples if line["utterance"] == number] for run in group}
            reference = next(own[0]["reference"] for own in lines.values() if own)
            rows.append(f"<tr class=reference><td>reference</td><td>{escape(reference)}</td></tr>")
            for name, own in lines.items():
                who = f"{escape(name)}, " if len(group) > 1 else ""
                rows += [
                    f"<tr><td>{who}{when}</td><td>{mark(reference, text)}</td></tr>" for when, text in _history(own)
                ]
        parts.append(f"<table class=texts><tbody>{''.join(rows)}</tbody></table>")
    intro = (
        "<p class=note>Greedy transcripts of a few utterances of the dev set, the same ones at each evaluation. A "
        "transcript that stays as it is has one row.</p>"
    )
    return LEGEND + intro + "".join(parts) if parts else ""


def _history(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (updates, transcript) for each time that the transcript changed, or for some evenly if there are many."""
    changes = []
    for text, same in groupby(lines, key=lambda line: line["hypothesis"]):
        steps = [f"{line['step']:,}" for line in same]
        changes.append((f"update {steps[0]}" if len(steps) == 1 else f"updates {steps[0]} to {steps[-1]}", text))
    if len(changes) <= _MOST_ROWS:
        return changes
    return [changes[round(place * (len(changes) - 1) / (_MOST_ROWS - 1))] for place in range(_MOST_ROWS)]
