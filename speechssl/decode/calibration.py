"""From the confidence of a word to the probability that it is right: numbers fitted on texts that are known."""

import math
from collections.abc import Sequence
from itertools import combinations
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from pydantic import Field

from speechssl.config import Config

_MARGIN = 1e-5  # of confidences to 0 and 1, which have no finite log odds
_NUM_STEPS = 100

Array = npt.NDArray[np.float64]


class Calibration(Config):
    """A straight line in log odds (Platt, 1999): ``slope`` x those of the confidence + ``offset``.

    The confidence of a word is what the model says of a letter, the geometric mean; a word needs all of its letters. So
    it is too high for a model that spells badly, and a temperature, which is a slope alone, cannot mend that: it leaves
    0.5 where it is. Of a search with a language model, ``posterior_slope`` x the log odds of the word's posterior
    probability in the lattice is added: how the word does beside those that could stand there instead. No slope is
    below 0, so the order of confidences stays where nothing else differs.
    """

    slope: float = Field(ge=0)
    posterior_slope: float = Field(0.0, ge=0)
    offset: float
    fitted_on: str = ""  # in a few words

    def __call__(self, confidence: float, posterior: float | None = None) -> float:
        """Return the calibrated confidence, from 0 to 1."""
        odds = self.slope * _log_odds(confidence) + self.offset
        if posterior is not None:
            odds += self.posterior_slope * _log_odds(posterior)
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0

    def describe(self) -> str:
        """Return it in a few words."""
        of_posterior = f", of posteriors {self.posterior_slope:.2f}" if self.posterior_slope else ""
        return f"slope {self.slope:.2f}{of_posterior}, offset {self.offset:+.2f}"


def fit_calibration(
    confidences: Sequence[float],
    is_right: Sequence[bool],
    fitted_on: str = "",
    posteriors: Sequence[float] | None = None,
) -> Calibration:
    """Find the line under which the words are likeliest to be right and wrong as they are.

    Instead of 1 and 0 the targets are (R + 1) / (R + 2) and 1 / (W + 2) for R right and W wrong words, as Platt has
    them, so that a few words, or only right ones, make no confidence certain.

    Args:
        confidences: Of at least one word, not calibrated.
        is_right: Whether each is right.
        fitted_on: Which words these are.
        posteriors: Those of a search with a language model.
    """
    columns = [np.array([_log_odds(value) for value in values]) for values in (confidences, posteriors or [])]
    right = np.array(is_right, np.bool_)
    targets = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    # The loss is convex: where a slope would be below 0, the best line has it at 0 or another one.
    used = [number for number, column in enumerate(columns) if len(column)]
    fits = []
    for chosen in (subset for size in range(len(used) + 1) for subset in combinations(used, size)):
        inputs = np.stack([*(columns[number] for number in chosen), np.ones(len(right))], axis=1)
        weights = _newton(inputs, targets)
        if (weights[:-1] >= 0).all():
            slopes = dict(zip(chosen, weights[:-1].tolist(), strict=True))
            fits.append((_loss(inputs @ weights, targets), slopes, float(weights[-1])))
    _, slopes, offset = min(fits, key=itemgetter(0))
    return Calibration(slope=slopes.get(0, 0.0), posterior_slope=slopes.get(1, 0.0), offset=offset, fitted_on=fitted_on)


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
