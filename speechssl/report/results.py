"""What runs came to: scores with intervals, paired differences, transcripts, confusions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from speechssl.evaluate.compare import RATES, compare_evaluations, take_evaluation
from speechssl.report.markup import table
from speechssl.report.run import Run
from speechssl.report.transcripts import LEGEND, choose_samples, mark
from speechssl.scoring.bootstrap import Interval

_NUM_SAMPLES = 12
_NUM_CONFUSIONS = 10
_PLOT = 180  # the width of an interval's picture, in pixels


@dataclass(frozen=True)
class Result:
    """An evaluation of a run."""

    run: Run
    file: Path
    content: Mapping[str, Any]  # as `Evaluation`

    @property
    def label(self) -> str:
        """The run, and how it decoded if that took more than the model."""
        return f"{self.run.name}, {self.decoding}"

    @property
    def decoding(self) -> str:
        """How the text was found, in few words."""
        return "greedy" if self.content["beam_search"] is None else "language model"

    @property
    def test(self) -> tuple[str, str]:
        """The name and the digest of the manifest."""
        return Path(self.content["manifest"]).name, self.content["manifest_sha256"]


def find_results(runs: Sequence[Run]) -> list[Result]:
    """Return the evaluations of all runs, those on one manifest together."""
    results = [
        Result(run, file, content)
        for run in runs
        for file, evaluations in run.evaluations.items()
        for content in evaluations
    ]
    tests = list(dict.fromkeys(result.test for result in results))
    return sorted(results, key=lambda result: tests.index(result.test))


def describe_scores(results: Sequence[Result]) -> str:
    """Return the error rates of each evaluation with its interval, on one scale."""
    rows = []
    for result in results:
        cells = [escape(result.run.name), escape(result.test[0]), escape(result.content["decoding"])]
        for rate in ("wer", "cer"):
            interval = Interval(**result.content[rate])
            cells += [interval.show(), _draw_interval(interval)]
        rows.append([*cells, f"{result.content['num_utterances']:,}", escape(result.content["device"])])
    head = [
        "run",
        "test set",
        "decoding",
        "WER % [95 %]",
        "0 to 100",
        "CER % [95 %]",
        "0 to 100",
        "utterances",
        "device",
    ]
    return table(head, rows, (3, 5, 7)) if rows else ""


def _draw_interval(interval: Interval) -> str:
    value, low, high = (_PLOT * min(end, 1.0) for end in (interval.value, interval.low, interval.high))
    return (
        f'<svg class=interval viewBox="0 0 {_PLOT} 16" aria-hidden=true><path class=grid d="M0 8H{_PLOT}"/>'
        f'<path class="line s0" d="M{low:.1f} 8H{high:.1f}M{low:.1f} 4V12M{high:.1f} 4V12"/>'
        f'<circle class="mark s0" cx="{value:.1f}" cy="8" r="3.5"/></svg>'
    )


def describe_differences(results: Sequence[Result]) -> str:
    """Compare each run with the first on the same manifest and with the same decoding."""
    rows = []
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        # Texts that were compared otherwise do not compare, nor does a run with itself.
        alike = (*result.test, result.decoding, result.content.get("normalization", ""))
        groups.setdefault(alike, []).append(result)
    for (test, _, decoding, _), (first, *others) in groups.items():
        for other in (other for other in others if other.run is not first.run):
            cells = [f"{escape(other.run.name)} against {escape(first.run.name)}", escape(test), decoding]
            rows.append([*cells, *_compare(first, other)])
    head = ["runs", "test set", "decoding", *(f"{rate} {what}" for rate in RATES.values() for what in _MEASURES)]
    note = "<p class=note>95 % intervals over utterances, the same ones for both runs. A difference whose interval "
    note += "holds 0, or a ratio whose interval holds 1, may be chance; so may what another seed would undo.</p>"
    return f"<h3>Paired differences</h3>{table(head, rows, (3, 4, 5, 6))}{note}" if rows else ""


_MEASURES = ("difference in points", "ratio")


def _compare(first: Result, other: Result) -> list[str]:
    pair = [[take_evaluation(result.file, dict(result.content))] for result in (first, other)]
    found = compare_evaluations(*pair).values()
    return [text for comparison in found for text in (comparison.difference.show(), comparison.ratio.show(1, 2))]


def describe_transcripts(results: Sequence[Result]) -> str:
    """Return utterances from the best to the worst of the first run, with every run's transcript of each."""
    parts = []
    for (name, _), group in groupby(results, key=lambda result: result.test):
        same = list(group)
        utterances = [result.content["utterances"] for result in same]
        parts.append(f"<h3>{escape(name)}</h3>")
        rows = []
        for index in choose_samples(utterances[0], _NUM_SAMPLES):
            reference = utterances[0][index]["reference"]
            rows.append(f"<tr class=reference><td>reference</td><td>{escape(reference) or '<i>nothing</i>'}</td></tr>")
            for result, own in zip(same, utterances, strict=True):
                text = mark(own[index]["reference"], own[index]["hypothesis"])
                rows.append(f"<tr><td>{escape(result.label)}</td><td>{text}</td></tr>")
        parts.append(f"<table class=texts><tbody>{''.join(rows)}</tbody></table>")
    intro = f"<p class=note>{_NUM_SAMPLES} utterances, from the best of the first run to its worst.</p>"
    return LEGEND + intro + "".join(parts) if parts else ""


def describe_confusions(results: Sequence[Result]) -> str:
    """Return the most frequent mistakes of each evaluation, in words and in letters."""
    rows = []
    for result in results:
        cells = [escape(result.label), escape(result.test[0])]
        for unit in ("word_confusions", "character_confusions"):
            cells.append(", ".join(_confusion(found) for found in result.content[unit][:_NUM_CONFUSIONS]) or "none")
        rows.append(cells)
    return table(["run", "test set", "words", "letters"], rows) if rows else ""


def _confusion(found: Mapping[str, Any]) -> str:
    before, after = (escape(found[side].replace(" ", "␣")) for side in ("reference", "hypothesis"))
    if not after:
        shown = f"<del>{before}</del>"
    elif not before:
        shown = f"<ins>{after}</ins>"
    else:
        shown = f"{before} → {after}"
    return f"{shown} ({found['count']})"
