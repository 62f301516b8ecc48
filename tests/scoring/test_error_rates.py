import random
import unicodedata

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.scoring.error_rates import Confusion, ErrorCounts, normalize_for_scoring, score

WORDS = ["one", "two", "три", "four"]
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=8)


def test_planted_errors_give_the_known_rates() -> None:
    result = score(
        ["the cat sat on the mat", "hello world", "good morning"],
        ["the cat sit on mat", "hello there world", "good morning"],
    )
    # sat->sit, "the" lost, "there" added: 3 of 10 words.
    assert result.words == ErrorCounts(substitutions=1, deletions=1, insertions=1, reference_length=10)
    assert result.wer == pytest.approx(0.3)
    # One letter replaced, "the " (4 with its space) lost, " there" (6) added, of 22 + 11 + 12 characters.
    assert result.characters == ErrorCounts(1, 4, 6, 45)
    assert result.cer == pytest.approx(11 / 45)
    assert [utterance.words.total for utterance in result.utterances] == [2, 1, 0]
    assert result.word_matches == ((True, True, False, True, True), (True, False, True), (True, True))
    assert [matches.count(False) for matches in result.character_matches] == [1, 6, 0]
    assert result.word_counts[0] == ErrorCounts(1, 1, 0, 6)
    assert sum(counts.total for counts in result.character_counts) == 11


def test_rates_weigh_utterances_by_length_and_can_pass_one() -> None:
    assert score(["a b c d e f g h i", "j"], ["a b c d e f g h i", "x"]).wer == pytest.approx(0.1)
    assert score(["a"], ["x y z"]).wer == 3.0


def test_empty_references_count_insertions() -> None:
    result = score(["", "one two", "three"], ["noise here", "one two", ""])
    assert result.words == ErrorCounts(0, 1, 2, 3)
    assert result.utterances[0].words == ErrorCounts(0, 0, 2, 0)
    assert result.utterances[0].words.rate == 2.0
    assert score([""], [""]).wer == 0.0
    assert score([], []).wer == 0.0


def test_texts_are_normalised_on_both_sides() -> None:
    decomposed = unicodedata.normalize("NFD", "Ёлка Café")
    result = score([f"  {decomposed}\n"], ["ёлка\tcafé"])
    assert result.words.total == result.characters.total == 0
    assert result.utterances[0].reference == "ёлка café"


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalize_for_scoring(normalize_for_scoring(text)) == normalize_for_scoring(text)


def test_confusions_are_counted_and_ranked() -> None:
    result = score(["five nine", "five", "go", "x"], ["nine nine", "nine", "go now", ""])
    assert result.word_confusions == (
        Confusion("substitution", "five", "nine", 2),
        Confusion("deletion", "x", "", 1),
        Confusion("insertion", "", "now", 1),
    )
    assert Confusion("substitution", "f", "n", 2) in result.character_confusions
    assert sum(confusion.count for confusion in result.character_confusions) == result.characters.total


def test_different_numbers_of_texts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"as many hypotheses as references \(2\), found 1"):
        score(["a", "b"], ["a"])


@given(SENTENCES, st.randoms())
def test_rates_are_jiwers(references: list[str], chance: random.Random) -> None:
    hypotheses = chance.sample(references, len(references))
    result = score(references, hypotheses)
    assert result.wer == pytest.approx(jiwer.wer(references, hypotheses))
    assert result.cer == pytest.approx(jiwer.cer(references, hypotheses))
    assert result.words.total == sum(confusion.count for confusion in result.word_confusions)
