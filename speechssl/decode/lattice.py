"""Word lattices: what a beam search found as a graph of words in time, with the probability of each."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from speechssl.decode.ngram import Ngram


class WordSpan(NamedTuple):
    """A word on the best path of a text, and what follows from it."""

    text: str
    first_frame: int  # of its first unit
    stop_frame: int  # after its last unit
    next_frame: int  # where the next word begins, or the stretch ends
    context: Ngram  # of the language model, after the word
    acoustic: float  # in nats: of the frames from where it begins, or the stretch does, to where the next one begins
    lm: float  # the word's share of `Hypothesis.lm`


class Node(NamedTuple):
    """A border between two words in a language model's context."""

    frame: int
    context: Ngram


@dataclass(frozen=True)
class Arc:
    """A word between two nodes, which are numbered in the order of time."""

    source: int
    target: int
    text: str  # nothing only where no word was heard in the whole stretch
    first_frame: int  # of its first unit; the source lies before it only at the beginning
    stop_frame: int  # after its last unit
    acoustic: float  # in nats, as the other
    lm: float
    posterior: float = 0.0  # the probability that the path goes here, among all from the first node to the last

    @property
    def score(self) -> float:
        """Return what it adds to the score of a path."""
        return self.acoustic + self.lm


@dataclass(frozen=True)
class Lattice:
    """A graph without cycles whose paths from the first node to the last are texts.

    Two texts share a node where their next words begin at the same frame and the language model knows the same of what
    came before, so that each score holds on every path: the sum over the arcs is that of the path. A path stands for
    one way a text can lie in time, the likeliest one (the search itself adds all of them up). Posteriors come from the
    scores by the forward-backward algorithm (Wessel et al., 2001, https://doi.org/10.1109/89.906002).
    """

    frames: tuple[int, ...]  # of the nodes, the first and the last being the borders of the stretch
    arcs: tuple[Arc, ...]  # sorted by their sources


def make_lattice(texts: Iterable[Sequence[WordSpan]], first_frame: int, stop_frame: int) -> Lattice:
    """Join texts, of a word span each at least, into a lattice.

    Args:
        texts: Each with a span for every word; a text without a word has one of the text "".
        first_frame, stop_frame: The borders of the stretch.
    """
    found: dict[tuple[Node, Node, str], WordSpan] = {}
    first, last = Node(first_frame, ()), Node(stop_frame, ())
    for spans in texts:
        nodes = [first, *(Node(span.next_frame, span.context) for span in spans[:-1]), last]
        for (source, target), span in zip(pairwise(nodes), spans, strict=True):
            key = source, target, span.text
            if key not in found or found[key].acoustic < span.acoustic:  # delimiters at the ends make two of one
                found[key] = span
    between = {node for source, target, _ in found for node in (source, target)} - {first, last}
    order = [first, *sorted(between), last]
    numbers = {node: number for number, node in enumerate(order)}
    arcs = sorted(
        (
            Arc(numbers[source], numbers[target], text, span.first_frame, span.stop_frame, span.acoustic, span.lm)
            for (source, target, text), span in found.items()
        ),
        key=lambda arc: (arc.source, arc.target, arc.text),
    )
    return Lattice(tuple(node.frame for node in order), _with_posteriors(arcs, len(order)))


def _with_posteriors(arcs: Sequence[Arc], num_nodes: int) -> tuple[Arc, ...]:
    forward, backward = [0.0] + [-math.inf] * (num_nodes - 1), [-math.inf] * (num_nodes - 1) + [0.0]
    for arc in arcs:  # whatever leads to its source came before
        forward[arc.target] = log_add(forward[arc.target], forward[arc.source] + arc.score)
    for arc in reversed(arcs):
        backward[arc.source] = log_add(backward[arc.source], backward[arc.target] + arc.score)
    through = (forward[arc.source] + arc.score + backward[arc.target] for arc in arcs)
    return tuple(
        replace(arc, posterior=math.exp(min(score - forward[-1], 0.0)))
        for arc, score in zip(arcs, through, strict=True)
    )
