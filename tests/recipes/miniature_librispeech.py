"""LibriSpeech in miniature: every subset and Libri-light's parts, with what can be wrong in them."""

from collections.abc import Iterator
from pathlib import Path

import soundfile
from miniature import Speech, speech

SUBSETS = {  # the chapters of each, as SPEAKER-CHAPTER
    "train-clean-100": ("103-1240", "103-1241", "1034-121119"),
    "train-clean-360": ("100-121669",),
    "train-other-500": ("20-205",),
    "dev-clean": ("84-121123",),
    "dev-other": ("116-288045",),
    "test-clean": ("61-70968",),
    "test-other": ("367-130732",),
}
FOLDS = {  # a chapter of train-clean-100 and one of train-other-500 in each, as in the archive
    **{
        f"1h/{fold}/{kind}": f"{speaker}-{fold}00"
        for fold in range(6)
        for kind, speaker in (("clean", 103), ("other", 20))
    },
    "9h/clean": "1034-900",
    "9h/other": "20-900",
}
NUM_CLIPS = 2  # a chapter


def make_tree(folder: Path) -> dict[str, str]:
    """Make the corpus with everything in it; the settings for run.sh."""
    make_librispeech(folder / "LibriSpeech")
    make_librilight(folder / "librispeech_finetuning")
    return {"CORPUS": str(folder / "LibriSpeech"), "LABELS": "100h"}


def make_librispeech(root: Path) -> None:
    """Make the seven subsets, with oddities in the first two chapters of train-clean-100."""
    clips = _by_letters()
    for subset, chapters in SUBSETS.items():
        for name in chapters:
            write_chapter(root / subset, name, [next(clips) for _ in range(NUM_CLIPS)])
    for name in ("README", "LICENSE", "SPEAKERS", "CHAPTERS", "BOOKS"):
        (root / f"{name}.TXT").write_text(f"; {name.lower()}\n", "utf-8")
    _spoil_files(root / "train-clean-100" / "103" / "1240")
    _spoil_texts(root / "train-clean-100" / "103" / "1241")


def make_librilight(root: Path) -> None:
    """Make the six folds of 1h, 9h, and the phones that nobody reads."""
    clips = speech(NUM_CLIPS * len(FOLDS), seconds=(2.0, 4.0))
    # The labels of the 10 minutes need every letter of dev: the fold has the clips with most of them.
    clips.sort(key=lambda clip: len(set(clip.text)), reverse=True)
    remaining = iter(clips)
    for part, name in FOLDS.items():
        write_chapter(root / part, name, [next(remaining) for _ in range(NUM_CLIPS)])
    (root / "phones" / "10min").mkdir(parents=True)
    (root / "phones" / "phones_mapping.json").write_text("{}", "utf-8")


def write_chapter(folder: Path, name: str, clips: list[Speech]) -> None:
    """Write the recordings of a chapter and its file of texts."""
    chapter = folder / name.replace("-", "/")
    chapter.mkdir(parents=True)
    lines = []
    for number, clip in enumerate(clips):
        soundfile.write(chapter / f"{name}-{number:04d}.flac", clip.samples, 16_000, subtype="PCM_16")
        lines.append(f"{name}-{number:04d} {clip.text.upper()}\n")
    (chapter / f"{name}.trans.txt").write_text("".join(lines), "utf-8")


def _by_letters() -> Iterator[Speech]:
    """Clips, so ordered that those with most letters come first: what is held out has no letter that train lacks."""
    clips = speech(60, seconds=(2.0, 4.0))
    return iter(sorted(clips, key=lambda clip: len(set(clip.text)), reverse=True))


def _spoil_files(chapter: Path) -> None:
    """Beside two good recordings: one cut off, one empty, one misnamed, one without a text; files of other kinds."""
    good = (chapter / "103-1240-0000.flac").read_bytes()
    (chapter / "103-1240-0002.flac").write_bytes(good[:20])
    (chapter / "103-1240-0003.flac").write_bytes(b"")
    (chapter / "7-7-0000.flac").write_bytes(good)
    untexted = speech(61, seconds=(2.0, 4.0))[-1]  # in no other recording, or the check finds it in two splits
    soundfile.write(chapter / "103-1240-0004.flac", untexted.samples, 16_000, subtype="PCM_16")
    (chapter / "._103-1240-0000.flac").write_bytes(b"Mac OS X")
    (chapter / "103-1240-0000.wav").write_bytes(b"RIFF")
    with (chapter / "103-1240.trans.txt").open("a", encoding="utf-8") as texts:
        texts.write("103-1240-0002 CUT OFF\n103-1240-0003 EMPTY\n103-1240-0009 NOBODY READS THIS\n")
    (chapter.parent / "1249").mkdir()  # a chapter without anything
    (chapter.parent.parent / "notes.txt").write_text("not a speaker\n", "utf-8")


def _spoil_texts(chapter: Path) -> None:
    """Windows' line ends, a text with digits, one without words, one twice, one of another chapter, no UTF-8."""
    good = (chapter / "103-1241-0000.flac").read_bytes()
    for number in range(2, 6):
        (chapter / f"103-1241-{number:04d}.flac").write_bytes(good)
    file = chapter / "103-1241.trans.txt"
    lines = file.read_text("utf-8").splitlines()
    lines += ["", "103-1241-0001 AGAIN", "103-1240-0001 OF ANOTHER CHAPTER"]
    lines += ["103-1241-0002 CHAPTER 3", "103-1241-0003", "103-1241-0004   THE  BOYS' OWN  "]
    file.write_bytes("\r\n".join(lines).encode() + b"\r\n103-1241-0005 CAF\xc9\r\n")
