"""Write the manifests of the corpus from its table of clips: `python prepare.py [FOLDER]` (default: corpus beside it).

The table is read, not the audio, so that the manifests are the same on every machine.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from splits import draw

from speechssl.data.manifest import Utterance, write_manifest
from speechssl.data.subsets import label_subset
from speechssl.errors import ManifestError
from speechssl.terminal import exit_on_error

SAMPLE_RATE = 16_000
MIN_PIECE_SECONDS, MAX_PIECE_SECONDS = 3.0, 8.0
SUBSET_MINUTES = (5, 10)
MAX_SUBSET_CLIP_SECONDS = 15.0  # a clip of 25 s would be a twelfth of the 5 minutes


@dataclass(frozen=True)
class Clip:
    """Hold a row of the table: a prompt in one language, and where it lies in the language's audio file."""

    language: str
    prompt: str
    group: str
    part: str
    path: str
    start: int
    num_samples: int
    speaker: str
    pauses: tuple[int, ...]  # samples from the start of the clip at which it may be cut
    text: str | None
    note: str  # why there is no text

    @property
    def seconds(self) -> float:
        return self.num_samples / SAMPLE_RATE


COLUMNS = ("language", "prompt", "group", "part", "path", "start", "num_samples", "speaker", "pauses", "text", "note")


def read_clips(path: Path) -> list[Clip]:
    """Read the table of clips, in the order of the file."""
    if not path.is_file():
        raise ManifestError(f"{path}: expected the table of clips, found none")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        Clip(
            **{name: row[name] for name in ("language", "prompt", "group", "part", "path", "speaker", "note")},
            start=int(row["start"]),
            num_samples=int(row["num_samples"]),
            pauses=tuple(int(pause) for pause in row["pauses"].split()),
            text=row["text"] or None,
        )
        for row in rows
    ]


def labeled(clips: Sequence[Clip], language: str, part: str, folder: Path) -> list[Utterance]:
    """Return the clips with a text, each as an utterance."""
    return [_utterance(clip, folder) for clip in clips if (clip.language, clip.part) == (language, part) and clip.text]


def short_english(clips: Sequence[Clip]) -> list[Clip]:
    """Return the clips from which label subsets are drawn."""
    train = [clip for clip in clips if (clip.language, clip.part) == ("en", "train") and clip.text]
    return [clip for clip in train if clip.seconds <= MAX_SUBSET_CLIP_SECONDS]


def pieces(clips: Sequence[Clip], part: str, folder: Path) -> list[Utterance]:
    """Cover the part's audio with spans of 3 to 8 s that begin and end between clips, or at pauses of long ones."""
    utterances = []
    for language in dict.fromkeys(clip.language for clip in clips):
        area = [clip for clip in clips if (clip.language, clip.part) == (language, part)]
        cuts = [area[0].start]
        for clip in area:
            cuts += [clip.start + pause for pause in clip.pauses] + [clip.start + clip.num_samples]
        for start, end in _best_pieces(cuts):
            utterances.append(
                Utterance(
                    str(folder / area[0].path), end - start, start=start, speaker=area[0].speaker, language=language
                )
            )
    return utterances


def _best_pieces(cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Choose among the cuts so that the pieces come as near to the middle of the range as possible."""
    middle = (MIN_PIECE_SECONDS + MAX_PIECE_SECONDS) / 2
    costs, previous = [0.0], [0]
    for end in range(1, len(cuts)):
        best = (float("inf"), 0)
        for start in range(end - 1, -1, -1):
            seconds = (cuts[end] - cuts[start]) / SAMPLE_RATE
            if seconds > MAX_PIECE_SECONDS and start < end - 1:
                break
            is_outside = not MIN_PIECE_SECONDS <= seconds <= MAX_PIECE_SECONDS
            best = min(best, (costs[start] + (seconds - middle) ** 2 + 1000 * is_outside, start))
        costs.append(best[0])
        previous.append(best[1])
    chosen = [len(cuts) - 1]
    while chosen[-1]:
        chosen.append(previous[chosen[-1]])
    chosen.reverse()
    return [(cuts[start], cuts[end]) for start, end in pairwise(chosen)]


def _utterance(clip: Clip, folder: Path) -> Utterance:
    return Utterance(
        str(folder / clip.path),
        clip.num_samples,
        start=clip.start,
        text=clip.text,
        speaker=clip.speaker,
        language=clip.language,
    )


def write_manifests(folder: Path) -> None:
    """Write every manifest of the corpus beside its table and audio."""
    clips = read_clips(folder / "clips.tsv")
    manifests = {f"pretrain_{part}": pieces(clips, part, folder) for part in ("train", "dev")}
    subset_clips = short_english(clips)
    subset_keys = [draw(clip.prompt) for clip in subset_clips]
    for minutes in SUBSET_MINUTES:
        utterances = [_utterance(clip, folder) for clip in subset_clips]
        manifests[f"train_{minutes}min"] = label_subset(utterances, subset_keys, minutes)
    for language in dict.fromkeys(clip.language for clip in clips):
        suffix = "" if language == "en" else f"_{language}"
        for part in ("train", "dev", "test"):
            manifests[f"{part}{suffix}"] = labeled(clips, language, part, folder)
    for name, utterances in manifests.items():
        write_manifest(folder / f"{name}.tsv", utterances, ".")
        total = sum(utterance.seconds for utterance in utterances) / 60
        print(f"{name}.tsv: {len(utterances)} utterances, {total:.2f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "corpus")
    with exit_on_error():
        write_manifests(parser.parse_args().folder)


if __name__ == "__main__":
    main()
