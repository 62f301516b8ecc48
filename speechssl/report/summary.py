"""The top of a report: each run in a few numbers, and what is suspicious about it."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from speechssl.report.curves import fitting
from speechssl.report.markup import duration, facts
from speechssl.report.results import Result
from speechssl.report.run import Run
from speechssl.report.svg import show
from speechssl.train.curves import Curves, find_deviations


def find_remarks(run: Run, references: Mapping[Path, Curves]) -> list[str]:
    """Return the warnings of a run, what of its log is not finite, and where it leaves the bands of its references."""
    warnings = [f"update {warning['step']:,}: {warning['message']}" for warning in run.warnings]
    for line in run.log:
        lost = [name.replace("_", " ") for name, value in line.items() if name != "split" and not math.isfinite(value)]
        if lost:
            warnings.append(f"update {line['step']:,}: {line['split']} {', '.join(lost)} not finite, so not drawn")
    return warnings + [line for path in fitting(references, [run]) for line in find_deviations(path, run.folder)]


def describe_run(run: Run, results: Sequence[Result], num_remarks: int) -> str:
    """Return a run in a few numbers."""
    pairs = [("stage", run.stage), ("updates", f"{run.log[-1]['step']:,} of {run.num_steps:,}")]
    if run.cost is not None:
        pairs += [("time", duration(run.cost.seconds)), ("audio seen", duration(run.cost.audio_seconds))]
    metric = run.best_metric
    best = None if metric is None else run.best(metric)
    if metric is not None and best is not None:
        is_rate = metric in ("wer", "cer")
        name = metric.upper() if is_rate else metric.replace("_", " ")
        pairs.append((f"best dev {name}", f"{show(best[1], is_percent=is_rate)} at {best[0]:,}"))
    for result in results:
        if result.run is run:
            where, how = result.test[0].removesuffix(".tsv"), result.decoding
            pairs += [
                (f"{where} {rate.upper()}, {how}", f"{100 * result.content[rate]['value']:.1f} %")
                for rate in ("wer", "cer")
            ]
    pairs.append(("warnings", str(num_remarks or "none")))
    return f"<div class=card><h3>{escape(run.name)}</h3>{facts(pairs)}</div>"


def describe_remarks(runs: Sequence[Run], remarks: Sequence[Sequence[str]], references: Mapping[Path, Curves]) -> str:
    """Return the remarks about all runs, and which references fit none of them."""
    parts = [
        f"<div class=warning><b>{escape(run.name)}</b>: {escape(remark)}</div>"
        for run, own in zip(runs, remarks, strict=True)
        for remark in own
    ]
    for path in references.keys() - fitting(references, runs).keys():
        parts.append(f"<p class=note>{escape(str(path))}: curves of another number of updates; not drawn.</p>")
    return "".join(parts)
