"""A miniature of a user's folder: recordings of several kinds, texts of some, and what goes wrong in such folders."""

from pathlib import Path

import numpy as np
import soundfile
from miniature import Speech, speech

NUM_LABELLED = 20
NUM_SPEAKERS = 10


def clips() -> dict[str, Speech]:
    """The labeled clips by the paths of their recordings."""
    return {f"field 1/{n:02d}.wav": clip for n, clip in enumerate(speech(NUM_LABELLED))}


def speaker(path: str) -> str:
    """Who is said to speak in a recording."""
    return f"voice {int(Path(path).stem) % NUM_SPEAKERS}"


def make_recordings(folder: Path) -> None:
    """Write the recordings: 20 with a text, some without, some that are none."""
    (folder / "field 1").mkdir(parents=True)
    for path, clip in clips().items():
        soundfile.write(folder / path, clip.samples, 16_000)
    without = speech(12, "ru", (2.0, 6.0))
    (folder / "radio").mkdir()
    long = np.concatenate([clip.samples for clip in without])
    soundfile.write(folder / "radio" / "show.flac", long, 16_000)
    stereo = np.stack([without[0].samples, without[0].samples], axis=1)
    soundfile.write(folder / "radio" / "jingle.WAV", stereo, 44_100)
    soundfile.write(folder / "radio" / "beep.wav", without[1].samples[:8000], 16_000)
    (folder / "radio" / "broken.wav").write_bytes(b"RIFF but no more")
    (folder / "radio" / "empty.mp3").touch()
    (folder / "radio" / "._show.flac").write_bytes(b"what another system leaves")
    (folder / "radio" / "contents.pdf").write_bytes(b"%PDF")


def make_tree(folder: Path) -> dict[str, str]:
    """Write recordings and a table of labels with bad lines; the settings for run.sh."""
    make_recordings(folder / "my recordings")
    rows = ["\ufeffFile,Sentence,Speaker"]
    rows += [f'{path},"{clip.text.capitalize()}, ok.",{speaker(path)}' for path, clip in clips().items()]
    rows += ["field 1/99.wav,there is no such recording,voice 1", "field 1/00.wav,too,many,cells", ""]
    rows += ["radio/jingle.WAV,press 5 now,voice 2", "radio/show.flac,...,", "radio/broken.wav,broken,"]
    (folder / "labels.csv").write_text("\r\n".join(rows), "utf-8")
    return {
        "CORPUS": str(folder / "my recordings"),
        "LABELS": str(folder / "labels.csv"),
        "LICENSE": "CC-BY-SA-3.0, CC-BY-3.0",
    }
