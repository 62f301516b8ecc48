import random
import unicodedata

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechssl.scoring import Confusion, ErrorCounts, Interval, bootstrap_interval, compare, normalise_text, score

WORDS = ["one", "two", "три", "four"]
SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=8)


def random_counts(num_utterances: int, seed: int = 0) -> list[ErrorCounts]:
    generator = np.random.default_rng(seed)
    return [ErrorCounts(int(generator.binomial(10, 0.3)), 0, 0, 10) for _ in range(num_utterances)]


def width(interval: Interval) -> float:
    return interval.high - interval.low


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
    assert normalise_text(normalise_text(text)) == normalise_text(text)


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


def test_interval_contains_the_rate_and_narrows_with_more_utterances() -> None:
    few, many = random_counts(30), random_counts(3000)
    for counts in few, many:
        interval = bootstrap_interval(counts)
        assert interval.value == pytest.approx(sum(count.total for count in counts) / (10 * len(counts)))
        assert interval.low < interval.value < interval.high
    # A hundred times the utterances: a tenth of the width.
    assert width(bootstrap_interval(many)) == pytest.approx(width(bootstrap_interval(few)) / 10, rel=0.4)


def test_interval_has_the_width_that_the_normal_approximation_gives() -> None:
    counts = random_counts(400)
    errors = np.array([count.total for count in counts]) / 10
    expected = 2 * 1.96 * errors.std() / np.sqrt(len(errors))
    assert width(bootstrap_interval(counts)) == pytest.approx(expected, rel=0.1)


def test_interval_is_a_function_of_the_seed() -> None:
    counts = random_counts(50)
    assert bootstrap_interval(counts, seed=1) == bootstrap_interval(counts, seed=1)
    assert bootstrap_interval(counts, seed=1) != bootstrap_interval(counts, seed=2)


def test_interval_is_a_point_without_variation() -> None:
    assert bootstrap_interval([ErrorCounts(1, 0, 0, 4)] * 20) == Interval(0.25, 0.25, 0.25)
    assert bootstrap_interval([ErrorCounts(0, 0, 0, 0)]) == Interval(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least one utterance"):
        bootstrap_interval([])


def test_blocks_of_draws_cover_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speechssl.scoring._DRAWS_AT_ONCE", 70)
    interval = bootstrap_interval(random_counts(30), num_resamples=1001)
    assert interval.low < interval.value < interval.high
    assert width(interval) == pytest.approx(width(bootstrap_interval(random_counts(30))), rel=0.2)


def test_speakers_who_differ_widen_the_interval() -> None:
    counts = [ErrorCounts(errors, 0, 0, 10) for errors in (0, 1, 2, 5, 7, 9) for _ in range(50)]
    speakers = [str(index // 50) for index in range(300)]
    assert width(bootstrap_interval(counts, speakers)) > 3 * width(bootstrap_interval(counts))


def test_one_speaker_or_none_known_means_utterances() -> None:
    counts = random_counts(40)
    plain = bootstrap_interval(counts)
    assert bootstrap_interval(counts, ["anna"] * 40) == plain
    assert bootstrap_interval(counts, [None] * 40) == plain
    with pytest.raises(ValueError, match="a cluster for each of 40 utterances, found 2"):
        bootstrap_interval(counts, ["anna", "boris"])


def test_a_system_equals_itself() -> None:
    counts = random_counts(60)
    result = compare(counts, counts)
    assert result.ratio == Interval(1.0, 1.0, 1.0)
    assert result.difference == Interval(0.0, 0.0, 0.0)
    assert not result.is_significant


def test_pairing_finds_a_small_gain_that_separate_intervals_hide() -> None:
    first = random_counts(200)
    second = [
        ErrorCounts(max(count.substitutions - (index % 5 == 0), 0), 0, 0, 10) for index, count in enumerate(first)
    ]
    result = compare(first, second)
    assert result.is_significant
    assert result.ratio.low < result.ratio.value < result.ratio.high < 1
    assert result.difference.value == pytest.approx(
        sum(count.total for count in second) / 2000 - sum(count.total for count in first) / 2000
    )
    assert bootstrap_interval(first).low < bootstrap_interval(second).high
    # Seen from the other side it is a loss of the same size.
    assert compare(second, first).difference.value == pytest.approx(-result.difference.value)


def test_noise_between_equal_systems_is_not_significant() -> None:
    result = compare(random_counts(200, seed=1), random_counts(200, seed=2))
    assert not result.is_significant
    assert result.ratio.low < 1 < result.ratio.high


def test_comparison_with_a_perfect_system() -> None:
    perfect, flawed = [ErrorCounts(0, 0, 0, 4)] * 5, [ErrorCounts(1, 0, 0, 4)] * 5
    assert compare(perfect, perfect).ratio.value == 1.0
    assert compare(flawed, perfect).ratio == Interval(0.0, 0.0, 0.0)
    assert compare(perfect, flawed).ratio.value == float("inf")


def test_systems_on_different_utterances_are_refused() -> None:
    with pytest.raises(ValueError, match="same utterances in the same order"):
        compare([ErrorCounts(0, 0, 0, 4)], [ErrorCounts(0, 0, 0, 5)])
