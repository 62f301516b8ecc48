"""Write the manifests of a folder of recordings and texts: `python prepare.py RECORDINGS FOLDER --labels FILE`."""

import argparse
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from held_out import SEED, Splits, draw_splits, held_out_seconds, keep_splits
from labeled import Corpus, make_utterances

from speechssl.data.corpus import Preparation
from speechssl.data.labels.files import read_labels, read_labels_beside
from speechssl.data.manifest import Utterance
from speechssl.data.subsets import random_key
from speechssl.errors import ManifestError, system_errors
from speechssl.files import write_text_file
from speechssl.terminal import exit_on_error, print_status

PIECE_SECONDS = 15.0  # no longer than the base model's crops in pretraining
MIN_PIECE_SECONDS = 1.0
MIN_DEV_PIECE_SECONDS = 2.0  # the base model is pretrained on nothing shorter
PRETRAIN_DEV_SHARE, PRETRAIN_DEV_SECONDS = 0.02, 600.0
RARE = 5

LABELLED = ("train", "dev", "test")
ALPHABET_FILE = "alphabet.tsv"
NO_LABELS = Path("none")
_NUM_LISTED = 20
# Of these, every piece is decoded from the start of its recording.
_SLOW_SUFFIXES = ".aac .amr .avi .g722 .m4a .m4v .mka .mkv .mov .mp3 .mp4 .webm .wma"
_SLOW_SECONDS = 300.0


