"""The greedy path of a CTC model: the likeliest unit of each frame, repeats joined and blanks dropped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor


@dataclass(frozen=True)
class PathToken:
    """A unit on a path, greedy or aligned with a text.

    Attributes:
        symbol_id: Its id; never the blank's.
        first_frame: The first frame that shows it.
        last_frame: The last frame of that run.
        log_prob: Mean of its log probability over the run.
    """

    symbol_id: int
    first_frame: int
    last_frame: int
    log_prob: float


def greedy_path(parts: Iterable[Tensor], blank_id: int) -> list[PathToken]:
    """Return the tokens of a recording, in time order.

    Args:
        parts: (S, V) log probabilities, one after another.
        blank_id: Of the model's units.
    """
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
    """Return the tokens of a path.

    Args:
        log_probs: The log probability of each frame's symbol.
        symbols: The symbol of each frame.
        blank_id: The symbol to drop.
        first_frame: The number of the first of these frames.
    """
    tokens: list[PathToken] = []
    first = 0
    for symbol, run in groupby(symbols):
        stop = first + sum(1 for _ in run)
        if symbol != blank_id:
            mean = sum(log_probs[first:stop]) / (stop - first)
            tokens.append(PathToken(symbol, first_frame + first, first_frame + stop - 1, mean))
        first = stop
    return tokens
