"""N-gram models from texts, by interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1998)."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import pairwise

from speechssl.data.units import split_words
from speechssl.decode.ngram import END, NEVER, START, UNKNOWN, Ngram, NgramModel, find_mark
from speechssl.errors import LanguageModelError

_FALLBACK = (0.5, 1.0, 1.5)  # of a text so small that its counts of counts give no discounts


def estimate_ngrams(texts: Iterable[str], order: int, prune: Sequence[int] = (0,)) -> NgramModel:
    """Estimate a model from texts.

    ``prune`` has a number for each length, the last for all longer n-grams too: those that were seen no more often are
    dropped, and what they had goes to shorter ones. As for KenLM's ``lmplz``, the first is 0 and none is less than the
    one before it, so that the n-grams within those that are kept are kept as well.

    What is taken from the counts of once, twice and more often seen n-grams goes to shorter ones, which count by the
    number of different words before them. As in KenLM's ``lmplz``, words that were never seen get the share of
    ``<unk>`` in a uniform distribution over it and all words. Each text is a sentence.
    """
    assert prune[0] == 0 and list(prune) == sorted(prune), prune  # noqa: PT018
    counts = _count(texts, order)
    if not counts[0]:
        raise LanguageModelError("expected texts to estimate a language model from, found no word")
    adjusted = [_adjusted(of_length, longer) for of_length, longer in pairwise(counts)]
    adjusted.append(counts[-1])
    # <s> begins sentences and is never said.
    adjusted[0] = {ngram: count for ngram, count in adjusted[0].items() if ngram != (START,)}
    uniform = 1 / (len(adjusted[0]) + 1)
    shorter: dict[Ngram, float] = defaultdict(lambda: uniform)
    probabilities: dict[Ngram, float] = {}
    back_offs: dict[Ngram, float] = {}
    for length, (of_length, seen) in enumerate(zip(adjusted, counts, strict=True), start=1):
        most = prune[min(length, len(prune)) - 1]
        dropped = {ngram for ngram, count in seen.items() if count <= most}
        found, weights = _interpolate(of_length, shorter, dropped)
        probabilities |= found
        back_offs |= weights
        shorter = found
    probabilities[(UNKNOWN,)] = back_offs.pop(()) * uniform
    entries = {
        ngram: (math.log(probability), math.log(back_offs.get(ngram, 1.0)))
        for ngram, probability in probabilities.items()
    }
    entries[(START,)] = (NEVER, math.log(back_offs.get((START,), 1.0)))
    return NgramModel(order, entries)


def _count(texts: Iterable[str], order: int) -> list[dict[Ngram, int]]:
    """Count each n-gram of 1, 2, ... words."""
    counts: list[Counter[Ngram]] = [Counter() for _ in range(order)]
    for text in texts:
        words = split_words(text)
        if mark := find_mark(words):
            raise LanguageModelError(f"expected texts without {mark}, found {text!r:.80}")
        if words:
            sentence = [START, *words, END]
            for length, counter in enumerate(counts, start=1):
                counter.update(_ngrams(sentence, length))
    return [dict(counter) for counter in counts]


def _ngrams(sentence: Sequence[str], length: int) -> Iterator[Ngram]:
    return zip(*(sentence[first:] for first in range(length)), strict=False)


def _adjusted(counts: dict[Ngram, int], longer: dict[Ngram, int]) -> dict[Ngram, int]:
    """Count the different words before each n-gram; one that begins a sentence keeps its count."""
    distinct = Counter(ngram[1:] for ngram in longer)
    return {ngram: count if ngram[0] == START else distinct[ngram] for ngram, count in counts.items()}


def _interpolate(
    counts: dict[Ngram, int], shorter: dict[Ngram, float], dropped: Set[Ngram]
) -> tuple[dict[Ngram, float], dict[Ngram, float]]:
    """Return the probabilities of n-grams of one length, and the weight of the shorter ones after each context."""
    discounts = _discounts(Counter(counts.values()))
    totals: Counter[Ngram] = Counter()
    taken: defaultdict[Ngram, float] = defaultdict(float)
    for ngram, count in counts.items():
        totals[ngram[:-1]] += count
        taken[ngram[:-1]] += count if ngram in dropped else discounts[min(count, 3) - 1]
    weights = {context: taken[context] / total for context, total in totals.items()}
    probabilities = {
        ngram: (count - discounts[min(count, 3) - 1]) / totals[ngram[:-1]] + weights[ngram[:-1]] * shorter[ngram[1:]]
        for ngram, count in counts.items()
        if ngram not in dropped
    }
    return probabilities, weights


def _discounts(counts_of_counts: Counter[int]) -> tuple[float, float, float]:
    """Return what to take from the counts of n-grams seen once, twice and more often."""
    once, twice, thrice, four_times = (counts_of_counts[count] for count in (1, 2, 3, 4))
    if not once * twice * thrice:
        return _FALLBACK
    share = once / (once + 2 * twice)
    discounts = (
        1 - 2 * share * twice / once,
        2 - 3 * share * thrice / twice,
        3 - 4 * share * four_times / thrice,
    )
    is_usable = all(0 < discount < count for count, discount in enumerate(discounts, start=1))
    return discounts if is_usable else _FALLBACK