def prepare(
    folder: Path,
    out: Path,
    labels: Path | None,
    kept: Path | None,
    as_is: bool,
    language: str | None = None,
    tiers: Sequence[str] = (),
) -> None:
    """Write the manifests.

    Args:
        folder: The recordings.
        out: Where the manifests go.
        labels: What is said in them, a file or a folder; None reads the files beside the recordings, NO_LABELS none.
        kept: The manifests of an earlier preparation, whose dev and test are kept.
        as_is: Whether texts are learned as they are written.
        language: Of texts that state none.
        tiers: Those of ELAN's and Praat's files that hold what is said.

    Raises:
        ManifestError: there is nothing to prepare, or something cannot be read or written.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "none"
        raise ManifestError(f"CORPUS={folder}: expected a folder with recordings, found {found}")
    preparation = Preparation(out)
    corpus = Corpus(folder, preparation)
    if labels is None or labels == NO_LABELS:
        rows = [] if labels == NO_LABELS else read_labels_beside(corpus.found, corpus.drop, tiers)
        expects_labels = bool(rows)
    else:
        rows = read_labels(labels, corpus.drop, tiers)
        expects_labels = True
    if language:
        print_status(f"texts that state no language are taken for {language}")
    utterances, voices = make_utterances(corpus, rows, labels, language, as_is)
    warn_of_slow_recordings(corpus)
    splits = split(corpus, utterances, kept) if expects_labels else None
    manifests = for_pretraining(corpus, splits, voices)
    if splits:
        manifests |= {"train": splits.train, "dev": splits.dev, "test": splits.test}
    else:
        for name in (*(f"{name}.tsv" for name in LABELLED), ALPHABET_FILE):  # of an earlier preparation
            (out / name).unlink(missing_ok=True)
    preparation.write(manifests, corpus.root)
    preparation.report_dropped()
    if splits:
        print_status(f"labels: {splits.how}")
        write_alphabet(out, manifests)
    else:
        print_status("no texts: for pretraining only")


def split(corpus: Corpus, utterances: Sequence[Utterance], kept: Path | None) -> Splits:
    """Divide labeled utterances into train, dev and test.

    Raises:
        ManifestError: there are too few.
    """
    try:
        return keep_splits(utterances, kept, corpus.drop) if kept else draw_splits(utterances, corpus.name)
    except ManifestError as error:
        reasons = ", ".join(f"{number} {reason}" for reason, number in corpus.num_dropped.most_common())
        file = corpus.preparation.folder / "dropped.tsv"
        left_out = f"; left out, as {file} says line by line: {reasons}" if reasons else ""
        raise ManifestError(f"{error}{left_out} (LABELS=none pretrains without any)") from None


def for_pretraining(
    corpus: Corpus, splits: Splits | None, voices: Mapping[Path, set[str]]
) -> dict[str, Sequence[Utterance]]:
    """Cut all audio into pieces, except the recordings and voices that are held out.

    The dev set of pretraining only tells whether the loss falls on audio that is not trained on: single pieces, of the
    labeled dev recordings first, which are not trained on anyway.

    Args:
        corpus: The recordings.
        splits: The labeled utterances, if there are any.
        voices: Who speaks in which recording.
    """
    in_dev = {Path(utterance.path) for utterance in splits.dev} if splits else set()
    held = in_dev | {Path(utterance.path) for utterance in splits.test} if splits else set()
    held |= {path for path, speakers in voices.items() if splits and speakers & splits.voices}
    pieces = []
    seconds = seconds_held = 0.0
    for path, whole in corpus.headers.items():
        if whole.seconds < MIN_PIECE_SECONDS:
            corpus.drop(f"shorter than {MIN_PIECE_SECONDS:g} s, not used in pretraining", corpus.name(path))
            continue
        seconds += whole.seconds
        seconds_held += whole.seconds if path in held else 0.0
        pieces += [piece for piece in cut(whole) if path in in_dev or path not in held]
    drawn = sorted(
        pieces,
        key=lambda piece: (
            piece.seconds < MIN_DEV_PIECE_SECONDS,
            Path(piece.path) not in in_dev,
            random_key(SEED, f"{corpus.name(piece.path)}:{piece.start}"),
        ),
    )
    target = held_out_seconds(seconds, PRETRAIN_DEV_SHARE, PRETRAIN_DEV_SECONDS)
    dev: set[Utterance] = set()
    taken = 0.0
    for piece in drawn:
        if taken >= target:
            break
        dev.add(piece)
        taken += piece.seconds
    if seconds_held:
        print_status(f"pretraining leaves out {seconds_held / 60:.1f} minutes: recordings of dev and test")
    return {
        "pretrain_train": [piece for piece in pieces if Path(piece.path) not in held and piece not in dev],
        "pretrain_dev": [piece for piece in pieces if piece in dev],
    }


def cut(whole: Utterance) -> list[Utterance]:
    """Cut a recording into as few equal pieces as are short enough.

    Not at pauses: pretraining has no texts to cut through, crops at random places anyway, and nothing need be decoded.
    """
    number = math.ceil(whole.seconds / PIECE_SECONDS)
    cuts = [round(whole.num_samples * part / number) for part in range(number + 1)]
    return [replace(whole, start=start, num_samples=end - start) for start, end in pairwise(cuts)]


def write_alphabet(folder: Path, splits: Mapping[str, Sequence[Utterance]]) -> None:
    """Write how often each letter occurs, and say which are rare in training.

    Raises:
        ManifestError: it cannot be written.
    """
    counts = {
        name: Counter("".join("".join((utterance.text or "").split()) for utterance in splits[name]))
        for name in LABELLED
    }
    letters = sorted(set().union(*counts.values()), key=lambda letter: (-counts["train"][letter], letter))
    rows = ["\t".join(("letter", "code", "name", *LABELLED))]
    for letter in letters:
        numbers = (str(counts[name][letter]) for name in LABELLED)
        rows.append("\t".join((letter, f"U+{ord(letter):04X}", unicodedata.name(letter, ""), *numbers)))
    file = folder / ALPHABET_FILE
    with system_errors(ManifestError, file):
        write_text_file(file, "\n".join(rows) + "\n")
    print_status(f"{file}: {len(letters)} letters")
    rare = [f"{letter} (U+{ord(letter):04X})" for letter in letters if counts["train"][letter] < RARE]
    if rare:
        listed = ", ".join(rare[:_NUM_LISTED]) + (" ..." if len(rare) > _NUM_LISTED else "")
        print_status(
            f"warning: {len(rare)} letters occur less than {RARE} times in train, too seldom to be learned or by "
            f"mistake: {listed}"
        )


def warn_of_slow_recordings(corpus: Corpus) -> None:
    """Warn if training would wait for compressed recordings to be read."""
    slow = [
        whole
        for whole in corpus.headers.values()
        if Path(whole.path).suffix.lower() in _SLOW_SUFFIXES.split() and whole.seconds > _SLOW_SECONDS
    ]
    if slow:
        print_status(
            f"warning: {len(slow)} long recordings such as {corpus.name(slow[0].path)} are in a format that is decoded "
            "from the start for every piece of them, and training will wait for that: UNPACK=1 decodes them once"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the manifests of a folder of recordings.")
    parser.add_argument("recordings", type=Path, help="a folder; its subfolders are searched too")
    parser.add_argument("folder", type=Path, help="where the manifests go")
    parser.add_argument("--labels", type=Path, help="a file or folder of labels; none; default: files beside")
    parser.add_argument("--tiers", default="", help="names of the tiers with what is said, with commas between")
    parser.add_argument("--language", help="of texts that state none, such as tr")
    parser.add_argument("--keep", type=Path, help="the folder of an earlier preparation whose dev and test are kept")
    parser.add_argument("--texts", choices=("normalized", "asis"), default="normalized", help="how texts are learned")
    arguments = parser.parse_args()
    with exit_on_error():
        prepare(
            arguments.recordings,
            arguments.folder,
            arguments.labels,
            arguments.keep,
            arguments.texts == "asis",
            arguments.language,
            [name.strip() for name in arguments.tiers.split(",") if name.strip()],
        )


if __name__ == "__main__":
    main()
