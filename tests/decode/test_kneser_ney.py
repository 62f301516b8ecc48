import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.decode.kneser_ney import estimate_ngrams
from speechssl.errors import LanguageModelError

SENTENCES = st.lists(st.text("abcd ", max_size=12), min_size=1, max_size=30).filter(
    lambda texts: "".join(texts).strip()
)


@given(texts=SENTENCES, order=st.integers(1, 4), prune=st.lists(st.integers(0, 3), max_size=3).map(sorted))
def test_probabilities_sum_to_one_after_any_words(texts: list[str], order: int, prune: list[int]) -> None:
    model = estimate_ngrams(texts, order, (0, *prune))
    words = [*model.words, "</s>", "<unk>"]
    for context in product(("<s>", "unheard", *sorted(model.words)[:2]), repeat=order - 1):
        assert sum(math.exp(model.score(context, word)) for word in words) == pytest.approx(1)


def test_counts_and_discounts_by_hand() -> None:
    model = estimate_ngrams(["a b", "a c", "a b"], 2)
    # So few counts give no discounts of their own: 0.5, 1 and 1.5 are taken from counts of 1, 2 and more. Bigrams:
    # <s> a 3, a b 2, a c 1, b </s> 2, c </s> 1. Different words before: a 1, b 1, c 1, </s> 2, of 5; of these 0.5
    # is taken thrice and 1 once, and five words share it.
    unseen = (3 * 0.5 + 1) / 5 / 5
    unigrams = {"a": 0.5 / 5 + unseen, "b": 0.5 / 5 + unseen, "</s>": 1 / 5 + unseen, "<unk>": unseen}
    for word, probability in unigrams.items():
        assert math.exp(model.score((), word)) == pytest.approx(probability)
    after_a = (1 + 0.5) / 3  # taken from a b and a c
    assert math.exp(model.score(("a",), "b")) == pytest.approx((2 - 1) / 3 + after_a * unigrams["b"])
    assert math.exp(model.score(("a",), "</s>")) == pytest.approx(after_a * unigrams["</s>"])
    assert math.exp(model.score(("<s>",), "a")) == pytest.approx((3 - 1.5) / 3 + 1.5 / 3 * unigrams["a"])


def test_discounts_come_from_the_counts_of_counts() -> None:
    # Unigrams seen once 8 times, twice 4, three times 2, four times once; </s> 23 times.
    texts = [*"abcdefgh", *"ijkl" * 2, *"mn" * 3, *"o" * 4]
    model = estimate_ngrams(texts, 1)
    share = 8 / (8 + 2 * 4)
    discounts = (1 - 2 * share * 4 / 8, 2 - 3 * share * 2 / 4, 3 - 4 * share * 1 / 2)
    assert discounts == (0.5, 1.25, 2.0)
    total = 8 + 8 + 6 + 4 + 26
    unseen = (8 * 0.5 + 4 * 1.25 + 4 * 2.0) / total / 17
    for word, count in (("a", 1), ("i", 2), ("m", 3), ("o", 4), ("</s>", 26)):
        expected = (count - discounts[min(count, 3) - 1]) / total + unseen
        assert math.exp(model.score((), word)) == pytest.approx(expected)


def test_a_word_that_follows_a_single_other_is_unlikely_elsewhere() -> None:
    texts = ["san francisco"] * 5 + ["a tea", "b tea", "c tea"]
    model = estimate_ngrams(texts, 2)
    assert model.score(("san",), "francisco") > model.score(("san",), "tea")
    assert model.score(("unheard",), "francisco") < model.score(("unheard",), "tea")


def test_rare_ngrams_are_dropped_and_leave_their_share_to_shorter_ones() -> None:
    texts = ["a b", "a c", "a b", "d b c"]
    whole, pruned = estimate_ngrams(texts, 3), estimate_ngrams(texts, 3, (0, 1))
    dropped = {"a c", "d b", "b c", "<s> d", "a c </s>", "<s> a c", "<s> d b", "d b c", "b c </s>"}
    assert whole.entries.keys() - pruned.entries.keys() == {tuple(text.split()) for text in dropped}
    assert ("a", "b") in pruned.entries  # said twice, after a single word: the former decides
    pruned = estimate_ngrams(texts, 2, (0, 1))
    # a b 2, a c 1: b keeps 2 - 1, which leaves what is taken from it and all of a c.
    after_a, b = (1 + 1) / 3, math.exp(pruned.score((), "b"))
    assert math.exp(pruned.score(("a",), "b")) == pytest.approx((2 - 1) / 3 + after_a * b)
    assert math.exp(pruned.score(("a",), "c")) == pytest.approx(after_a * math.exp(pruned.score((), "c")))
    assert pruned.score(("d",), "b") == pytest.approx(pruned.score((), "b"))  # nothing after d is left
    assert {ngram for ngram in estimate_ngrams(texts, 3, (0, 0, 1)).entries if len(ngram) < 3} == {
        ngram for ngram in whole.entries if len(ngram) < 3
    }


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_texts_without_a_word_are_refused(texts: list[str]) -> None:
    with pytest.raises(LanguageModelError, match="found no word"):
        estimate_ngrams(texts, 2)


def test_marks_are_no_words() -> None:
    with pytest.raises(LanguageModelError, match="expected texts without </s>, found 'a </s> b'"):
        estimate_ngrams(["a </s> b"], 2)
