"""Generators of random numbers that depend on a key alone."""

import numpy as np


def keyed_generator(*key: int) -> np.random.Generator:
    """A generator that depends on nothing but the key, such as (seed, epoch, utterance, purpose)."""
    # The length in front, because numpy fills short keys up with zeros: (1, 2) and (1, 2, 0) would be the same.
    return np.random.default_rng((len(key), *key))
