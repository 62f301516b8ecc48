"""Labels in Kaldi's folders: wav.scp, text, segments and utt2spk."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from speechssl.data.labels.label import Drop, Label, drop_unusable, make_label, read_content, shorten, split_lines
from speechssl.errors import ManifestError

_BLANKS = " \t"  # not all white space: a name may have a no-break space


def read_kaldi(folder: Path, drop: Drop) -> Iterator[Label]:
    """Read the labels of a folder; commands in ``wav.scp`` are not run.

    Raises:
        ManifestError: ``wav.scp`` or ``text`` is missing or has commands only.
    """
    recordings = _read_pairs(folder / "wav.scp", drop)
    commands = [name for name, (_, path) in recordings.items() if path.endswith("|") or path.startswith("|")]
    if commands and len(commands) == len(recordings):
        raise ManifestError(
            f"{folder / 'wav.scp'}: expected the paths of recordings, found commands only, which are not run "
            f"({shorten(recordings[commands[0]][1])}): write their output to files"
        )
    for name in commands:
        where, path = recordings.pop(name)
        drop("recording that a command makes, which is not run", f"{where}: {shorten(path)}")
    segments = _read_pairs(folder / "segments", drop) if (folder / "segments").is_file() else None
    speakers = _read_pairs(folder / "utt2spk", drop) if (folder / "utt2spk").is_file() else {}
    for utterance, (where, text) in _read_pairs(folder / "text", drop).items():
        values: dict[str, Any] = {"text": text, "speaker": speakers.get(utterance, ("", None))[1]}
        recording = utterance
        if segments is not None:
            fields = segments[utterance][1].split() if utterance in segments else []
            if len(fields) != 3:
                drop("text without a segment", f"{where}: {utterance}")
                continue
            recording, values["start"], values["end"] = fields
            if values["end"].startswith("-"):  # until the end
                values["end"] = None
        if recording in recordings:
            values["path"] = recordings[recording][1]
            yield from drop_unusable(drop, where, partial(make_label, where, values))
        elif recording not in commands:
            drop("text without a recording in wav.scp", f"{where}: {recording}")


def _read_pairs(file: Path, drop: Drop) -> dict[str, tuple[str, str]]:
    """Return the lines of one of Kaldi's files: for each name where it stands, and what follows it."""
    pairs: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(split_lines(read_content(file)), 1):
        name, *rest = re.split(f"[{_BLANKS}]+", line.strip(_BLANKS), maxsplit=1)
        if name in pairs:
            drop("name that occurs twice", f"{file}:{number}: {name}")
        elif name:
            pairs[name] = f"{file}:{number}", "".join(rest)
    return pairs
