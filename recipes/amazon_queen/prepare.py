"""Turn the recordings and lines of the game into audio files and manifests: `python prepare.py QUEEN_1C OUT_DATA`."""

import argparse
import filecmp
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from archive import Archive, find_archive, read_archive
from script import Line, read_script
from texts import spoken_text

from speechssl.data.audio import SAMPLE_RATE, as_waveform
from speechssl.data.corpus import Clip, Preparation
from speechssl.data.manifest import Utterance
from speechssl.data.scan import parallel_map
from speechssl.data.subsets import label_subset, random_key
from speechssl.errors import AudioError, ManifestError
from speechssl.files import path_inside
from speechssl.terminal import exit_on_error, print_status

DEV_CHARACTERS = ("KLUNK", "LOU", "NAOMI")
TEST_CHARACTERS = ("FAYE", "ORACLE", "WITCH", "ZOMBIE")
SILENT_CHARACTERS = ("DOG",)  # barks
SUBSETS = {"train_10min": 10.0, "train_1h": 60.0}
MAX_PIECE_SECONDS = 8.0
GAIN = 0.6  # the recordings are at full scale, and what an MP3 decodes to goes beyond

MAX_LETTERS_A_SECOND = 18.0
MIN_LETTERS_A_SECOND = 3.0  # besides pauses of so many seconds:
MAX_PAUSE_SECONDS = 1.5


@dataclass(frozen=True)
class Recording:
    """Locate a clip in its character's audio file."""

    clip: str
    line: str
    character: str
    path: Path
    start: int
    num_samples: int

    @property
    def seconds(self) -> float:
        return self.num_samples / SAMPLE_RATE


def prepare(place: Path, folder: Path) -> None:
    """Write the audio, one file for each character, and all manifests."""
    archive = read_archive(find_archive(place))
    preparation = Preparation(folder)
    script = read_script(archive, preparation.drop)
    by_character = _chosen(archive, script, preparation)
    files = {
        # Names are the archive's, and choose no place outside the folder.
        character: path_inside(folder / "audio", f"{character.lower()}.flac", f"{archive.path}: {character!r}")
        for character in sorted(by_character)
    }
    (folder / "audio").mkdir(exist_ok=True)
    written = parallel_map(
        lambda item: _write_audio(archive, script, item[0], by_character[item[0]], item[1]),
        list(files.items()),
        f"decoding {archive.path.name}",
    )
    recordings = [recording for part, _ in written for recording in part]
    for error in (error for _, errors in written for error in errors):
        preparation.drop("recording that cannot be decoded", error)

    parts: dict[str, list[Recording]] = {"train": [], "dev": [], "test": []}
    for recording in recordings:
        parts[_part(recording.character)].append(recording)
    labeled = {name: _labeled(part, preparation) for name, part in parts.items()}
    splits = {name: preparation.utterances([clip for _, clip in clips]) for name, clips in labeled.items()}
    keys = [random_key("amazon_queen", name) for name, _ in labeled["train"]]
    splits |= {name: label_subset(splits["train"], keys, minutes) for name, minutes in SUBSETS.items()}
    splits |= {f"pretrain_{name}": _pieces(parts[name], preparation) for name in ("train", "dev")}
    preparation.write(splits, folder)
    preparation.report_dropped()
    ours, neighbors = _agreement([clip for _, clips in sorted(labeled.items()) for _, clip in clips])
    print_status(
        f"the letters of a line go with its seconds by a correlation of {ours:.2f}, next lines by {neighbors:.2f}"
    )


def _agreement(clips: Sequence[Clip]) -> tuple[float, float]:
    """Correlate the letters of lines with the seconds of their recordings, and with those of the clips before."""
    letters = [len(clip.text or "") for clip in clips]
    seconds = [(clip.end or 0) - (clip.start or 0) for clip in clips]
    return float(np.corrcoef(letters, seconds)[0, 1]), float(np.corrcoef(letters[1:], seconds[:-1])[0, 1])


