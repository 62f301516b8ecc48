"""The beginnings of texts that a beam search keeps."""

import math
from collections.abc import Set

from speechssl.decode.lexicon import Beginning
from speechssl.decode.ngram import Ngram
from speechssl.decode.spotting import Spot

IMPOSSIBLE = -math.inf


class Prefix:
    """The beginning of a text, a node in the tree of all that are kept: its last symbol, and what is known so far.

    ``beginning`` is of the word under way, ``context`` the words before it that count, ``score`` that of complete
    words, ``rank`` the same with a guess at the word under way, ``complete`` context and score after it, once they
    were needed. ``children``, with one more symbol, are kept or lead to one that is. ``spot`` is the hot phrase that
    its last symbol, a delimiter, ends.

    ``blank``, ``repeat`` and ``total`` are log probabilities of its paths up to the present frame: of those that end in
    a blank, of those that do not, and of all.
    """

    __slots__ = (
        *("beginning", "blank", "children", "complete", "context", "parent", "rank", "repeat", "score", "spot"),
        *("symbol", "total"),
    )

    def __init__(
        self, parent: "Prefix | None", symbol: int, beginning: Beginning, context: Ngram, score: float
    ) -> None:
        self.parent, self.symbol, self.beginning, self.context, self.score = parent, symbol, beginning, context, score
        self.rank = score + beginning.ahead
        self.complete: tuple[Ngram, float] | None = None
        self.children: dict[int, Prefix] = {}
        self.spot: Spot | None = None
        self.blank = self.repeat = self.total = IMPOSSIBLE

    def chain(self) -> list["Prefix"]:
        """Return the prefixes that it grew from, from the one of its first symbol to itself."""
        found = []
        prefix = self
        while prefix.parent is not None:
            found.append(prefix)
            prefix = prefix.parent
        return found[::-1]

    def labels(self) -> list[int]:
        """Return its symbols, from the first on."""
        return [prefix.symbol for prefix in self.chain()]

    def spots(self, delimiter_id: int | None) -> list[Spot | None]:
        """Return which hot phrase each symbol is a letter of, from the first on."""
        spots: list[Spot | None] = []
        spot, num_symbols = None, 0
        prefix = self
        while prefix.parent is not None:
            spots.append(spot if num_symbols and prefix.symbol != delimiter_id else None)
            num_symbols -= num_symbols > 0
            if prefix.spot is not None and not num_symbols:
                spot, num_symbols = prefix.spot, len(prefix.spot.phrase.labels)
            prefix = prefix.parent
        return spots[::-1]

    def drop(self, kept: Set["Prefix"]) -> None:
        """Forget it unless it is kept, and those before it that lead nowhere else."""
        prefix = self
        while prefix.parent is not None and not prefix.children and prefix not in kept:
            prefix.parent.children.pop(prefix.symbol, None)
            prefix = prefix.parent


def log_add(first: float, second: float) -> float:
    """Return the logarithm of the sum of two probabilities."""
    if first < second:
        first, second = second, first
    return first if second == IMPOSSIBLE else first + math.log1p(math.exp(second - first))
