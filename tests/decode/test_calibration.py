"""A calibration is found again from words that were drawn by it, whatever else the words are like."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from speechssl.decode.calibration import Calibration, fit_calibration


def test_the_line_is_in_log_odds() -> None:
    found = Calibration(slope=2.0, offset=-1.0)
    assert found(0.5) == pytest.approx(1 / (1 + math.e))
    assert found(0.8) == pytest.approx(1 / (1 + math.exp(1 - 2 * math.log(4))))
    assert Calibration(slope=1.0, offset=0.0)(0.3) == pytest.approx(0.3)
    assert 0 <= Calibration(slope=90.0, offset=-30.0)(0.0) < found(0.0) < found(1.0) < 1.0
    with pytest.raises(ValidationError, match="slope"):
        Calibration(slope=-0.1, offset=0.0)


@pytest.mark.parametrize(("slope", "offset"), [(1.67, -3.06), (0.5, 0.2), (1.0, 0.0)])
def test_a_planted_calibration_is_found(slope: float, offset: float) -> None:
    generator = np.random.default_rng(0)
    confidences = generator.beta(3, 2, 20_000)
    planted = Calibration(slope=slope, offset=offset)
    right = generator.random(len(confidences)) < [planted(confidence) for confidence in confidences]
    found = fit_calibration(confidences.tolist(), right.tolist(), "planted")
    assert (found.slope, found.offset) == pytest.approx((slope, offset), abs=0.08)
    assert found.fitted_on == "planted"


def test_a_few_words_make_nothing_certain() -> None:
    assert fit_calibration([0.9] * 8, [True] * 8)(0.9) == pytest.approx(9 / 10)
    assert fit_calibration([0.9] * 3, [False] * 3)(0.9) == pytest.approx(1 / 5)
    parted = fit_calibration([0.2, 0.3, 0.8, 0.9], [False, False, True, True])
    assert 0.1 < parted(0.2) < parted(0.3) < 0.5 < parted(0.8) < parted(0.9) < 0.9
    assert 0 < fit_calibration([0.0, 1.0], [False, True])(1.0) < 1


def test_confidences_that_say_the_reverse_become_one_number() -> None:
    found = fit_calibration([0.1, 0.2, 0.8, 0.9, 0.9], [True, True, False, False, False])
    assert found.slope == 0
    assert found(0.1) == found(0.9) == pytest.approx((2 * 3 / 4 + 3 * 1 / 5) / 5)


def test_a_planted_share_of_posteriors_is_found() -> None:
    generator = np.random.default_rng(1)
    confidences, posteriors = generator.beta(3, 2, (2, 20_000))
    planted = Calibration(slope=0.8, posterior_slope=0.5, offset=-0.3)
    right = generator.random(20_000) < list(map(planted, confidences, posteriors))
    found = fit_calibration(confidences.tolist(), right.tolist(), posteriors=posteriors.tolist())
    assert (found.slope, found.posterior_slope, found.offset) == pytest.approx((0.8, 0.5, -0.3), abs=0.08)
    assert found(0.7, 0.9) > found(0.7, 0.2) > found(0.6, 0.2)
    assert found(0.7) == found(0.7, 0.5)  # whose log odds are 0


def test_a_posterior_that_says_the_reverse_counts_nothing() -> None:
    generator = np.random.default_rng(2)
    confidences, posteriors = generator.beta(3, 2, (2, 5_000))
    right = generator.random(5_000) < confidences * (1.2 - posteriors)
    found = fit_calibration(confidences.tolist(), right.tolist(), posteriors=posteriors.tolist())
    alone = fit_calibration(confidences.tolist(), right.tolist())
    assert found.posterior_slope == 0
    assert (found.slope, found.offset) == pytest.approx((alone.slope, alone.offset))
