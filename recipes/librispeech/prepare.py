"""Write the manifests of LibriSpeech: `python prepare.py CORPUS FOLDER [--librilight FOLDER]`."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from layout import FINETUNING, NUM_RECORDINGS, corpus_folder, stated_folder

from speechssl.data.corpus import Clip, Preparation
from speechssl.data.manifest import Utterance
from speechssl.data.subsets import random_key
from speechssl.errors import ManifestError
from speechssl.terminal import exit_on_error, print_status

PRETRAINING = ("pretrain_train", "pretrain_dev")
TRAIN = tuple(name for name in NUM_RECORDINGS if name.startswith("train"))
LABELLED = {
    "train_100h": ("train-clean-100",),
    "train_960h": TRAIN,
    "dev_clean": ("dev-clean",),
    "dev_other": ("dev-other",),
    "test_clean": ("test-clean",),
    "test_other": ("test-other",),
}
"""Manifests with texts, by the subsets they are made of."""

FOLDS = tuple(tuple(f"1h/{fold}/{kind}" for kind in ("clean", "other")) for fold in range(6))
ONE_HOUR = tuple(part for fold in FOLDS for part in fold)
LIMITED = {"train_10min": FOLDS[0], "train_1h": ONE_HOUR, "train_10h": (*ONE_HOUR, "9h/clean", "9h/other")}
"""Manifests with texts, by the parts of Libri-light's archive they are made of."""

HELD_OUT_SHARE = 0.01  # of the recordings for pretraining, as fairseq's recipe has it
SEED = "librispeech, held out of pretraining"
TEXT = re.compile("[a-z'][a-z' ]*")


def prepare(corpus: Path, librilight: Path | None, folder: Path) -> None:
    """Write the manifests that the subsets at hand allow.

    Args:
        corpus: The folder LibriSpeech, or the one above it.
        librilight: The folder librispeech_finetuning, or the one above it; None looks beside LibriSpeech.
        folder: Where they go.

    Raises:
        ManifestError: a folder is not what it should be, or a manifest would be without utterances.
    """
    root = find_corpus(corpus)
    limited_root = find_librilight(root, librilight)
    preparation = Preparation(folder)
    subsets = read_parts(root, tuple(NUM_RECORDINGS), preparation)
    for name, utterances in subsets.items():
        if len(utterances) != NUM_RECORDINGS[name]:
            print_status(f"{root / name}: {len(utterances)} recordings, {NUM_RECORDINGS[name]} were published")
    splits = dict(_pretraining(subsets)) | dict(_labeled(LABELLED, subsets))
    if not splits:
        raise ManifestError(
            f"{root}: expected recordings as SUBSET/SPEAKER/CHAPTER/*.flac, found none that can be read"
        )
    preparation.write(splits, root)
    limited: dict[str, list[Utterance]] = {}
    if limited_root is None:
        names = ", ".join(LIMITED)
        print_status(f"no {names}: LIBRILIGHT names no folder, and there is no {FINETUNING} beside {root}")
    else:
        parts = read_parts(limited_root, LIMITED["train_10h"], preparation)
        limited = dict(_labeled(LIMITED, parts))
        preparation.write(limited, limited_root)
    for name in {*PRETRAINING, *LABELLED, *LIMITED} - splits.keys() - limited.keys():
        (folder / f"{name}.tsv").unlink(missing_ok=True)  # of an earlier preparation
    preparation.report_dropped()


def find_corpus(stated: Path) -> Path:
    """The folder with the subsets.

    Raises:
        ManifestError: there is none of them.
    """
    root = corpus_folder(stated)
    if not any((root / name).is_dir() for name in NUM_RECORDINGS):
        expected = f"the folder LibriSpeech or the one above it, with some of {', '.join(NUM_RECORDINGS)}"
        raise ManifestError(f"CORPUS={stated}: expected {expected}, found {_contents(stated)}")
    return root


def find_librilight(root: Path, stated: Path | None) -> Path | None:
    """The folder with Libri-light's parts, or None if none is stated and none lies beside the corpus.

    Raises:
        ManifestError: the one stated has none of them.
    """
    if stated is None:
        # Where download.py puts them; then beside the folder that LibriSpeech may be a link to.
        places = (root.parent / FINETUNING, root.resolve().parent / FINETUNING)
        return next((beside for beside in places if beside.is_dir()), None)
    for folder in (stated / FINETUNING, stated):
        if any((folder / hours).is_dir() for hours in ("1h", "9h")):
            return folder
    expected = f"the folder {FINETUNING} or the one above it, with 1h and 9h"
    raise ManifestError(f"LIBRILIGHT={stated}: expected {expected}, found {_contents(stated)}")


