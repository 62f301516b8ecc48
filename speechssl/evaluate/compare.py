"""Compare two methods by the evaluations of their runs, as ``speechssl evaluate`` wrote them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechssl.errors import ConfigError
from speechssl.scoring.bootstrap import Comparison, compare_runs
from speechssl.scoring.error_rates import ErrorCounts, describe_normalization, sum_counts

RATES = {"words": "WER", "characters": "CER"}


@dataclass(frozen=True)
class SavedEvaluation:
    """What is compared of an evaluation: the SHA-256 of its manifest, and edits by utterance."""

    path: Path
    manifest_sha256: str
    normalization: str
    words: tuple[ErrorCounts, ...]
    characters: tuple[ErrorCounts, ...]


def read_evaluation(path: Path) -> SavedEvaluation:
    """Read what ``speechssl evaluate --output`` wrote of one manifest."""
    try:
        [evaluation] = json.loads(path.read_text("utf-8"))["evaluations"]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise _unexpected(path) from None
    return take_evaluation(path, evaluation)


def take_evaluation(path: Path, evaluation: dict[str, Any]) -> SavedEvaluation:
    """Take one of the evaluations of a file."""
    try:
        utterances: list[dict[str, Any]] = evaluation["utterances"]
        return SavedEvaluation(
            path,
            evaluation["manifest_sha256"],
            evaluation.get("normalization", describe_normalization(words_only=False)),  # as earlier versions did
            tuple(ErrorCounts(**utterance["words"]) for utterance in utterances),
            tuple(ErrorCounts(**utterance["characters"]) for utterance in utterances),
        )
    except (KeyError, TypeError):
        raise _unexpected(path) from None


def _unexpected(path: Path) -> ConfigError:
    return ConfigError(f"{path}: expected an evaluation of one manifest by speechssl evaluate --output")


def compare_evaluations(
    baselines: Sequence[SavedEvaluation], candidates: Sequence[SavedEvaluation]
) -> dict[str, Comparison]:
    """Compare the runs of two methods on one manifest, scored alike, in words and in characters."""
    first = baselines[0]
    for other in (*baselines, *candidates):
        if other.manifest_sha256 != first.manifest_sha256:
            raise ConfigError(f"{other.path}: expected an evaluation on the manifest of {first.path}, found another's")
        if other.normalization != first.normalization:
            expected = f"texts compared as in {first.path} ({first.normalization})"
            raise ConfigError(f"{other.path}: expected {expected}, found {other.normalization}")
    return {
        unit: compare_runs([getattr(run, unit) for run in baselines], [getattr(run, unit) for run in candidates])
        for unit in RATES
    }


def format_comparison(baselines: Sequence[Path], candidates: Sequence[Path]) -> str:
    """Compare evaluations in files, and return the comparison as lines of text."""
    sides = [[read_evaluation(path) for path in paths] for paths in (baselines, candidates)]
    lines = []
    for unit, comparison in compare_evaluations(*sides).items():
        before, after = (
            ", ".join(f"{100 * sum_counts(getattr(run, unit)).rate:.1f}" for run in runs) for runs in sides
        )
        lines.append(
            f"{RATES[unit]} %: {before} -> {after}; ratio {comparison.ratio.show(1, 2)}, "
            f"difference {comparison.difference.show()} points"
        )
    return "\n".join(lines)
