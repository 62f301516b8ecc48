"""Divide labeled utterances into those to train on and those held out to measure with."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechssl.data.manifest import Utterance, read_manifest
from speechssl.data.subsets import random_key
from speechssl.errors import ManifestError

SEED = "own_data"
MIN_RECORDINGS = 3  # one each for train, dev and test
SHARE, MIN_SECONDS, MAX_SHARE, MAX_SECONDS = 0.1, 60.0, 0.2, 3600.0  # of dev, and of test
_MOST = 1.25  # of what is wanted, as groups are taken whole
_MIN_TRAIN_SHARE = 0.5  # if whole voices are held out

Drop = Callable[[str, str], None]


@dataclass(frozen=True)
class Splits:
    """Hold labeled utterances by their use.

    Attributes:
        train, dev, test: The utterances, in the order given.
        voices: Who speaks in dev and test and nowhere in train; empty if voices are not kept apart.
        how: How they were told apart, for the user.
    """

    train: list[Utterance]
    dev: list[Utterance]
    test: list[Utterance]
    voices: frozenset[str]
    how: str


def held_out_seconds(total: float, share: float = SHARE, longest: float = MAX_SECONDS) -> float:
    """Return how much to hold out: a share, but at least a minute and never more than a fifth."""
    return min(max(share * total, MIN_SECONDS), MAX_SHARE * total, longest)


def draw_splits(utterances: Sequence[Utterance], name: Callable[[str], str]) -> Splits:
    """Hold out whole voices if there are enough, otherwise whole recordings; the same ones each time.

    Args:
        utterances: With texts.
        name: A recording's name, the same on every machine.

    Raises:
        ManifestError: there are fewer than three recordings.
    """
    recordings = [name(utterance.path) for utterance in utterances]
    if len(set(recordings)) < MIN_RECORDINGS:
        raise ManifestError(
            f"expected usable texts of {MIN_RECORDINGS} recordings or more (train, dev and test share none), "
            f"found {len(set(recordings))}: label some of another recording, or cut a long one into several files"
        )
    speakers = {utterance.speaker for utterance in utterances}
    if None not in speakers:
        drawn = _draw(utterances, _join_voices(utterances, recordings))
        if drawn is not None and _is_balanced(drawn):
            train, dev, test = drawn
            voices = frozenset(utterance.speaker for utterance in dev + test if utterance.speaker)
            how = f"split by speaker: none of {len(speakers)} is in two of train, dev and test"
            return Splits(train, dev, test, voices, how)
    train, dev, test = _draw(utterances, recordings) or ([], [], [])
    if None in speakers:
        why = "some texts have no speaker" if len(speakers) > 1 else "no speakers are given"
    else:
        why = f"{len(speakers)} speaker{'s are' if len(speakers) > 1 else ' is'} too few to hold some out"
    how = f"split by recording, as {why}: dev and test may have voices of train, which flatters the scores"
    return Splits(train, dev, test, frozenset(), how)


def keep_splits(utterances: Sequence[Utterance], folder: Path, drop: Drop) -> Splits:
    """Hold out the recordings that an earlier preparation held out, and the voices if it kept them apart.

    Args:
        utterances: With texts; those in other recordings are for training.
        folder: The earlier preparation's manifests.
        drop: Called with a reason and what, for new utterances of voices held out.

    Raises:
        ManifestError: the folder has no such manifests.
    """
    parts = {name: read_manifest(folder / f"{name}.tsv") for name in ("train", "dev", "test")}
    paths = {name: {Path(utterance.path).resolve() for utterance in part} for name, part in parts.items()}
    speakers = {name: {utterance.speaker for utterance in part} - {None} for name, part in parts.items()}
    held = (speakers["dev"] | speakers["test"]) if speakers["train"] else set()
    voices = frozenset(voice for voice in held if voice) if held.isdisjoint(speakers["train"]) else frozenset()
    chosen: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    for utterance in utterances:
        path = Path(utterance.path).resolve()
        split = next((name for name in ("dev", "test") if path in paths[name]), "train")
        if split == "train" and utterance.speaker in voices:
            drop("voice that is held out", f"{utterance.path}: {utterance.speaker}")
        else:
            chosen[split].append(utterance)
    return Splits(**chosen, voices=voices, how=f"dev and test as in {folder}, all else for training")


def choose(seconds: Mapping[str, float], target: float) -> set[str]:
    """Take groups in a random order until there is enough, and skip those that are far too long.

    Args:
        seconds: Of each group, by name.
        target: How many seconds to take.

    Returns:
        Their names; the shortest group if all are too long.
    """
    drawn = sorted(seconds, key=lambda name: random_key(SEED, name))
    chosen: set[str] = set()
    taken = 0.0
    for name in drawn:
        if taken < target and taken + seconds[name] <= _MOST * target:
            chosen.add(name)
            taken += seconds[name]
    return chosen or {min(drawn, key=lambda name: seconds[name])}


def _draw(
    utterances: Sequence[Utterance], groups: Sequence[str]
) -> tuple[list[Utterance], list[Utterance], list[Utterance]] | None:
    """Draw train, dev and test of whole groups, or return None if there are fewer than three."""
    seconds: dict[str, float] = defaultdict(float)
    for utterance, group in zip(utterances, groups, strict=True):
        seconds[group] += utterance.seconds
    if len(seconds) < MIN_RECORDINGS:
        return None
    target = held_out_seconds(sum(seconds.values()))
    test = choose(seconds, target)
    if len(seconds) - len(test) < 2:  # two tiny ones and a long one
        test = {min(test)}
    rest = {name: seconds[name] for name in seconds if name not in test}
    dev = choose(rest, target)
    pairs = list(zip(utterances, groups, strict=True))
    return (
        [utterance for utterance, group in pairs if group not in test | dev],
        [utterance for utterance, group in pairs if group in dev],
        [utterance for utterance, group in pairs if group in test],
    )


def _is_balanced(splits: tuple[list[Utterance], list[Utterance], list[Utterance]]) -> bool:
    train, dev, test = (sum(utterance.seconds for utterance in split) for split in splits)
    least = held_out_seconds(train + dev + test) / 2
    return train >= _MIN_TRAIN_SHARE * (train + dev + test) and dev >= least and test >= least


def _join_voices(utterances: Sequence[Utterance], recordings: Sequence[str]) -> list[str]:
    """Name the group of each utterance: utterances that share a speaker or a recording, directly or through others."""
    above: dict[tuple[str, str], tuple[str, str]] = {}

    def top(node: tuple[str, str]) -> tuple[str, str]:
        while above.setdefault(node, node) != node:
            above[node] = above[above[node]]
            node = above[node]
        return node

    voices = [("speaker", utterance.speaker or "") for utterance in utterances]
    for voice, recording in zip(voices, recordings, strict=True):
        one, two = sorted((top(voice), top(("recording", recording))))
        above[one] = two  # the last in order, so that the order of utterances does not matter
    return ["\t".join(top(voice)) for voice in voices]
