"""What every objective returns."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """A loss as a sum and what it is a sum over, so that parts of a batch add up to the whole.

    Attributes:
        sum: () the differentiable sum.
        count: What to divide by: hidden frames, utterances.
        parts: () detached sums to report, each a mean when divided by ``count``.
    """

    sum: Tensor
    count: int
    parts: Mapping[str, Tensor]
