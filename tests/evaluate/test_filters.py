from dataclasses import replace

import pytest

from speechssl.data.manifest import Utterance
from speechssl.evaluate import filters
from speechssl.evaluate.filters import Filters, PseudoLabel, letters_per_second, most_repeats, usual_speeds

GOOD = PseudoLabel("one two", "one two", -0.5, 10.0, "one two", 0.0, 0.0)
STRICT = Filters(1.0, -1.0, 0.2, 0.3, 2, (5.0, 15.0))
WRONG = {
    filters.NOTHING: {"text": ""},
    filters.LOW: {"score": -1.1},
    filters.VIEWS: {"view_difference": 0.21},
    filters.GREEDY: {"lm_difference": 0.31},
    filters.REPEATS: {"text": "no " * 6},
    filters.FEW: {"letters_per_second": 4.9},
    filters.MANY: {"letters_per_second": 15.1},
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_label_that_is_wrong_in_one_way_is_left_out_for_it(reason: str) -> None:
    wrong = replace(GOOD, **WRONG[reason])
    assert STRICT.left_out([GOOD, wrong, GOOD]) == [[], [reason], []]
    unbounded = Filters(1.0, None, 9.0, 9.0, 99, None)
    assert unbounded.left_out([wrong]) == [[reason] if reason == filters.NOTHING else []]


def test_bounds_are_allowed_and_reasons_are_all_given() -> None:
    edge = PseudoLabel("no " * 5, "", -1.0, 5.0, "", 0.2, 0.3)
    assert most_repeats(edge.text.split()) == 2
    assert STRICT.left_out([edge]) == [[]]
    worst = PseudoLabel("no " * 6, "", -9.0, 16.0, "", 1.0, 1.0)
    assert STRICT.left_out([worst]) == [
        [filters.LOW, filters.VIEWS, filters.GREEDY, filters.REPEATS, filters.MANY],
    ]


def test_the_best_share_is_of_what_the_other_filters_leave() -> None:
    scores = [-0.9, -0.1, -0.5, -0.3]
    wrong = [replace(GOOD, text="", score=0.0)] * 6  # which would be the best
    labels = [*wrong, *(replace(GOOD, score=score) for score in scores)]
    found = replace(STRICT, keep=0.5).left_out(labels)
    assert found == [[filters.NOTHING]] * 6 + [[filters.NOT_BEST], [], [filters.NOT_BEST], []]
    assert replace(STRICT, keep=0.0).left_out([GOOD]) == [[filters.NOT_BEST]]


def test_repeats_are_of_four_words_in_a_row() -> None:
    assert most_repeats([]) == most_repeats(["a"] * 3) == 0
    assert most_repeats(["a"] * 7) == 4
    assert most_repeats([*"abcdabcdabcd"]) == 3
    assert most_repeats([*"abcabcxabc"]) == 1


def test_usual_speeds_leave_a_share_on_either_side() -> None:
    labeled = [Utterance("a.wav", 16_000, text="a " * number) for number in range(1, 102)]
    assert usual_speeds(labeled, 0.0) == (1.0, 101.0)
    assert usual_speeds([*labeled, Utterance("b.wav", 1)], 0.1) == pytest.approx((11.0, 91.0))
    assert letters_per_second("ab c", 1.5) == 2.0
