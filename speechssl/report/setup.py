"""What runs were given: data, settings, machines."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.data.manifest import Manifest, read_manifest
from speechssl.errors import ManifestError
from speechssl.report.markup import table
from speechssl.report.run import Run
from speechssl.report.svg import histogram
from speechssl.terminal import count
from speechssl.train.unreadable import UNREADABLE_FILE

_SPLITS = ("train", "dev", "unlabeled")
_NUM_BARS = 24
_MOST_UNREADABLE = 5  # that are named
_NOT_SHOWN = ("data.train", "data.dev", "data.unlabeled")  # they stand among the data


@dataclass(frozen=True)
class Split:
    """A manifest that runs used."""

    name: str
    path: Path
    runs: tuple[str, ...]
    manifest: Manifest | None  # None if it cannot be read any more
    problem: str  # why not, or that it is another than the run read


def describe_data(runs: Sequence[Run]) -> str:
    """Return the manifests of all runs with their sizes, the unreadable, and the lengths of what was trained on."""
    splits = list(_splits(runs))
    rows, pictures = [], []
    for split in splits:
        where = f"<code>{escape(str(split.path))}</code>"
        if split.problem:
            where += f"<br>{escape(split.problem)}"
        if split.manifest is None:
            cells = ["-"] * 4
        else:
            seconds = split.manifest.seconds
            low, middle, high = np.quantile(seconds, [0, 0.5, 1])
            speakers = {utterance.speaker for utterance in split.manifest} - {None}
            lengths = f"{low:.1f} to {high:.1f}, median {middle:.1f}"
            cells = [f"{seconds.sum() / 3600:.2f}", f"{len(seconds):,}", lengths, str(len(speakers) or "-")]
            if split.name != "dev":
                pictures.append(_draw_lengths(split))
        rows.append([split.name, where, *cells, escape(", ".join(split.runs))])
    head = ["split", "manifest", "hours", "utterances", "seconds each", "speakers", "runs"]
    unreadable = "".join(_describe_unreadable(run, splits) for run in runs if run.unreadable)
    return table(head, rows, (2, 3, 5)) + unreadable + f"<div class=charts>{''.join(pictures)}</div>"


def _describe_unreadable(run: Run, splits: Sequence[Split]) -> str:
    """Say how many utterances of a run could not be read, and name the first with their causes."""
    number, manifests = (
        len(run.unreadable),
        [split.manifest for split in splits if split.name != "dev" and run.name in split.runs],
    )
    total = sum(len(manifest) for manifest in manifests if manifest is not None)
    share = "" if None in manifests else f" of {total:,} ({number / total:.1%})"
    named = [
        f"<code>{escape(line['where'])}</code>: {escape(line['problem'])}" for line in run.unreadable[:_MOST_UNREADABLE]
    ]
    if number > _MOST_UNREADABLE:
        file = escape(str(run.folder / UNREADABLE_FILE))
        named.append(f"{number - _MOST_UNREADABLE:,} more, which <code>{file}</code> names")
    said = f"{count(number, 'utterance')}{share} could not be read; others took the place of:"
    return f"<p>{escape(run.name)}: {said}</p><ul>{''.join(f'<li>{item}</li>' for item in named)}</ul>"


def _splits(runs: Sequence[Run]) -> Iterator[Split]:
    found: dict[tuple[str, str], tuple[Path, list[str]]] = {}  # one for all copies with the same content
    for run in runs:
        for name in _SPLITS:
            path = getattr(run.config.data, name, None)
            if path is not None:
                found.setdefault((name, run.record["inputs"].get(name, "")), (path, []))[1].append(run.name)
    for (name, digest), (path, users) in found.items():
        manifest, problem = None, ""
        try:
            manifest = read_manifest(path)
            if manifest.digest != digest:
                manifest, problem = None, "has changed since the run read it"
        except ManifestError:
            problem = "no longer readable"
        yield Split(name, path, tuple(users), manifest, problem)


def _draw_lengths(split: Split) -> str:
    assert split.manifest is not None
    counts, edges = np.histogram(split.manifest.seconds, bins=_NUM_BARS)
    title = f"Lengths of {split.path.name}"
    picture = histogram(counts.tolist(), edges.tolist(), "seconds", title)
    return f"<figure><figcaption><h3>{escape(title)}</h3></figcaption>{picture}</figure>"


def describe_settings(runs: Sequence[Run]) -> str:
    """Return the settings of runs of one stage that differ from the defaults."""
    changed = [dict(_flat(run)) for run in runs]
    names = list(dict.fromkeys(name for settings in changed for name in settings))
    defaults: dict[str, Any] = {}
    for settings in changed:
        defaults = {name: default for name, (default, _) in settings.items()} | defaults
    rows = []
    for name in names:
        default = _value(defaults[name])
        own = [_value(settings[name][1]) if name in settings else default for settings in changed]
        if len(set(own)) > 1:
            own = [f"<b>{value}</b>" for value in own]
        rows.append([f"<code>{escape(name)}</code>", default, *own])
    return table(["setting", "default", *(escape(run.name) for run in runs)], rows)


def _flat(run: Run) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Each changed setting by itself, where a whole section is off by default."""
    waiting = list(run.changed_settings.items())
    while waiting:
        name, (default, value) = waiting.pop(0)
        if isinstance(value, dict) and not isinstance(default, dict):
            waiting = [(f"{name}.{key}", (None, inner)) for key, inner in value.items()] + waiting
        elif name not in _NOT_SHOWN:
            yield name, (default, value)


def _value(value: Any) -> str:
    return "-" if value is None else escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _time(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def describe_machines(runs: Sequence[Run]) -> str:
    """Return where and with which versions each part of each run was trained."""
    rows = []
    for run in runs:
        for part in run.record.get("parts", []):
            versions = f"{part['speechssl']}, torch {part['torch']}, Python {part['python']}"
            device = f"{part['processes']} x {part['device']}"
            rows.append([run.name, f"{part['step']:,}", _time(part["started"]), versions, device, part["system"]])
    if not rows:
        return ""
    head = ["run", "from update", "started", "speechssl", "device", "system"]
    return table(head, [[escape(cell) for cell in row] for row in rows], (1,))
