"""The beginnings of texts that a beam search keeps."""

from collections.abc import Mapping

from speechssl.decode.ngram import Ngram
from speechssl.decode.spotting import Spot


class Prefix:
    """The beginning of a text, a node in the tree of all that are kept: its last symbol, and what is known so far.

    ``word`` is under way, ``context`` the words before it that count, ``score`` that of complete words, ``rank`` the
    same with a guess at the word under way. ``children``, with one more symbol, are kept or lead to one that is.
    ``spot`` is the hot phrase that its last symbol, a delimiter, ends.
    """

    __slots__ = ("children", "context", "parent", "rank", "score", "spot", "symbol", "word")

    def __init__(
        self, parent: "Prefix | None", symbol: int, word: str, context: Ngram, score: float, rank: float
    ) -> None:
        self.parent, self.symbol, self.word, self.context = parent, symbol, word, context
        self.score, self.rank = score, rank
        self.children: dict[int, Prefix] = {}
        self.spot: Spot | None = None

    def labels(self) -> list[int]:
        """Return its symbols, from the first on."""
        labels = []
        prefix = self
        while prefix.parent is not None:
            labels.append(prefix.symbol)
            prefix = prefix.parent
        return labels[::-1]

    def spots(self) -> list[Spot | None]:
        """Return which hot phrase each symbol is a letter of, from the first on."""
        spots: list[Spot | None] = []
        spot, num_symbols = None, 0
        prefix = self
        while prefix.parent is not None:
            spots.append(spot if num_symbols and prefix.word else None)
            num_symbols -= num_symbols > 0
            if prefix.spot is not None and not num_symbols:
                spot, num_symbols = prefix.spot, len(prefix.spot.phrase.labels)
            prefix = prefix.parent
        return spots[::-1]

    def drop(self, kept: "Mapping[Prefix, list[float]]") -> None:
        """Forget it unless it is kept, and those before it that lead nowhere else."""
        prefix = self
        while prefix.parent is not None and not prefix.children and prefix not in kept:
            prefix.parent.children.pop(prefix.symbol, None)
            prefix = prefix.parent


Beams = dict[Prefix, list[float]]
"""The log probabilities of all paths of a prefix: of those that end in a blank, and of those that do not."""
