"""What the pre-flight check prints: each manifest in numbers, then the problems found."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from speechssl.data.check import Problem
from speechssl.data.manifest import Manifest
from speechssl.data.units import split_words

_NUM_LISTED = 20
_BAR_WIDTH = 40
_EDGES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 60, 120, 300)  # seconds; the last bin is open


@dataclass(frozen=True)
class Group:
    """The utterances of one speaker or language."""

    name: str
    num_utterances: int
    hours: float


@dataclass(frozen=True)
class HistogramBin:
    """The utterances of at least ``seconds`` and less than the next bin's."""

    seconds: int
    num_utterances: int


@dataclass(frozen=True)
class ManifestSummary:
    """A manifest in numbers.

    Attributes:
        path: Its file.
        num_utterances: Rows.
        num_texts: Rows with a text.
        num_words: Words in all texts.
        hours: Audio in all rows.
        shortest_seconds: Duration of the shortest row.
        median_seconds: The median duration.
        longest_seconds: Duration of the longest row.
        characters: The distinct characters of the texts, white space aside, sorted.
        histogram: Rows by duration, without the empty bins at both ends.
        languages: Rows by language, the longest first; empty if no row names one.
        speakers: Rows by speaker, the longest first; empty if no row names one.
    """

    path: str
    num_utterances: int
    num_texts: int
    num_words: int
    hours: float
    shortest_seconds: float
    median_seconds: float
    longest_seconds: float
    characters: str
    histogram: tuple[HistogramBin, ...]
    languages: tuple[Group, ...]
    speakers: tuple[Group, ...]


def summarize(manifest: Manifest) -> ManifestSummary:
    """Count what is in a manifest."""
    seconds = np.array([utterance.seconds for utterance in manifest])
    texts = [utterance.text for utterance in manifest if utterance.text]
    counts = np.histogram(seconds, [*_EDGES, np.inf])[0].tolist()
    used = np.flatnonzero(counts)
    return ManifestSummary(
        path=str(manifest.path),
        num_utterances=len(manifest),
        num_texts=len(texts),
        num_words=sum(len(text.split()) for text in texts),
        hours=float(seconds.sum()) / 3600,
        shortest_seconds=float(seconds.min()),
        median_seconds=float(np.median(seconds)),
        longest_seconds=float(seconds.max()),
        characters="".join(sorted({character for text in texts for word in split_words(text) for character in word})),
        histogram=tuple(HistogramBin(_EDGES[i], counts[i]) for i in range(used[0], used[-1] + 1)),
        languages=_group(manifest, [utterance.language for utterance in manifest]),
        speakers=_group(manifest, [utterance.speaker for utterance in manifest]),
    )


def format_text(summaries: Sequence[ManifestSummary], problems: Sequence[Problem]) -> str:
    """The report for people; of each kind of problem the first twenty are listed."""
    lines = [line for summary in summaries for line in (*_describe(summary), "")]
    for problem_type, is_error in (("error", True), ("warning", False)):
        for kind, of_kind in _by_kind(problems, is_error).items():
            lines.append(f"{problem_type}: {kind}: {len(of_kind)}")
            lines += [f"  {problem.where}: {problem.detail}" for problem in of_kind[:_NUM_LISTED]]
            if len(of_kind) > _NUM_LISTED:
                lines.append(f"  ... and {len(of_kind) - _NUM_LISTED} more")
    num_errors = sum(problem.is_error for problem in problems)
    lines.append(f"{_count(num_errors, 'error')}, {_count(len(problems) - num_errors, 'warning')}")
    return "\n".join(lines)


def to_dict(summaries: Sequence[ManifestSummary], problems: Sequence[Problem]) -> dict[str, Any]:
    """The report as plain JSON types; of each kind of problem the first twenty are listed."""
    listed: dict[str, Any] = {"manifests": [asdict(summary) for summary in summaries]}
    for name, is_error in (("errors", True), ("warnings", False)):
        listed[name] = {
            kind: {
                "count": len(of_kind),
                "first": [{"where": problem.where, "detail": problem.detail} for problem in of_kind[:_NUM_LISTED]],
            }
            for kind, of_kind in _by_kind(problems, is_error).items()
        }
    return listed


def _group(manifest: Manifest, names: Sequence[str | None]) -> tuple[Group, ...]:
    counts = Counter(name for name in names if name)
    hours: defaultdict[str, float] = defaultdict(float)
    for utterance, name in zip(manifest, names, strict=True):
        if name:
            hours[name] += utterance.seconds / 3600
    return tuple(
        Group(name, counts[name], hours[name]) for name in sorted(counts, key=lambda name: (-hours[name], name))
    )


def _by_kind(problems: Sequence[Problem], is_error: bool) -> dict[str, list[Problem]]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        if problem.is_error is is_error:
            kinds.setdefault(problem.kind, []).append(problem)
    return kinds


def _describe(summary: ManifestSummary) -> list[str]:
    lines = [
        f"{summary.path}: {_count(summary.num_utterances, 'utterance')}, {_format_hours(summary.hours)}; "
        f"{summary.shortest_seconds:.2f} to {summary.longest_seconds:.2f} s, median {summary.median_seconds:.2f} s"
    ]
    if summary.num_texts:
        lines.append(
            f"  texts: {summary.num_texts}, {_count(summary.num_words, 'word')}, "
            f"{_count(len(summary.characters), 'different character')}: {summary.characters}"
        )
    for title, groups in (("languages", summary.languages), ("speakers", summary.speakers)):
        if groups:
            listed = [
                f"{group.name} {group.num_utterances} ({_format_hours(group.hours)})" for group in groups[:_NUM_LISTED]
            ]
            more = f", and {len(groups) - _NUM_LISTED} more" if len(groups) > _NUM_LISTED else ""
            lines.append(f"  {title}: {', '.join(listed)}{more}")
    most = max(part.num_utterances for part in summary.histogram)
    for part in summary.histogram:
        bar = "#" * -(-_BAR_WIDTH * part.num_utterances // most)
        lines.append(f"  {part.seconds:>4} s  {part.num_utterances:>8}  {bar}".rstrip())
    return lines


def _format_hours(hours: float) -> str:
    return f"{hours:.2f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