def _chosen(archive: Archive, script: dict[str, Line], preparation: Preparation) -> dict[str, list[str]]:
    """Return the clips of each character, in the order of their names, so that conversations stay in order."""
    clips = defaultdict(list)
    first_with: dict[bytes, str] = {}  # some scenes are there twice
    for clip in archive.clips():
        line = script.get(clip)
        first = first_with.setdefault(archive.read_clip(clip), clip)
        if first != clip:
            preparation.drop("recording that is there before", f"{clip} is {first}")
        elif line is None:
            preparation.drop("recording without a line: a sound effect or an unused take", clip)
        elif line.character is None:
            preparation.drop("recording of an unknown character", f"{clip}: {line.text}")
        elif line.character in SILENT_CHARACTERS:
            preparation.drop("recording of an animal's noises", f"{clip}: {line.text}")
        else:
            clips[line.character].append(clip)
    if not clips:
        raise ManifestError(f"{archive.path}: expected recordings with lines, found none")
    return clips


def _write_audio(
    archive: Archive, script: dict[str, Line], character: str, clips: Sequence[str], path: Path
) -> tuple[list[Recording], list[str]]:
    """Decode a character's clips into one file at 16 kHz: where they lie in it, and what could not be decoded."""
    recordings: list[Recording] = []
    errors = []
    partial = path.with_suffix(".partial")
    position = 0
    with soundfile.SoundFile(partial, "w", SAMPLE_RATE, 1, subtype="PCM_16", format="FLAC") as file:
        for clip in clips:
            try:
                # Up to its end: the length that these files seem to have is a guess from their size.
                with soundfile.SoundFile(io.BytesIO(archive.read_clip(clip))) as sound:
                    waveform = as_waveform(sound.read(dtype="float32"), sound.samplerate)
            except soundfile.LibsndfileError as error:
                errors.append(f"{clip}: {error.error_string}")
                continue
            except AudioError as error:
                errors.append(f"{clip}: {error}")
                continue
            file.write(GAIN * waveform)
            recordings.append(Recording(clip, script[clip].text, character, path, position, len(waveform)))
            position += len(waveform)
    if not recordings or (path.exists() and filecmp.cmp(partial, path, shallow=False)):
        partial.unlink()  # what is known of an old file stays true
    else:
        partial.replace(path)
    return recordings, errors


def _part(character: str) -> str:
    return "dev" if character in DEV_CHARACTERS else "test" if character in TEST_CHARACTERS else "train"


def _labeled(recordings: Sequence[Recording], preparation: Preparation) -> list[tuple[str, Clip]]:
    """Return the clips whose text is what is heard, with their names."""
    clips = []
    for recording in recordings:
        text, reason = spoken_text(recording.line)
        if text is not None:
            letters = len(text.replace(" ", ""))
            if letters > MAX_LETTERS_A_SECOND * recording.seconds:
                reason = "too many letters for its duration"
            elif letters < MIN_LETTERS_A_SECOND * (recording.seconds - MAX_PAUSE_SECONDS):
                reason = "too few letters for its duration"
        if text is None or reason:
            what = f"{recording.clip}: {recording.line} ({recording.seconds:.1f} s)"
            preparation.drop(f"text, not audio: {reason}", what)
            continue
        clips.append((recording.clip, _clip(recording, recording.start + recording.num_samples, text)))
    return clips


def _clip(first: Recording, end: int, text: str | None = None) -> Clip:
    return Clip(first.path, text, first.character, "en", first.start / SAMPLE_RATE, end / SAMPLE_RATE)


def _pieces(recordings: Sequence[Recording], preparation: Preparation) -> list[Utterance]:
    """Join neighbors in a file while they stay within 8 s, a good length for pretraining."""
    pieces: list[tuple[Recording, int]] = []  # the first recording, and where the last one ends
    for recording in recordings:
        end = recording.start + recording.num_samples
        if pieces:
            first, _ = pieces[-1]
            if first.path == recording.path and end - first.start <= MAX_PIECE_SECONDS * SAMPLE_RATE:
                pieces[-1] = (first, end)
                continue
        pieces.append((recording, end))
    return preparation.utterances([_clip(first, end) for first, end in pieces])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("queen", type=Path, help="queen.1c, or a folder with it")
    parser.add_argument("folder", type=Path, help="where audio and manifests go")
    arguments = parser.parse_args()
    with exit_on_error():
        prepare(arguments.queen, arguments.folder)


if __name__ == "__main__":
    main()
