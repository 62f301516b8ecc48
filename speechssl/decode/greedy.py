"""The greedy path of a CTC model: the likeliest unit of each frame, repeats joined and blanks dropped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from speechssl.decode.spotting import Spot


@dataclass(frozen=True)
class PathToken:
    """A unit on a path, greedy or aligned with a text, and the run of frames that show it."""

    symbol_id: int  # never the blank
    first_frame: int
    last_frame: int
    log_prob: float  # the mean over the run
    spot: Spot | None = None  # the hot phrase of which it is a letter
    posterior: float | None = None  # the probability of its word in the lattice of a search, if there is one


def greedy_path(parts: Iterable[Tensor], blank_id: int) -> list[PathToken]:
    """Return the tokens of a recording, of which the (S, V) log probabilities come in parts."""
    log_probs: list[float] = []
    symbols: list[int] = []
    for part in parts:
        best = part.max(dim=1)
        log_probs += best.values.tolist()
        symbols += best.indices.tolist()
    return join_repeats(log_probs, symbols, blank_id)


def join_repeats(
    log_probs: Sequence[float], symbols: Sequence[int], blank_id: int, first_frame: int = 0
) -> list[PathToken]:
    """Return the tokens of a path: each frame's symbol, its log probability and the first frame's number are given."""
    tokens: list[PathToken] = []
    first = 0
    for symbol, run in groupby(symbols):
        stop = first + sum(1 for _ in run)
        if symbol != blank_id:
            mean = sum(log_probs[first:stop]) / (stop - first)
            tokens.append(PathToken(symbol, first_frame + first, first_frame + stop - 1, mean))
        first = stop
    return tokens
