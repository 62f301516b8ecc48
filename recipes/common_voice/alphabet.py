"""Choose the letters of a language: the characters of its training texts, except those too rare to learn."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from unicodedata import name

from speechssl.data.corpus import Preparation
from speechssl.data.manifest import Utterance
from speechssl.errors import ManifestError, system_errors
from speechssl.files import write_text_file
from speechssl.terminal import print_status


def default_min_count(num_texts: int) -> int:
    """Return how many texts must have a character: 10, fewer if train is small, one below 500 texts."""
    return min(10, 1 + num_texts // 500)


def choose_letters(texts: Sequence[str], min_count: int) -> frozenset[str]:
    """Return the characters of the texts that have no rare one."""
    common = {character for character, count in count_texts(texts).items() if count >= min_count}
    return frozenset(letter for text in texts if characters(text) <= common for letter in characters(text))


def count_texts(texts: Iterable[str]) -> Counter[str]:
    """Count the texts that have each character."""
    return Counter(character for text in texts for character in characters(text))


def characters(text: str) -> set[str]:
    """Return the distinct characters of a text, without spaces."""
    return set(text) - {" "}


def write_alphabet(
    file: Path, letters: frozenset[str], splits: Mapping[str, Sequence[Utterance]], min_count: int
) -> None:
    """Write every character with the number of texts that have it, and say how many are letters and how many rare.

    Raises:
        ManifestError: the file cannot be written.
    """
    counts = {split: count_texts(utterance.text or "" for utterance in part) for split, part in splits.items()}
    order = sorted(set().union(*counts.values()), key=lambda character: (-counts["train"][character], character))
    lines = ["\t".join(["character", "code_point", "name", *counts, "use"])]
    for character in order:
        use = "letter" if character in letters else "rare" if counts["train"][character] else "unseen"
        cells = (
            character,
            f"U+{ord(character):04X}",
            name(character, "-"),
            *(count[character] for count in counts.values()),
        )
        lines.append("\t".join(map(str, (*cells, use))))
    with system_errors(ManifestError, file):
        write_text_file(file, "".join(f"{line}\n" for line in lines))
    num_rare = len(counts["train"].keys() - letters)
    rarity = f" (in fewer than {min_count} texts of train, or beside such alone)" if num_rare else ""
    print_status(f"{file}: {len(letters)} letters, rare characters: {num_rare}{rarity}")


def within_alphabet(
    reason: str, utterances: Sequence[Utterance], letters: frozenset[str], preparation: Preparation
) -> list[Utterance]:
    """Return the utterances written in letters alone, and drop each of the others with its characters."""
    kept = []
    for utterance in utterances:
        others = sorted(characters(utterance.text or "") - letters)
        if others:
            listed = ", ".join(map(describe, others))
            preparation.drop(reason, f"{listed} in {Path(utterance.path).name}: {utterance.text}")
        else:
            kept.append(utterance)
    return kept


def report_unwritable(file: Path, test: Sequence[Utterance], letters: frozenset[str]) -> None:
    """Say how much of test no model of this alphabet can get right; it stays, so that scores compare with others."""
    others = Counter(character for utterance in test for character in characters(utterance.text or "") - letters)
    if others:
        number = sum(not characters(utterance.text or "") <= letters for utterance in test)
        order = sorted(others, key=lambda character: (-others[character], character))
        listed = ", ".join(f"{describe(character)} in {others[character]}" for character in order[:5])
        more = " ..." if len(others) > 5 else ""
        print_status(
            f"{file}: {number} of {len(test)} utterances have characters outside the alphabet, "
            f"which count as errors: {listed}{more}"
        )


def describe(character: str) -> str:
    """Return a character with its code point and name."""
    return f"{character!r} (U+{ord(character):04X}, {name(character, '-')})"
