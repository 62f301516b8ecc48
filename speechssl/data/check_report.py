"""The report of the pre-flight check: each manifest in numbers, then the problems found."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speechssl.data.check import Problem
from speechssl.data.manifest import Manifest
from speechssl.data.units import split_words
from speechssl.terminal import count, format_duration

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
    """A manifest in numbers."""

    path: str
    num_utterances: int
    num_texts: int  # of the utterances, those with a text
    num_words: int
    hours: float
    shortest_seconds: float
    median_seconds: float
    longest_seconds: float
    characters: str  # of the texts, distinct and sorted, white space aside
    histogram: tuple[HistogramBin, ...]  # without the empty bins at both ends
    languages: tuple[Group, ...]  # the longest first, as below
    speakers: tuple[Group, ...]


@dataclass(frozen=True)
class Place:
    """Where a problem is, and what was expected and found there."""

    where: str
    detail: str


@dataclass(frozen=True)
class ProblemKind:
    """All problems of a kind, of which the first twenty are listed."""

    count: int
    first: tuple[Place, ...]


@dataclass(frozen=True)
class Report:
    """What the check prints; as JSON it has the same names."""

    manifests: tuple[ManifestSummary, ...]
    errors: dict[str, ProblemKind]
    warnings: dict[str, ProblemKind]


def make_report(manifests: Sequence[Manifest], problems: Sequence[Problem]) -> Report:
    """Count what is in manifests, and sort the problems by kind."""
    errors = _by_kind([problem for problem in problems if problem.is_error])
    warnings = _by_kind([problem for problem in problems if not problem.is_error])
    return Report(tuple(map(_summarize, manifests)), errors, warnings)


def format_report(report: Report) -> str:
    """Return the report for people."""
    lines = [line for summary in report.manifests for line in (*_describe(summary), "")]
    for title, kinds in (("error", report.errors), ("warning", report.warnings)):
        for name, kind in kinds.items():
            lines.append(f"{title}: {name}: {kind.count}")
            lines += [f"  {place.where}: {place.detail}" for place in kind.first]
            if kind.count > len(kind.first):
                lines.append(f"  ... and {kind.count - len(kind.first)} more")
    num_errors, num_warnings = (
        sum(kind.count for kind in kinds.values()) for kinds in (report.errors, report.warnings)
    )
    lines.append(f"{count(num_errors, 'error')}, {count(num_warnings, 'warning')}")
    return "\n".join(lines)


def _by_kind(problems: Sequence[Problem]) -> dict[str, ProblemKind]:
    places: defaultdict[str, list[Place]] = defaultdict(list)
    for problem in problems:
        places[problem.kind].append(Place(problem.where, problem.detail))
    return {kind: ProblemKind(len(found), tuple(found[:_NUM_LISTED])) for kind, found in places.items()}


def _summarize(manifest: Manifest) -> ManifestSummary:
    utterances = list(manifest)
    texts = [utterance.text for utterance in utterances if utterance.text]
    counts = np.histogram(manifest.seconds, [*_EDGES, np.inf])[0].tolist()
    used = np.flatnonzero(counts)
    return ManifestSummary(
        path=str(manifest.path),
        num_utterances=len(manifest),
        num_texts=len(texts),
        num_words=sum(len(text.split()) for text in texts),
        hours=float(manifest.seconds.sum()) / 3600,
        shortest_seconds=float(manifest.seconds.min()),
        median_seconds=float(np.median(manifest.seconds)),
        longest_seconds=float(manifest.seconds.max()),
        characters="".join(sorted({character for text in texts for word in split_words(text) for character in word})),
        histogram=tuple(HistogramBin(_EDGES[i], counts[i]) for i in range(used[0], used[-1] + 1)),
        languages=_group(manifest, [utterance.language for utterance in utterances]),
        speakers=_group(manifest, [utterance.speaker for utterance in utterances]),
    )


def _group(manifest: Manifest, names: Sequence[str | None]) -> tuple[Group, ...]:
    counts = Counter(name for name in names if name)
    hours: defaultdict[str, float] = defaultdict(float)
    for seconds, name in zip(manifest.seconds.tolist(), names, strict=True):
        if name:
            hours[name] += seconds / 3600
    return tuple(
        Group(name, counts[name], hours[name]) for name in sorted(counts, key=lambda name: (-hours[name], name))
    )


def _describe(summary: ManifestSummary) -> list[str]:
    duration = format_duration(summary.hours * 3600)
    lines = [
        f"{summary.path}: {count(summary.num_utterances, 'utterance')}, {duration}; "
        f"{summary.shortest_seconds:.2f} to {summary.longest_seconds:.2f} s, median {summary.median_seconds:.2f} s"
    ]
    if summary.num_texts:
        lines.append(
            f"  texts: {summary.num_texts}, {count(summary.num_words, 'word')}, "
            f"{count(len(summary.characters), 'different character')}: {summary.characters}"
        )
    for title, groups in (("languages", summary.languages), ("speakers", summary.speakers)):
        if groups:
            listed = ", ".join(
                f"{group.name} {group.num_utterances} ({format_duration(group.hours * 3600)})"
                for group in groups[:_NUM_LISTED]
            )
            more = f", and {len(groups) - _NUM_LISTED} more" if len(groups) > _NUM_LISTED else ""
            lines.append(f"  {title}: {listed}{more}")
    most = max(part.num_utterances for part in summary.histogram)
    for part in summary.histogram:
        bar = "#" * -(-_BAR_WIDTH * part.num_utterances // most)
        lines.append(f"  {part.seconds:>4} s  {part.num_utterances:>8}  {bar}".rstrip())
    return lines
