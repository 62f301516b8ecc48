"""From the confidence of a word to the probability that it is right: two numbers, fitted on texts that are known."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field

from speechssl.config import Config

_MARGIN = 1e-5  # of confidences to 0 and 1, which have no finite log odds
_NUM_STEPS = 100

Array = npt.NDArray[np.float64]


class Calibration(Config):
    """A straight line in the log odds (Platt, 1999): ``slope`` x log odds of the confidence + ``offset``.

    The confidence of a word is what the model says of a letter, the geometric mean; a word needs all of its letters. So
    it is too high for a model that spells badly, and a temperature, which is a slope alone, cannot mend that: it leaves
    0.5 where it is. No slope is below 0, so the order of confidences stays.
    """

    slope: float = Field(ge=0)
    offset: float
    fitted_on: str = ""  # in a few words

    def __call__(self, confidence: float) -> float:
        """Return the calibrated confidence, from 0 to 1."""
        odds = self.slope * _log_odds(confidence) + self.offset
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0

    def describe(self) -> str:
        """Return it in a few words."""
        return f"slope {self.slope:.2f}, offset {self.offset:+.2f}"


def fit_calibration(confidences: Sequence[float], is_right: Sequence[bool], fitted_on: str = "") -> Calibration:
    """Find the line under which the words are likeliest to be right and wrong as they are.

    Instead of 1 and 0 the targets are (R + 1) / (R + 2) and 1 / (W + 2) for R right and W wrong words, as Platt has
    them, so that a few words, or only right ones, make no confidence certain.

    Args:
        confidences: Of at least one word, not calibrated.
        is_right: Whether each is right.
        fitted_on: Which words these are.
    """
    odds = np.array([_log_odds(confidence) for confidence in confidences])
    right = np.array(is_right, np.bool_)
    targets = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    slope, offset = _newton(np.stack([odds, np.ones_like(odds)], axis=1), targets)
    if slope < 0:  # the loss is convex, so that the best line without a lower one is flat
        slope, [offset] = 0.0, _newton(np.ones((len(odds), 1)), targets)
    return Calibration(slope=float(slope), offset=float(offset), fitted_on=fitted_on)


def _newton(inputs: Array, targets: Array) -> Array:
    """Return the weights (K,) of inputs (N, K) under which the logistic of their sum is nearest to the targets (N,)."""
    weights = np.zeros(inputs.shape[1])
    loss = _loss(inputs @ weights, targets)
    for _ in range(_NUM_STEPS):
        found = 1 / (1 + np.exp(-inputs @ weights))
        curvature = (inputs.T * (found * (1 - found))) @ inputs
        # Words of one confidence say nothing of the slope.
        step, *_ = np.linalg.lstsq(curvature, inputs.T @ (found - targets), rcond=1e-10)
        while (lower := _loss(inputs @ (weights - step), targets)) > loss:
            step = step / 2
        weights = weights - step
        if loss - lower < 1e-12 * loss:
            break
        loss = lower
    return weights


def _loss(sums: Array, targets: Array) -> float:
    return float((np.logaddexp(0, sums) - targets * sums).sum())


def _log_odds(confidence: float) -> float:
    bounded = min(max(confidence, _MARGIN), 1 - _MARGIN)
    return math.log(bounded / (1 - bounded))
