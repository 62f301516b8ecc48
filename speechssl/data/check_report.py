"""The report of the pre-flight check: each manifest in numbers, then the problems found."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from speechssl.data.check import Problem
from speechssl.data.manifest import Manifest
from speechssl.data.units import split_words
from speechssl.terminal import count, format_duration

_NUM_LISTED = 20


def make_report(manifests: Sequence[Manifest], problems: Sequence[Problem]) -> dict[str, Any]:
    """Return the report in plain JSON types: numbers of each manifest; of each kind of problem the first twenty."""
    report: dict[str, Any] = {"manifests": [_summarize(manifest) for manifest in manifests]}
    report |= {"errors": {}, "warnings": {}}
    by_kind: defaultdict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem)
    for kind, found in by_kind.items():
        first = [{"where": problem.where, "detail": problem.detail} for problem in found[:_NUM_LISTED]]
        report["errors" if found[0].is_error else "warnings"][kind] = {"count": len(found), "first": first}
    return report


def format_report(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [line for summary in report["manifests"] for line in (*_describe(summary), "")]
    totals = []
    for title in ("error", "warning"):
        kinds = report[f"{title}s"]
        totals.append(count(sum(kind["count"] for kind in kinds.values()), title))
        for name, kind in kinds.items():
            lines.append(f"{title}: {name}: {kind['count']}")
            lines += [f"  {place['where']}: {place['detail']}" for place in kind["first"]]
            if kind["count"] > len(kind["first"]):
                lines.append(f"  ... and {kind['count'] - len(kind['first'])} more")
    return "\n".join([*lines, ", ".join(totals)])


def _summarize(manifest: Manifest) -> dict[str, Any]:
    utterances = list(manifest)
    texts = [utterance.text for utterance in utterances if utterance.text]
    return {
        "path": str(manifest.path),
        "num_utterances": len(manifest),
        "num_texts": len(texts),
        "num_words": sum(len(text.split()) for text in texts),
        "num_speakers": len({utterance.speaker for utterance in utterances if utterance.speaker}),
        "languages": sorted({utterance.language for utterance in utterances if utterance.language}),
        "hours": float(manifest.seconds.sum()) / 3600,
        "shortest_seconds": float(manifest.seconds.min()),
        "median_seconds": float(np.median(manifest.seconds)),
        "longest_seconds": float(manifest.seconds.max()),
        "characters": "".join(sorted({letter for text in texts for word in split_words(text) for letter in word})),
    }


def _describe(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"{summary['path']}: {count(summary['num_utterances'], 'utterance')}, "
        f"{format_duration(3600 * summary['hours'])}; {summary['shortest_seconds']:.2f} to "
        f"{summary['longest_seconds']:.2f} s, median {summary['median_seconds']:.2f} s"
    ]
    if summary["num_texts"]:
        lines.append(
            f"  texts: {summary['num_texts']}, {count(summary['num_words'], 'word')}, "
            f"{count(len(summary['characters']), 'different character')}: {summary['characters']}"
        )
    if summary["languages"]:
        lines.append(f"  languages: {', '.join(summary['languages'])}")
    if summary["num_speakers"]:
        lines.append(f"  speakers: {summary['num_speakers']}")
    return lines
