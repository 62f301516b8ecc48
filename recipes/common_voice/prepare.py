"""Write the manifests of a language of Common Voice: `python prepare.py CORPUS FOLDER [--min-count N]`."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from alphabet import (
    choose_letters,
    count_texts,
    default_min_count,
    report_unwritable,
    within_alphabet,
    write_alphabet,
)
from lists import SPLITS, UNLABELLED, Row, disjoint_splits, find_corpus, for_pretraining, read_list, short_names

from speechssl.data.check import BASE_GEOMETRY
from speechssl.data.corpus import Clip, Preparation
from speechssl.data.manifest import Utterance
from speechssl.data.normalize import has_digits, normalize_labels
from speechssl.data.subsets import label_subset, random_key
from speechssl.data.units import Letters, num_frames_needed
from speechssl.errors import ConfigError
from speechssl.terminal import exit_on_error, print_status

SUBSET_MINUTES = {"train_10min": 10.0, "train_1h": 60.0}
SEED = "common_voice"


def prepare(stated: str, folder: Path, min_count: int | None) -> None:
    """Write the manifests of a language, its alphabet and what was dropped.

    Args:
        stated: The language's folder.
        folder: Where they go.
        min_count: A character in fewer texts of train is rare; None chooses by the size of train.

    Raises:
        ManifestError: the corpus is not what it should be, or a manifest would be empty.
        ConfigError: PyAV is missing.
    """
    corpus = find_corpus(stated)
    if find_spec("av") is None:
        advice = "whose clips do not state their length: pip install 'speechssl[av]'"
        raise ConfigError(f"CORPUS={stated}: expected PyAV to read Common Voice, {advice}; found none")
    preparation = Preparation(folder)
    lists = {name: read_list(corpus / f"{name}.tsv", preparation) for name in (*SPLITS, *UNLABELLED[1:], "invalidated")}
    splits = disjoint_splits(lists, preparation)
    unlabeled = for_pretraining(lists, preparation)
    clips = {row.path: row for rows in (*splits.values(), unlabeled) for row in rows}
    speakers = short_names({row.speaker for rows in lists.values() for row in rows})
    found = {
        Path(utterance.path): utterance
        for utterance in preparation.utterances(
            [Clip(path, speaker=speakers[row.speaker], language=row.language) for path, row in clips.items()]
        )
    }
    trainable = long_enough(found, preparation)
    test = with_texts("test", splits["test"], found, preparation)
    dev = fitting("dev", with_texts("dev", splits["dev"], trainable, preparation), preparation)
    train = fitting("train", with_texts("train", splits["train"], trainable, preparation), preparation)
    train = without_digits(train, preparation)
    if min_count is None:
        min_count = default_min_count(len(train))
    letters = choose_letters([utterance.text or "" for utterance in train], min_count)
    write_alphabet(folder / "alphabet.tsv", letters, {"train": train, "dev": dev, "test": test}, min_count)
    train = within_alphabet("train: rare character", train, letters, preparation)
    dev = within_alphabet("dev: character outside the alphabet", dev, letters, preparation)
    report_unwritable(folder / "test.tsv", test, letters)
    manifests = {
        "pretrain_train": [trainable[row.path] for row in unlabeled if row.path in trainable],
        "pretrain_dev": [trainable[row.path] for row in splits["dev"] if row.path in trainable],
        "train": train,
        "dev": dev,
        "test": test,
    }
    preparation.write(manifests | label_subsets(folder, train), corpus)
    preparation.report_dropped()


def long_enough(found: Mapping[Path, Utterance], preparation: Preparation) -> dict[Path, Utterance]:
    """Return the recordings that fill a frame; no model trains on less."""
    kept = {}
    for path, utterance in found.items():
        if utterance.num_output_samples >= BASE_GEOMETRY.receptive_field_samples:
            kept[path] = utterance
        else:
            preparation.drop("recording shorter than a frame (test keeps it)", f"{path.name}: {utterance.seconds:g} s")
    return kept


def with_texts(
    split: str, rows: Sequence[Row], found: Mapping[Path, Utterance], preparation: Preparation
) -> list[Utterance]:
    """Return the split's utterances with their texts; one without a text can neither be learned from nor scored."""
    utterances = []
    for row in rows:
        if row.path in found:
            text = normalize_labels(row.sentence, row.language)
            if text:
                utterances.append(replace(found[row.path], text=text))
            else:
                preparation.drop(f"{split}: no text", f"{row.path.name}: {row.sentence!r}")
    return utterances


def fitting(split: str, utterances: Sequence[Utterance], preparation: Preparation) -> list[Utterance]:
    """Return those whose frames can hold their letters; the others are cut off, and CTC learns nothing from them."""
    kept = []
    for utterance in utterances:
        text = utterance.text or ""
        needed = num_frames_needed(Letters.from_texts([text]).encode(text))
        frames = BASE_GEOMETRY.num_frames(utterance.num_output_samples)
        if needed <= frames:
            kept.append(utterance)
        else:
            what = f"{Path(utterance.path).name}: expected {needed} frames or more, found {frames}: {text}"
            preparation.drop(f"{split}: text too long for its recording", what)
    return kept


def without_digits(train: Sequence[Utterance], preparation: Preparation) -> list[Utterance]:
    """Return those without digits: nobody knows how digits were read."""
    kept = []
    for utterance in train:
        if has_digits(utterance.text or ""):
            preparation.drop("train: digits", f"{Path(utterance.path).name}: {utterance.text}")
        else:
            kept.append(utterance)
    return kept


def label_subsets(folder: Path, train: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """Return the label subsets that train is long enough for, each a part of the next."""
    letters = count_texts(utterance.text or "" for utterance in train).keys()
    keys = [random_key(SEED, Path(utterance.path).name) for utterance in train]
    subsets = {}
    for name, minutes in SUBSET_MINUTES.items():
        file = folder / f"{name}.tsv"
        chosen = label_subset(train, keys, minutes)
        if sum(utterance.seconds for utterance in chosen) < minutes * 60:
            file.unlink(missing_ok=True)  # of an earlier preparation
            print_status(f"{file}: not written, train has less")
            continue
        subsets[name] = chosen
        lacking = letters - count_texts(utterance.text or "" for utterance in chosen).keys()
        if lacking:
            print_status(f"{file}: {len(lacking)} of {len(letters)} letters do not fit into {minutes:g} minutes")
    return subsets


def at_least_one(value: str) -> int:
    """Parse a count of the command line.

    Raises:
        ConfigError: this is no such count.
    """
    if not (value.isascii() and value.isdigit() and int(value)):
        raise ConfigError(f"--min-count: expected a whole number of at least 1, found {value!r}")
    return int(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", help="the language's folder")
    parser.add_argument("folder", type=Path, help="where the manifests go")
    parser.add_argument(
        "--min-count",
        type=at_least_one,
        help="a character in fewer texts of train is rare (default: 10, fewer if small)",
    )
    with exit_on_error():
        arguments = parser.parse_args()
        prepare(arguments.corpus, arguments.folder, arguments.min_count)


if __name__ == "__main__":
    main()
