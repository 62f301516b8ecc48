import numpy as np
import pytest

from speechssl.scoring.bootstrap import Interval, bootstrap_interval, compare_runs
from speechssl.scoring.error_rates import ErrorCounts


def random_counts(num_utterances: int, seed: int = 0) -> list[ErrorCounts]:
    generator = np.random.default_rng(seed)
    return [ErrorCounts(int(generator.binomial(10, 0.3)), 0, 0, 10) for _ in range(num_utterances)]


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_one_utterance_has_no_interval() -> None:
    one, two = (bootstrap_interval(random_counts(number)).show() for number in (1, 2))
    assert one.replace(".", "").isdigit()
    assert two.endswith("]")


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
    monkeypatch.setattr("speechssl.scoring.bootstrap._DRAWS_AT_ONCE", 70)
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
    result = compare_runs([counts], [counts])
    assert result.ratio == Interval(1.0, 1.0, 1.0)
    assert result.difference == Interval(0.0, 0.0, 0.0)


def test_pairing_finds_a_small_gain_that_separate_intervals_hide() -> None:
    first = random_counts(200)
    second = [
        ErrorCounts(max(count.substitutions - (index % 5 == 0), 0), 0, 0, 10) for index, count in enumerate(first)
    ]
    result = compare_runs([first], [second])
    assert result.difference.high < 0
    assert result.ratio.low < result.ratio.value < result.ratio.high < 1
    assert result.difference.value == pytest.approx(
        sum(count.total for count in second) / 2000 - sum(count.total for count in first) / 2000
    )
    assert bootstrap_interval(first).low < bootstrap_interval(second).high
    # Seen from the other side it is a loss of the same size.
    assert compare_runs([second], [first]).difference.value == pytest.approx(-result.difference.value)


def test_noise_between_equal_systems_is_not_significant() -> None:
    result = compare_runs([random_counts(200, seed=1)], [random_counts(200, seed=2)])
    assert result.ratio.low < 1 < result.ratio.high


def test_comparison_with_a_perfect_system() -> None:
    perfect, flawed = [ErrorCounts(0, 0, 0, 4)] * 5, [ErrorCounts(1, 0, 0, 4)] * 5
    assert compare_runs([perfect], [perfect]).ratio.value == 1.0
    assert compare_runs([flawed], [perfect]).ratio == Interval(0.0, 0.0, 0.0)
    assert compare_runs([perfect], [flawed]).ratio.value == float("inf")


def test_systems_on_different_utterances_are_refused() -> None:
    with pytest.raises(ValueError, match="same utterances in the same order"):
        compare_runs([[ErrorCounts(0, 0, 0, 4)]], [[ErrorCounts(0, 0, 0, 5)]])


class TestRuns:
    """Two methods, each run with several seeds."""

    def test_seeds_that_differ_widen_the_interval(self) -> None:
        same = [random_counts(60)] * 3
        differing = [[ErrorCounts(errors, 0, 0, 10)] * 60 for errors in (1, 3, 5)]
        alike = [[ErrorCounts(3, 0, 0, 10)] * 60] * 3
        assert compare_runs(same, alike).difference.value == compare_runs(same, differing).difference.value
        assert width(compare_runs(same, differing).difference) > 2 * width(compare_runs(same, alike).difference)

    def test_utterances_are_drawn_for_both_alike(self) -> None:
        hard = [ErrorCounts(number, 0, 0, 10) for number in range(10)]
        twice = [ErrorCounts(2 * number, 0, 0, 10) for number in range(10)]
        ratio = compare_runs([hard, hard], [twice, twice]).ratio
        assert (ratio.value, ratio.low, ratio.high) == (2, 2, 2)

    def test_other_utterances_or_none_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same utterances"):
            compare_runs([random_counts(5)], [random_counts(6)])
        with pytest.raises(ValueError, match="at least one run"):
            compare_runs([], [random_counts(6)])
