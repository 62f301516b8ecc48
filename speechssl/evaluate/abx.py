"""An ABX test on letters: is X, a letter, nearer to A, the same letter elsewhere, than to B, another one?

The test of Schatz et al. (2013, https://doi.org/10.21437/Interspeech.2013-441), with letters that a fine-tuned model
aligned in the place of phonemes, and whatever stands beside them. All three are of one speaker. A letter is the mean of
its frames, and distances are angles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speechssl.rng import keyed_generator

Indices = npt.NDArray[np.int64]

_PURPOSE = 80  # of the generator
_TRIES = 8  # draws for a triple wanted


@dataclass(frozen=True)
class Triples:
    """Numbers of tokens, (N,) each: ``a`` and ``x`` are of one letter, ``b`` of another; ``pair`` counts both.

    ``x`` stands in another utterance than ``a`` and ``b``: neither shares its surroundings.
    """

    a: Indices
    b: Indices
    x: Indices
    pair: Indices


def draw_triples(
    symbols: Sequence[int],
    speakers: Sequence[str | int],
    utterances: Sequence[int],
    num_triples: int,
    min_tokens: int,
    seed: int,
) -> Triples:
    """Draw triples for each speaker and each ordered pair of letters that are frequent enough.

    Args:
        symbols, speakers, utterances: Of each token; in which utterance it stands.
        num_triples: For each pair; some have fewer, where most draws stand in one utterance.
        min_tokens: Of a letter of a speaker.
        seed: Of the draws.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for number, key in enumerate(zip(map(str, speakers), symbols, strict=True)):
        groups.setdefault(key, []).append(number)
    tokens = {key: np.array(group) for key, group in sorted(groups.items()) if len(group) >= min_tokens}
    of_utterance = np.array(utterances)
    randomness = keyed_generator(seed, _PURPOSE)
    drawn: list[tuple[Indices, Indices, Indices]] = []
    for speaker, symbol in tokens:
        for other_speaker, other in tokens:
            if other_speaker != speaker or other == symbol:
                continue
            same, different = tokens[speaker, symbol], tokens[speaker, other]
            a, x = randomness.choice(same, (2, num_triples * _TRIES))
            b = randomness.choice(different, num_triples * _TRIES)
            apart = (of_utterance[a] != of_utterance[x]) & (of_utterance[b] != of_utterance[x])
            chosen = np.flatnonzero(apart)[:num_triples]
            if len(chosen):
                drawn.append((a[chosen], b[chosen], x[chosen]))
    pair = np.repeat(np.arange(len(drawn)), [len(a) for a, _, _ in drawn])
    a, b, x = (np.concatenate([triple[part] for triple in drawn] or [np.empty(0, np.int64)]) for part in range(3))
    return Triples(a, b, x, pair)


def abx_error(features: npt.NDArray[np.float32], triples: Triples) -> float:
    """Return the share of triples in which X is nearer to B, a tie being half an error: the mean over the pairs.

    Args:
        features: (M, D), of all tokens; each channel is standardized first.
        triples: At least one.
    """
    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-5)
    units = standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-8)
    to_a, to_b = ((units[triples.x] * units[other]).sum(axis=1) for other in (triples.a, triples.b))
    errors = (to_a < to_b) + 0.5 * (to_a == to_b)
    by_pair = np.bincount(triples.pair, errors) / np.bincount(triples.pair)
    return float(by_pair.mean())
