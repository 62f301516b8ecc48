"""Word lattices: what a beam search found as a graph of words in time, with the probability of each."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from speechssl.data.units import Units
from speechssl.decode.forced_alignment import align_frames
from speechssl.decode.greedy import join_repeats
from speechssl.decode.ngram import Ngram
from speechssl.decode.prefix import IMPOSSIBLE, Prefix, log_add
from speechssl.decode.prefix_scorer import PrefixScorer


class Node(NamedTuple):
    """A border between two words: the frame where the next one begins, and what else counts of the words before it."""

    frame: int
    context: Ngram = ()  # of the language model
    is_parted: bool = False  # by a delimiter, without which only some units begin a word
    symbol: int = -1  # what the frame before shows, if the next word could begin with it: it would be the same symbol


@dataclass(frozen=True)
class Arc:
    """A word between two nodes, which are numbered. Scores are in nats."""

    source: int
    target: int
    text: str  # nothing where no word was heard in the whole stretch
    start: float  # of its first unit; the source lies before it only at the beginning
    end: float  # of its last unit
    acoustic: float  # the log probability of what the path shows between the nodes, by the CTC model
    lm: float  # what the word adds to `Hypothesis.lm`
    posterior: float = 0.0  # the probability that the text goes here, among all texts of the lattice

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types, times to the millisecond."""
        values = asdict(self)
        digits = {"start": 3, "end": 3, "acoustic": 4, "lm": 4, "posterior": 6}
        return values | {name: round(values[name], num) for name, num in digits.items()}


@dataclass(frozen=True)
class Lattice:
    """A graph without cycles whose paths from the first node to the last are texts.

    Two texts share a node where their next words begin at the same frame and what came before counts the same for
    what follows. So the scores on a path add up to those of its text, in a way that it is likely to lie in time (the
    search adds all ways up). Posteriors come from the scores by the forward-backward algorithm, as those of
    Wessel et al. (2001, https://doi.org/10.1109/89.906002), whose scaling of the scores `Calibration` does afterwards.

    Times are numbers of frames as a search leaves it, and seconds in a transcript.
    """

    times: tuple[float, ...]  # of the nodes, in their order; the first and the last are the borders of the stretch
    arcs: tuple[Arc, ...]  # sorted by source, target and text

    def mapped(self, convert: Callable[[float], float]) -> "Lattice":
        """Return the same with other times."""
        arcs = (replace(arc, start=convert(arc.start), end=convert(arc.end)) for arc in self.arcs)
        return Lattice(tuple(map(convert, self.times)), tuple(arcs))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types, times to the millisecond."""
        nodes = [round(time, 3) for time in self.times]
        return {"nodes": nodes, "arcs": [arc.to_dict() for arc in self.arcs]}


Word = tuple[Node, Node, str]
Span = tuple[int, int, float, float]
"""The first frame of a word, the one after its last, its acoustic and its language model score."""


def make_lattice(
    texts: Iterable[Prefix], scorer: PrefixScorer, units: Units, log_probs: Tensor, first_frame: int
) -> tuple[Lattice, list[float]]:
    """Join texts of a search into a lattice.

    Args:
        texts: With their log probabilities as the search left them, the best first.
        scorer, units, log_probs: Of the search; the log probabilities of the stretch are (S, V).
        first_frame: The number of the first row.

    Returns:
        The lattice, and for each symbol of the best text the posterior probability of the word it belongs to.
    """
    found: dict[Word, Span] = {}
    of_best: list[Word] | None = None
    for prefix in texts:
        spelled, of_symbols = _spell(prefix, scorer, units, log_probs, first_frame)
        found = spelled | found  # where a text differs only in delimiters at its ends, the better one counts
        of_best = of_symbols if of_best is None else of_best
    assert of_best is not None
    nodes = sorted({node for source, target, _ in found for node in (source, target)})
    numbers = {node: number for number, node in enumerate(nodes)}
    words = sorted(found, key=lambda word: (numbers[word[0]], numbers[word[1]], word[2]))
    arcs = [Arc(numbers[source], numbers[target], text, *found[source, target, text]) for source, target, text in words]
    arcs = _with_posteriors(arcs, len(nodes))
    arc_of = dict(zip(words, arcs, strict=True))
    return Lattice(tuple(node.frame for node in nodes), tuple(arcs)), [
        _word_posterior(arc_of[word], arcs) for word in of_best
    ]


def _word_posterior(word: Arc, arcs: Iterable[Arc]) -> float:
    """Return the probability of a word in its place, whatever stands around it and wherever exactly it begins."""
    same = (arc.posterior for arc in arcs if arc.text == word.text and arc.start < word.end and word.start < arc.end)
    return min(sum(same), 1.0)


def _spell(
    prefix: Prefix, scorer: PrefixScorer, units: Units, log_probs: Tensor, first_frame: int
) -> tuple[dict[Word, Span], list[Word]]:
    """Return the words of a text where they are said, and that of each of its symbols."""
    prefixes, stop_frame = prefix.chain(), first_frame + len(log_probs)
    labels = [one.symbol for one in prefixes]
    scores, symbols = align_frames(log_probs, labels, units.blank_id)
    tokens = join_repeats(scores, symbols, units.blank_id, first_frame)
    # What comes before the first word belongs to it, and what comes after a word to that.
    firsts = [0, *[number for number, begins in enumerate(scorer.word_starts(labels)) if begins][1:]]
    words: dict[Word, Span] = {}
    of_symbols: list[Word] = []
    source, before = Node(first_frame), 0.0
    for first, stop in pairwise([*firsts, len(labels)]):
        if stop < len(labels):
            context, after = scorer.with_word(prefixes[stop - 1])
            frame = tokens[stop].first_frame
            shown = symbols[frame - first_frame - 1]
            is_parted = labels[stop - 1] == units.delimiter_id
            target = Node(frame, context, is_parted, -1 if is_parted or shown == units.blank_id else shown)
        else:
            target, after = Node(stop_frame), scorer.finished_score(prefix)
        frames = scores[source.frame - first_frame : target.frame - first_frame]
        said = [token for token in tokens[first:stop] if token.symbol_id != units.delimiter_id]
        word = source, target, units.decode(labels[first:stop])
        begin, end = (said[0].first_frame, said[-1].last_frame + 1) if said else (first_frame, stop_frame)
        words[word] = begin, end, sum(frames), after - before
        of_symbols += [word] * (stop - first)
        source, before = target, after
    return words, of_symbols


def _with_posteriors(arcs: Sequence[Arc], num_nodes: int) -> list[Arc]:
    forward = [0.0, *[IMPOSSIBLE] * (num_nodes - 1)]
    backward = forward[::-1]
    for arc in arcs:  # whatever leads to its source came before
        forward[arc.target] = log_add(forward[arc.target], forward[arc.source] + arc.acoustic + arc.lm)
    for arc in reversed(arcs):
        backward[arc.source] = log_add(backward[arc.source], backward[arc.target] + arc.acoustic + arc.lm)
    through = (forward[arc.source] + arc.acoustic + arc.lm + backward[arc.target] for arc in arcs)
    return [
        replace(arc, posterior=math.exp(min(score - forward[-1], 0.0)))
        for arc, score in zip(arcs, through, strict=True)
    ]
