"""A loss as one number, for tests of what a batch gives."""

from collections import defaultdict

from torch import Tensor

from speechssl.objective.objective import Losses, weighted_sum


def loss_sum(losses: Losses) -> Tensor:
    """Return the weighted sum of the terms, divided by nothing."""
    return weighted_sum(losses, defaultdict(lambda: 1.0))
