"""Expected calibration errors against hand counts, and intervals against confidences that are probabilities."""

import numpy as np
import pytest

from speechssl.scoring.reliability import Bin, measure_reliability


def test_the_error_is_the_mean_over_words_of_what_their_bins_are_off() -> None:
    # Three words near 0.9 of which one is right, one of 0.1 that is right: off by 0.9 - 1/3 and by 0.9.
    found = measure_reliability([[0.9, 0.95], [], [0.85, 0.1]], [[1, 0], [], [0, 1]])
    assert found is not None
    assert found.bins == (Bin(1, 0.1, 1.0), Bin(1, 0.85, 0.0), Bin(2, (0.9 + 0.95) / 2, 0.5))
    assert found.error.value == pytest.approx((1 * 0.9 + 1 * 0.85 + 2 * 0.425) / 4)
    assert found.error.low <= found.error.value


def test_certain_words_are_in_the_last_bin_and_no_words_have_no_error() -> None:
    found = measure_reliability([[1.0, 0.0]], [[True, False]])
    assert found is not None
    assert found.bins == (Bin(1, 0.0, 0.0), Bin(1, 1.0, 1.0))
    assert (found.error.low, found.error.value, found.error.high) == (0.0, 0.0, 0.0)
    assert measure_reliability([[], []], [[], []]) is None
    assert measure_reliability([], []) is None


def test_right_words_rank_above_wrong_ones_in_so_many_pairs() -> None:
    found = measure_reliability([[0.9, 0.4, 0.4], [], [0.2, 0.7]], [[1, 1, 0], [], [0, 0.5]])
    assert found is not None
    assert found.auroc == pytest.approx((2 + 1.5) / 4), "0.9 beats both wrong ones, 0.4 one of them and ties with one"
    assert found.squared_error == pytest.approx((0.1**2 + 0.6**2 + 0.4**2 + 0.2**2 + 0.2**2) / 5)
    for right in (0, 1):
        alike = measure_reliability([[0.9, 0.1]], [[right, right]])
        assert alike is not None
        assert alike.auroc is None


def test_the_interval_does_not_blame_confidences_for_chance() -> None:
    """The quantiles of the resamples lie above the true value, which is 0, in every one of these sets."""
    generator = np.random.default_rng(0)
    values, highs, lows = [], [], []
    for _ in range(20):
        confidences = generator.beta(1.5, 1.5, (150, 4))
        found = measure_reliability(confidences.tolist(), (generator.random((150, 4)) < confidences).tolist())
        assert found is not None
        values.append(found.error.value)
        lows.append(found.error.low)
        highs.append(found.error.high)
    assert np.mean(values) > 0.02
    assert np.mean(lows) < 0.01
    assert max(highs) < 0.1


def test_an_interval_covers_a_large_error_and_is_wider_over_speakers() -> None:
    generator = np.random.default_rng(0)
    shares = np.repeat(generator.beta(1, 1, 10), 20)
    right = (generator.random((200, 5)) < shares[:, None]).astype(float).tolist()
    speakers = [str(index // 20) for index in range(200)]
    alone, together = (measure_reliability([[0.9] * 5] * 200, right, clusters) for clusters in (None, speakers))
    assert alone is not None
    assert together is not None
    assert alone.error.value == together.error.value == pytest.approx(0.9 - np.mean(right))
    assert alone.error.low < alone.error.value < alone.error.high
    assert together.error.high - together.error.low > 2 * (alone.error.high - alone.error.low)
