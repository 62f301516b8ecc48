"""Which of the words that a model hears are right, by the alignments that scoring makes."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from speechssl.decode.words import Word, join_words


def rate_words(
    words: Sequence[Word],
    normalize: Callable[[str], str],
    word_matches: Sequence[bool],
    character_matches: Sequence[bool],
) -> list[tuple[Word, bool]]:
    """Return each word of an utterance, and whether it is right.

    A word is right if the alignment of words has the same one in the reference; where words are joined, in scripts
    without spaces, if that of characters has all of its characters. What is no word after normalization is left out.

    Args:
        words: Of the transcript.
        normalize: What was done with its text before it was scored.
        word_matches, character_matches: Of its normalized text, as `Score` has them.
    """
    starts = [position for position, word in enumerate(words) if not word.is_joined or position == 0]
    rated: list[tuple[Word, bool]] = []
    first_word = first_character = 0
    for start, stop in pairwise([*starts, len(words)]):
        group = words[start:stop]
        text = normalize(join_words(group))
        if not text:
            continue
        stop_word = first_word + len(text.split())
        parts = [normalize(word.text) for word in group]
        if len(group) > 1 and "".join(parts) == text:
            borders = accumulate(map(len, parts), initial=first_character)
            right = [all(character_matches[first:end]) for first, end in pairwise(borders)]
        else:
            right = [all(word_matches[first_word:stop_word])] * len(group)
        rated += zip(group, right, strict=True)
        first_word = stop_word
        first_character += len(text) + 1  # with the space behind it
    assert first_word == len(word_matches)
    return rated
