"""Measures that show a collapse: how many codes are chosen, and how different vectors are."""

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_perplexity(shares: Tensor) -> Tensor:
    """(G, V) distributions to the mean of their perplexities: to how many equally frequent entries they are equal."""
    entropies: Tensor = torch.special.entr(shares).sum(dim=1)
    return entropies.exp().mean()


def spread_and_rank(vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Measure how different vectors are, at length 1: two values that show a collapse.

    Args:
        vectors: (N, E).
        weights: (N,) 1 for vectors that count and 0 for others.

    Returns:
        The standard deviation over vectors, the mean of all dimensions, times the root of E: 1 when they point
        everywhere alike, 0 when all are equal. And the sum of the eigenvalues of their covariance, squared, over the
        sum of the squares: E when they point everywhere alike, 1 on a line.
    """
    vectors = F.normalize(vectors, dim=1, eps=1e-8)
    shares = (weights / weights.sum().clamp(min=1))[:, None]
    centered = vectors - (vectors * shares).sum(dim=0)
    covariance = centered.T @ (centered * shares)
    variances = covariance.diagonal()
    spread = variances.clamp(min=0).sqrt().mean() * vectors.shape[1] ** 0.5
    return spread, variances.sum().square() / covariance.square().sum().clamp(min=1e-30)
