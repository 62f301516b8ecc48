"""Read the publisher's lists of clips, and choose which clips serve what."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.data.corpus import Preparation
from speechssl.errors import ManifestError, system_errors
from speechssl.terminal import print_status

SPLITS = ("test", "dev", "train")
"""The lists with labels; a clip in two of them belongs to the first."""

UNLABELLED = ("train", "validated", "other")
"""The lists whose clips serve pretraining; validated includes train."""

COLUMNS = ("client_id", "path", "sentence")
"""The columns that are read; the others differ between releases, as does the order."""

MIN_SPEAKER_CHARACTERS = 8  # of a client_id, which has 128


@dataclass(frozen=True, slots=True)
class Row:
    """Hold a line of a list: a clip, its speaker and the sentence to be read, as the publisher writes them."""

    path: Path
    speaker: str
    sentence: str
    language: str


def find_corpus(stated: str) -> Path:
    """Return the language's folder.

    Raises:
        ManifestError: this is not such a folder.
    """
    contents = ("clips", *(f"{name}.tsv" for name in reversed(SPLITS)))
    expected = f"a language's folder of Common Voice with {', '.join(contents)}"
    if not stated:
        raise ManifestError(f"CORPUS=: expected {expected}, found nothing")
    folder = Path(stated).resolve()
    if not folder.is_dir():
        raise ManifestError(f"CORPUS={stated}: expected {expected}, found {'a file' if folder.exists() else 'none'}")
    lacking = [name for name in contents if not (folder / name).exists()]
    if lacking:
        below = sorted(path.parent.name for path in folder.glob("*/train.tsv"))
        advice = f"; perhaps one in it is meant: {', '.join(below[:10])}" if below else ""
        raise ManifestError(f"CORPUS={stated}: expected {expected}, found one without {', '.join(lacking)}{advice}")
    return folder


def read_list(file: Path, preparation: Preparation) -> list[Row]:
    """Read one of the lists of clips; lines that cannot be used are dropped.

    Tabs separate the columns and nothing else has a meaning: quotation marks are part of the sentences.

    Raises:
        ManifestError: the file lacks a column or cannot be read.
    """
    if not file.exists():
        preparation.drop("list of clips that is missing", file.name)
        return []
    rows: dict[Path, Row] = {}
    with system_errors(ManifestError, file), file.open("rb") as lines:
        header = next(lines, b"").decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
        if not set(COLUMNS) <= set(header):
            raise ManifestError(
                f"{file}:1: expected the columns {', '.join(COLUMNS)} among others, found {', '.join(header)}"
            )
        for number, line in enumerate(lines, 2):
            row = _parse_row(line, header, file, number, preparation)
            if row is not None and row.path in rows:
                preparation.drop("line that repeats a clip", f"{file.name}:{number}: {row.path.name}")
            elif row is not None:
                rows[row.path] = row
    return list(rows.values())


def _parse_row(line: bytes, header: Sequence[str], file: Path, number: int, preparation: Preparation) -> Row | None:
    where = f"{file.name}:{number}"
    try:
        # A carriage return inside a cell could not be written into a manifest.
        cells = line.decode("utf-8").rstrip("\r\n").replace("\r", " ").split("\t")
    except UnicodeDecodeError as error:
        preparation.drop("line that is no UTF-8", f"{where}: found the byte 0x{line[error.start]:02x}")
        return None
    if len(cells) != len(header):
        preparation.drop(
            "line with other columns than its header", f"{where}: expected {len(header)}, found {len(cells)}"
        )
        return None
    values = dict(zip(header, cells, strict=True))
    name = values["path"]
    if not name or not values["client_id"]:
        preparation.drop("line without path or client_id", where)
        return None
    if Path(name).name != name:
        preparation.drop("line whose path is no name of a file in clips", f"{where}: {name}")
        return None
    name += "" if name.endswith(".mp3") else ".mp3"  # the first release leaves it out
    language = values.get("locale") or file.parent.name
    return Row(file.parent / "clips" / name, values["client_id"], values["sentence"], language)


def disjoint_splits(lists: Mapping[str, Sequence[Row]], preparation: Preparation) -> dict[str, list[Row]]:
    """Remove from dev the clips and speakers that test has, and from train those that test or dev has."""
    clips: dict[Path, str] = {}
    speakers: dict[str, str] = {}
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        splits[split] = []
        for row in lists[split]:
            if row.path in clips:
                preparation.drop(f"{split}: clip that {clips[row.path]} has too", row.path.name)
            elif row.speaker in speakers:
                preparation.drop(f"{split}: speaker who is in {speakers[row.speaker]} too", row.path.name)
            else:
                splits[split].append(row)
        clips |= {row.path: split for row in lists[split] if row.path not in clips}
        speakers |= {row.speaker: split for row in lists[split] if row.speaker not in speakers}
    if all(len(splits[split]) == len(lists[split]) for split in SPLITS):
        print_status("no speaker and no clip is in two of train.tsv, dev.tsv and test.tsv")
    return splits


def for_pretraining(lists: Mapping[str, Sequence[Row]], preparation: Preparation) -> list[Row]:
    """Return the clips of all lists but invalidated, each once, by speakers who are in neither dev nor test."""
    invalidated = {row.path for row in lists["invalidated"]}
    held_out = {row.path for split in ("test", "dev") for row in lists[split]}
    speakers = {row.speaker for split in ("test", "dev") for row in lists[split]}
    rows = []
    seen: set[Path] = set(held_out)
    for row in (row for name in UNLABELLED for row in lists[name]):
        if row.path in seen:
            continue
        seen.add(row.path)
        if row.path in invalidated:
            preparation.drop("pretraining: clip that invalidated.tsv has too", row.path.name)
        elif row.speaker in speakers:
            preparation.drop("pretraining: speaker of dev or test", row.path.name)
        else:
            rows.append(row)
    return rows


def short_names(speakers: Iterable[str]) -> dict[str, str]:
    """Shorten client_ids to beginnings that are just long enough to stay different."""
    distinct = set(speakers)
    length = MIN_SPEAKER_CHARACTERS
    while len({speaker[:length] for speaker in distinct}) < len(distinct):
        length += 1
    return {speaker: speaker[:length] for speaker in distinct}
