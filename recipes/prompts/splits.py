"""Group the clips that belong together and choose the part of each group, from the texts and a seed alone."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from rapidfuzz import fuzz

from speechssl.data.subsets import random_key

SEED = "asterisk prompts, splits 1"
SIMILARITY = 85.0  # of 100, by letters: above it two texts of one language are near-duplicates
MIN_CONTAINED_WORDS = 5  # a text of so many words inside a longer one makes the two near-duplicates

TEST_SECONDS = 5.2 * 60
DEV_SECONDS = 2.25 * 60
MAX_HELD_OUT_GROUP_SECONDS = 30.0  # of English; a larger group would be most of a split by itself
LENGTH_STRATA = (1.0, 2.0, 4.0, 8.0)  # seconds of a group's mean English clip; each keeps its share in test and dev
OTHER_SHARES = (0.15, 0.07)  # of the groups without English: in test, in dev


class Groupable(Protocol):
    """Declare what grouping looks at."""

    @property
    def language(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def comparable(self) -> str: ...


class Splittable(Protocol):
    """Declare what splitting looks at."""

    @property
    def language(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def text(self) -> str | None: ...
    @property
    def is_train_only(self) -> bool: ...


def group_names(clips: Sequence[Groupable]) -> list[str]:
    """Name the group of each clip: one prompt in all languages, and near-duplicate texts of one language.

    Args:
        clips: `comparable` is the text to compare, "" if there is none.

    Returns:
        For each clip the first prompt id of its group, in alphabetical order.
    """
    parents: dict[str, str] = {}

    def root(prompt: str) -> str:
        while parents.setdefault(prompt, prompt) != prompt:
            parents[prompt] = parents[parents[prompt]]
            prompt = parents[prompt]
        return prompt

    def join(first: str, second: str) -> None:
        low, high = sorted((root(first), root(second)))
        parents[high] = low

    texts: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # language -> text -> prompts
    for clip in clips:
        root(clip.prompt)
        if clip.comparable:
            texts[clip.language][clip.comparable].add(clip.prompt)
    for prompts_of in texts.values():
        for prompts in prompts_of.values():
            first, *others = sorted(prompts)
            for other in others:
                join(first, other)
        for first_text, second_text in near_duplicates(sorted(prompts_of)):
            join(min(prompts_of[first_text]), min(prompts_of[second_text]))
    return [root(clip.prompt) for clip in clips]


def near_duplicates(texts: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Yield the pairs of distinct texts that differ by a few letters, or of which one is a long part of the other."""
    for index, first in enumerate(texts):
        for second in texts[index + 1 :]:
            short, long = sorted((first, second), key=len)
            is_contained = len(short.split()) >= MIN_CONTAINED_WORDS and f" {short} " in f" {long} "
            if is_contained or fuzz.ratio(first, second) >= SIMILARITY:
                yield first, second


def split_groups(groups: Mapping[str, Sequence[Splittable]]) -> dict[str, str]:
    """Send each group to train, dev or test.

    English decides: groups are drawn in the order of a hash of seed and name, stratum by stratum of clip length, until
    test and dev hold the stratum's share of their seconds. A group stays in train if one of its clips
    must, or if it is too large. Groups without labeled English are drawn by their share.

    Args:
        groups: the clips of each group by its name.

    Returns:
        The part of each group by its name.
    """
    parts = {}
    strata: dict[int, list[str]] = defaultdict(list)
    seconds = {}
    for name in sorted(groups, key=draw):
        english = [clip.seconds for clip in groups[name] if clip.language == "en" and clip.text]
        seconds[name] = sum(english)
        if any(clip.is_train_only for clip in groups[name]) or seconds[name] > MAX_HELD_OUT_GROUP_SECONDS:
            parts[name] = "train"
        elif english:
            mean = seconds[name] / len(english)
            strata[sum(mean >= limit for limit in LENGTH_STRATA)].append(name)
        else:
            parts[name] = _drawn_part(name)
    total = sum(seconds[name] for names in strata.values() for name in names)
    for names in strata.values():
        share = sum(seconds[name] for name in names) / total
        room = {"test": TEST_SECONDS * share, "dev": DEV_SECONDS * share}
        for name in names:
            # A group may overshoot the room by half of itself, so that the sum over strata meets the aim.
            part = next((part for part, left in room.items() if left >= seconds[name] / 2), "train")
            parts[name] = part
            if part in room:
                room[part] -= seconds[name]
    return parts


def draw(name: str) -> str:
    """Return a key that puts names in a random order, the same everywhere."""
    return random_key(SEED, name)


def _drawn_part(name: str) -> str:
    position = int(draw(name)[:8], 16) / 16**8
    test, dev = OTHER_SHARES
    return "test" if position < test else "dev" if position < test + dev else "train"
