"""Parts of a labeled set, drawn the same way everywhere."""

import hashlib
from collections.abc import Sequence

from speechssl.data.manifest import Utterance


def random_key(seed: str, name: str) -> str:
    """Return a key that puts names in a random order, which depends on the seed and the names alone."""
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).hexdigest()


def label_subset(utterances: Sequence[Utterance], keys: Sequence[str], minutes: float) -> list[Utterance]:
    """Choose so many minutes: first utterances that have every letter between them, then as the keys draw them.

    A smaller subset is a part of a larger one with the same keys (a `random_key` each). The last utterance may exceed
    the minutes. The chosen ones come in the order given, all of them if there is not so much.
    """
    drawn = sorted(range(len(utterances)), key=lambda number: keys[number])
    letters = {letter for utterance in utterances for letter in utterance.text or ""}
    order = {next(n for n in drawn if letter in (utterances[n].text or "")): None for letter in sorted(letters)}
    order |= dict.fromkeys(drawn)
    chosen, seconds = set(), 0.0
    for number in order:
        if seconds >= minutes * 60:
            break
        chosen.add(number)
        seconds += utterances[number].seconds
    return [utterances[number] for number in sorted(chosen)]
