"""Files and folders with labels of any form."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechssl.data.labels.cues import is_audacity, read_audacity, read_subtitles
from speechssl.data.labels.elan import read_elan
from speechssl.data.labels.kaldi import read_kaldi
from speechssl.data.labels.label import NAMES, Drop, Label, read_content, shorten, single_spaced
from speechssl.data.labels.tables import read_json, read_table
from speechssl.data.labels.textgrid import read_textgrid
from speechssl.data.labels.tiers import read_tiers
from speechssl.data.manifest import read_manifest
from speechssl.data.transcribed import is_transcript
from speechssl.errors import ManifestError

ACCEPTED = (
    f"a csv or tsv whose header has one of {'/'.join(NAMES['path'])} and one of {'/'.join(NAMES['text'])}, "
    "JSON with these names, a manifest, two or three columns without a header, a file of ELAN, Praat, Audacity or "
    "subtitles (.eaf, .TextGrid, .txt, .srt, .vtt), a folder of such files, or a Kaldi folder (wav.scp, text)"
)
_OF_ONE_RECORDING = (".txt", ".eaf", ".textgrid", ".srt", ".vtt")
_TABLES = (".csv", ".tsv")


def read_labels(labels: Path, drop: Drop, tiers: Sequence[str] = ()) -> list[Label]:
    """Read labels of any of the accepted forms; those that cannot be used are dropped.

    Args:
        labels: A file or a folder.
        drop: Called with a reason, and with where and what.
        tiers: Names of the tiers to read from ELAN's and Praat's files.

    Raises:
        ManifestError: there is no such file, or it is of another form.
    """
    if (labels / "wav.scp").is_file():
        return list(read_kaldi(labels, drop))
    if labels.is_dir():
        if files := sorted(_find_files(labels)):
            said = [file for file in files if _is_said(file, drop)]
            return [label for file in said for label in _read_in_folder(file, labels, drop, tiers)]
        raise ManifestError(f"{labels}: expected labels ({ACCEPTED}), found a folder without any")
    if not labels.exists():
        raise ManifestError(f"{labels}: expected labels ({ACCEPTED}), found none")
    if labels.suffix.lower() in _OF_ONE_RECORDING[1:]:
        return list(_read_one(labels, _names(labels, labels.parent), drop, tiers))
    content = read_content(labels)
    if _is_manifest(content):
        return list(_read_manifest(labels))
    if is_audacity(content):
        return list(read_audacity(labels, content, _names(labels, labels.parent), drop))
    if content.lstrip().startswith(("{", "[")):
        return list(read_json(labels, content, drop))
    table = read_table(labels, content, drop)
    if table is None:
        first_line = content.lstrip().partition("\n")[0]
        raise ManifestError(f"{labels}: expected labels ({ACCEPTED}), found {shorten(first_line)}")
    return list(table)


def read_labels_beside(recordings: Sequence[Path], drop: Drop, tiers: Sequence[str] = ()) -> list[Label]:
    """Read the files of the recordings' own names: ``talk.txt``, or ``talk.eaf``, beside ``talk.wav``."""
    labels: list[Label] = []
    found: dict[Path, dict[str, Path]] = {}
    for folder in {recording.parent for recording in recordings}:
        for file in folder.iterdir():
            if (suffix := file.suffix.lower()) in _OF_ONE_RECORDING and file.is_file():
                found.setdefault(file.with_suffix(""), {})[suffix] = file
    for recording in recordings:
        files = found.get(recording.with_suffix(""), {})
        ordered = [files[suffix] for suffix in _OF_ONE_RECORDING if suffix in files and _is_said(files[suffix], drop)]
        for file in ordered[1:]:
            drop("other labels of the same recording", f"{file}: {ordered[0]} is read")
        for file in ordered[:1]:
            try:
                labels += _read_one(file, (str(recording),), drop, tiers)
            except ManifestError as error:
                drop("text that cannot be read", str(error))
    return labels


def _is_said(file: Path, drop: Drop) -> bool:
    """Whether a file is no transcript of a model; one that nobody changed is dropped."""
    if is_transcript(file):
        drop("unchanged output of transcribe-audio", str(file))
        return False
    return True


def _read_in_folder(file: Path, folder: Path, drop: Drop, tiers: Sequence[str]) -> Iterator[Label]:
    """Read a file of one recording, which is called as it is, or a table that names its recordings."""
    if file.suffix.lower() not in _TABLES:
        yield from _read_one(file, _names(file, folder), drop, tiers)
    elif _is_manifest(content := read_content(file)):
        yield from _read_manifest(file)
    elif (table := read_table(file, content, drop, needs_header=True)) is not None:
        yield from table
    else:
        drop("table without columns of recordings and texts", str(file))


def _read_one(file: Path, paths: tuple[str, ...], drop: Drop, tiers: Sequence[str]) -> Iterator[Label]:
    """Read what is said in one recording, called by one of the paths."""
    match file.suffix.lower():
        case ".eaf":
            found, named = read_elan(file)
            yield from read_tiers(file, found, tiers, tuple(dict.fromkeys([*paths, *named])), drop)
        case ".textgrid":
            yield from read_tiers(file, read_textgrid(file), tiers, paths, drop)
        case ".srt" | ".vtt":
            yield from read_subtitles(file, read_content(file), paths, drop)
        case _:
            content = read_content(file)
            if is_audacity(content):
                yield from read_audacity(file, content, paths, drop)
            else:
                yield Label(str(file), paths, single_spaced(content))


def _is_manifest(content: str) -> bool:
    """Whether this is a manifest of speechssl: the root folder, then the names of columns."""
    root, _, rest = content.partition("\n")
    return "\t" not in root and {"path", "num_samples", "text"} <= set(rest.partition("\n")[0].split("\t"))


def _read_manifest(file: Path) -> Iterator[Label]:
    manifest = read_manifest(file)
    for number, utterance in enumerate(manifest):
        start, rate = utterance.start, utterance.sample_rate
        yield Label(
            manifest.where(number),
            (utterance.path,),
            utterance.text or "",
            utterance.speaker,
            utterance.language,
            start / rate,
            (start + utterance.num_samples) / rate,
        )


def _find_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in (*_OF_ONE_RECORDING, *_TABLES) and not name.startswith("."):
                yield Path(parent, name)


def _names(file: Path, folder: Path) -> tuple[str, ...]:
    """Return what the recording of a file may be called: talk, in the same folder, or for talk.en.srt talk too."""
    below = file.relative_to(folder).with_suffix("")
    return tuple(dict.fromkeys(str(path) for path in (below, below.with_suffix(""), Path(below.name))))
