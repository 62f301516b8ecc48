"""Tar files of recordings that other toolkits wrote, WebDataset's and lhotse's Shar, read where they are.

https://github.com/webdataset/webdataset and https://lhotse.readthedocs.io (Shar) describe the layouts.
"""

import gzip
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from speechssl.data.labels.label import NAMES, decode_text, single_spaced
from speechssl.errors import AudioError, ManifestError, SpeechSSLError

_CUTS = "cuts."  # begins the names of Shar's lists, and shows that a folder is one of Shar

Labels = Mapping[str, str | None]  # text, speaker and language, as an utterance has them


@dataclass(frozen=True)
class Member:
    """A recording inside an archive, of which only the header is still to be read."""

    path: str  # with its range
    labels: Labels


def is_shar(folder: Path) -> bool:
    """Return whether a folder is one of lhotse's Shar."""
    return any(_lists_of_cuts(folder))


def index_archive(archive: Path, suffixes: Iterable[str]) -> tuple[list[Member], list[SpeechSSLError]]:
    """Find the recordings of a tar file by their suffixes, with the labels in JSON or text of the same stem.

    Returns:
        What was found, in the archive's order, and what is wrong in it.
    """
    recordings: list[tuple[str, str]] = []
    labels: dict[str, dict[str, str | None]] = {}
    failures: list[SpeechSSLError] = []
    try:
        for member, content in _walk(archive):
            name = PurePosixPath(member.name)
            stem, suffix = str(name.with_suffix("")), name.suffix.lower()
            if suffix in suffixes:
                recordings.append((stem, f"{archive}:{member.offset_data}:{member.size}"))
            elif suffix in (".json", ".txt"):
                parse = _parse_json if suffix == ".json" else _parse_text
                try:
                    labels[stem] = labels.get(stem, {}) | parse(f"{archive}: {member.name}", content())
                except ManifestError as error:
                    failures.append(error)
    except SpeechSSLError as error:
        failures.append(error)
    return [Member(path, labels.get(stem, {})) for stem, path in recordings], failures


def index_shar(folder: Path) -> tuple[list[Member], list[SpeechSSLError]]:
    """Find the recordings of a folder of Shar: of each cut, what the archive of the same number has by its name.

    Returns:
        What was found, in the order of the cuts, and what is wrong: cuts without a recording among it.
    """
    found: list[Member] = []
    failures: list[SpeechSSLError] = []
    for cuts in _lists_of_cuts(folder):
        number = cuts.name.removeprefix(_CUTS).partition(".jsonl")[0]
        archive = folder / f"recording.{number}.tar"
        try:
            ranges = {
                str(PurePosixPath(member.name).with_suffix("")): f"{archive}:{member.offset_data}:{member.size}"
                for member, _ in _walk(archive)
                if PurePosixPath(member.name).suffix not in (".json", ".nodata", ".nometa")
            }
            for where, cut in _read_cuts(cuts):
                if cut["id"] in ranges:
                    found.append(Member(ranges[cut["id"]], _labels_of_cut(cut)))
                else:
                    failures.append(AudioError(f"{where}: expected a recording {cut['id']} in {archive}, found none"))
        except SpeechSSLError as error:
            failures.append(error)
    return found, failures


def _lists_of_cuts(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.glob(f"{_CUTS}*") if path.name.endswith((".jsonl", ".jsonl.gz")))


def _walk(archive: Path) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """Yield the files of a tar file, each with a function that reads it."""
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if member.isfile() and not member.issparse():
                    yield member, lambda member=member: tar.extractfile(member).read()  # type: ignore[union-attr]
    except FileNotFoundError:
        raise ManifestError(f"{archive}: expected a tar file, found none") from None
    except tarfile.TarError as error:
        raise ManifestError(f"{archive}: expected an uncompressed tar file that is whole: {error}") from None
    except OSError as error:
        raise ManifestError(f"{archive}: {error.strerror or error}") from None


def _parse_text(where: str, content: bytes) -> dict[str, str | None]:
    return {"text": single_spaced(decode_text(Path(where), content))}


def _parse_json(where: str, content: bytes) -> dict[str, str | None]:
    fields = {key.lower(): value for key, value in _json_object(where, content).items() if value is not None}
    found: dict[str, str | None] = {}
    for name in ("text", "speaker", "language"):
        keys = [key for key in NAMES[name] if key in fields]
        if keys:
            found[name] = single_spaced(fields[keys[0]])
    return found


def _read_cuts(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cuts of a list, each with where it stands."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    cut = _json_object(f"{path}:{number}", line)
                    if not isinstance(cut.get("id"), str) or not isinstance(cut.get("recording"), dict):
                        kind = cut.get("type")
                        raise ManifestError(f"{path}:{number}: expected a cut of one recording, found {kind}")
                    yield f"{path}:{number}", cut
    except (OSError, EOFError) as error:
        raise ManifestError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _json_object(where: str, content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise ManifestError(f"{where}: expected JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ManifestError(f"{where}: expected a JSON object, found {type(fields).__name__}")
    return fields


def _labels_of_cut(cut: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what is said in a cut, in the order of time, and who speaks which language, if it is one."""
    supervisions = sorted(cut.get("supervisions") or (), key=lambda supervision: supervision.get("start", 0))
    texts = [supervision["text"] for supervision in supervisions if supervision.get("text")]
    labels: dict[str, str | None] = {"text": single_spaced(" ".join(texts)) if texts else None}
    for name in ("speaker", "language"):
        values = {supervision.get(name) for supervision in supervisions}
        labels[name] = values.pop() if len(values) == 1 else None
    return labels
