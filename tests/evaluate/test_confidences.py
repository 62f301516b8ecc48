"""Which words are right, by the alignment that counts the errors."""

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from speechssl.decode.words import Word, join_words
from speechssl.evaluate.confidences import rate_words
from speechssl.scoring.error_rates import normalize_for_scoring, score


def rate(reference: str, *texts: str, words_only: bool = False) -> list[tuple[float, bool]]:
    """Rate words, of which "+x" is joined to the one before, with confidences 0.01, 0.02, ..."""
    words = [
        Word(text.removeprefix("+"), 0, 1, number / 100, text.startswith("+"))
        for number, text in enumerate(texts, start=1)
    ]
    found = score([reference], [join_words(words)], words_only=words_only)
    normalize = partial(normalize_for_scoring, words_only=words_only)
    rated = rate_words(words, normalize, found.word_matches[0], found.character_matches[0])
    return [(word.confidence, is_right) for word, is_right in rated]


def right(reference: str, *texts: str, words_only: bool = False) -> list[bool]:
    return [is_right for _, is_right in rate(reference, *texts, words_only=words_only)]


def test_a_word_is_right_where_the_alignment_has_it() -> None:
    assert rate("please call the number", "please", "cal", "number") == [(0.01, True), (0.02, False), (0.03, True)]
    assert right("the end", "end", "the") == [False, True], "both are said, but not in this order"
    assert right("", "noise") == [False]
    assert right("silence") == []


def test_case_and_what_is_no_word_do_not_count() -> None:
    assert right("K2 is high", "k2", "IS", "hi") == [True, True, False]
    assert rate("it's you", "It’s", "—", "you!", words_only=True) == [(0.01, True), (0.03, True)]
    assert right("it's you", "It’s", "—", "you!") == [False, False, False]


def test_a_hot_phrase_that_is_shown_as_two_words_needs_both() -> None:
    assert right("in new york now", "in", "New York", "now") == [True, True, True]
    assert right("in new port now", "in", "New York", "now") == [True, False, True]


def test_letters_of_scripts_without_spaces_are_rated_one_by_one() -> None:
    assert right("你好世界 ok", "你", "+好", "+是", "+界", "ok") == [True, True, False, True, True]
    assert right("ok 你好", "no", "你", "+他") == [False, True, False]


@given(st.lists(st.lists(st.sampled_from(["a", "b", "İ", "+c", "-", "x y"]), max_size=6), max_size=3))
def test_right_words_are_the_hits_of_the_word_errors(texts: list[list[str]]) -> None:
    for heard in texts:
        plain = [text.removeprefix("+") for text in heard if text != "x y"]
        found = score(["a b c a"], [" ".join(plain)])
        counts = found.words
        assert sum(right("a b c a", *plain)) == 4 - counts.substitutions - counts.deletions
