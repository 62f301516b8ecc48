"""Compare two methods by the evaluations of their runs, as ``speechssl evaluate`` wrote them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from speechssl.errors import ConfigError
from speechssl.scoring.bootstrap import Comparison, Interval, compare_runs
from speechssl.scoring.error_rates import ErrorCounts

Unit = Literal["words", "characters"]


@dataclass(frozen=True)
class Run:
    """One evaluated model.

    Attributes:
        path: The file.
        manifest: The SHA-256 of what was transcribed.
        words: Edits by utterance.
        characters: The same.
    """

    path: Path
    manifest: str
    words: tuple[ErrorCounts, ...]
    characters: tuple[ErrorCounts, ...]

    def rate(self, unit: Unit) -> float:
        """The error rate over all utterances."""
        counts: tuple[ErrorCounts, ...] = getattr(self, unit)
        return sum(count.total for count in counts) / max(sum(count.reference_length for count in counts), 1)


def read_run(path: Path) -> Run:
    """Read what ``speechssl evaluate --output`` wrote.

    Raises:
        ConfigError: the file is missing, something else, or has more than one manifest.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        [evaluation] = content["evaluations"]
        utterances: list[dict[str, Any]] = evaluation["utterances"]
        return Run(
            path,
            evaluation["manifest_sha256"],
            tuple(ErrorCounts(**utterance["words"]) for utterance in utterances),
            tuple(ErrorCounts(**utterance["characters"]) for utterance in utterances),
        )
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: expected an evaluation of one manifest by speechssl evaluate --output") from None


def compare_files(baselines: Sequence[Path], candidates: Sequence[Path]) -> dict[Unit, Comparison]:
    """Compare the runs of two methods, in words and in characters.

    Raises:
        ConfigError: a file cannot be read, or not all were evaluated on the same manifest.
    """
    first, second = [read_run(path) for path in baselines], [read_run(path) for path in candidates]
    for run in (*first, *second):
        if run.manifest != first[0].manifest:
            raise ConfigError(f"{run.path}: expected an evaluation on the manifest of {first[0].path}, found another's")
    units: tuple[Unit, Unit] = ("words", "characters")
    return {
        unit: compare_runs([getattr(run, unit) for run in first], [getattr(run, unit) for run in second])
        for unit in units
    }


def format_comparison(baselines: Sequence[Path], candidates: Sequence[Path]) -> str:
    """The comparison as lines of text.

    Raises:
        ConfigError: as for ``compare_files``.
    """
    lines = []
    for unit, comparison in compare_files(baselines, candidates).items():
        name = {"words": "WER", "characters": "CER"}[unit]
        sides = [
            ", ".join(f"{100 * read_run(path).rate(unit):.1f}" for path in paths) for paths in (baselines, candidates)
        ]
        lines.append(
            f"{name} %: {sides[0]} -> {sides[1]}; ratio {_show(comparison.ratio)}, "
            f"difference {_show(comparison.difference, 100)} points"
        )
    return "\n".join(lines)


def _show(interval: Interval, scale: float = 1) -> str:
    value, low, high = (scale * number for number in (interval.value, interval.low, interval.high))
    digits = 2 if scale == 1 else 1
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