def read_parts(root: Path, names: Sequence[str], preparation: Preparation) -> dict[str, list[Utterance]]:
    """The utterances of each part that has any, in the order of their paths, some perhaps without a text."""
    clips = {name: list(_read_part(root / name, preparation)) for name in names}
    utterances = preparation.utterances([clip for name in names for clip in clips[name]])
    by_path = {Path(utterance.path): utterance for utterance in utterances}
    found = {name: [by_path[clip.path] for clip in clips[name] if clip.path in by_path] for name in names}
    return {name: part for name, part in found.items() if part}


def _pretraining(subsets: Mapping[str, Sequence[Utterance]]) -> Iterator[tuple[str, list[Utterance]]]:
    """All speech for training but a share that a hash of each name draws, whatever else is there."""
    lacking = [name for name in TRAIN if name not in subsets]
    if len(lacking) == len(TRAIN):
        print_status(f"no pretrain_train, pretrain_dev: {', '.join(TRAIN)} are not there")
        return
    if lacking:
        print_status(
            f"pretrain_train, pretrain_dev: without {', '.join(lacking)}, which the published models have seen"
        )
    utterances = [replace(utterance, text=None) for name in TRAIN for utterance in subsets.get(name, ())]
    keys = [random_key(SEED, Path(utterance.path).stem) for utterance in utterances]
    limit = f"{round(HELD_OUT_SHARE * 16**8):08x}"
    lowest = min(keys)  # so that a part of the corpus has a dev set too
    drawn = [key < limit or key == lowest for key in keys]
    for name, is_held_out in zip(PRETRAINING, (False, True), strict=True):
        yield (
            name,
            [utterance for utterance, is_drawn in zip(utterances, drawn, strict=True) if is_drawn == is_held_out],
        )


def _labeled(
    manifests: Mapping[str, Sequence[str]], parts: Mapping[str, Sequence[Utterance]]
) -> Iterator[tuple[str, list[Utterance]]]:
    for manifest, names in manifests.items():
        lacking = [name for name in names if name not in parts]
        if lacking:
            print_status(f"no {manifest}: without recordings in {', '.join(lacking)}")
        else:
            yield manifest, [utterance for name in names for utterance in parts[name] if utterance.text]


def _read_part(folder: Path, preparation: Preparation) -> Iterator[Clip]:
    """The recordings in SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac, with the texts of SPEAKER-CHAPTER.trans.txt."""
    for chapter in sorted(folder.glob("*/*/")):
        speaker = chapter.parent.name
        prefix = f"{speaker}-{chapter.name}"
        recordings = sorted(path for path in chapter.glob("*.flac") if not path.name.startswith("."))
        texts = dict(_read_texts(chapter / f"{prefix}.trans.txt", prefix, preparation)) if recordings else {}
        for recording in recordings:
            text = texts.pop(recording.stem, None)
            if not re.fullmatch(rf"{re.escape(prefix)}-[0-9]+", recording.stem):
                preparation.drop("recording whose name does not fit its folder", str(recording))
                continue
            if text is None:
                preparation.drop("recording without a text: for pretraining at most", str(recording))
            yield Clip(recording, text, speaker, "en")
        for name in texts:
            preparation.drop("text without a recording", f"{chapter / name}.flac")


def _read_texts(file: Path, prefix: str, preparation: Preparation) -> Iterator[tuple[str, str]]:
    """The texts of a chapter by the names of their recordings, in lower case and otherwise as they are."""
    try:
        lines = file.read_bytes().decode("utf-8-sig", "replace").split("\n")
    except FileNotFoundError:
        preparation.drop("chapter without its file of texts", str(file))
        return
    except OSError as error:
        raise ManifestError(f"{file}: {error.strerror or error}") from None
    seen = set()
    for number, line in enumerate(lines, 1):
        name, _, rest = line.strip().partition(" ")
        text = " ".join(rest.lower().split())
        if not name:
            continue
        if not re.fullmatch(rf"{re.escape(prefix)}-[0-9]+", name):
            preparation.drop("line that names no recording of its chapter", f"{file}:{number}: {name!r}")
        elif not TEXT.fullmatch(text):
            preparation.drop("text of other than the letters a to z and apostrophes", f"{file}:{number}: {text!r}")
        elif name in seen:
            preparation.drop("second text of a recording", f"{file}:{number}: {text!r}")
        else:
            seen.add(name)
            yield name, text


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return "a file" if folder.exists() else "none"
    names = sorted(path.name for path in folder.iterdir())
    return f"a folder with {', '.join(names[:5]) or 'nothing'}{' ...' if len(names) > 5 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", help="the folder LibriSpeech, or the one above it")
    parser.add_argument("folder", type=Path, help="where the manifests go")
    parser.add_argument(
        "--librilight", help=f"the folder {FINETUNING}, or the one above it; default: beside LibriSpeech"
    )
    arguments = parser.parse_args()
    with exit_on_error():
        corpus = stated_folder("CORPUS", arguments.corpus, "the folder LibriSpeech or the one above it")
        librilight = Path(arguments.librilight) if arguments.librilight else None
        prepare(corpus, librilight, arguments.folder)


if __name__ == "__main__":
    main()
