"""The greedy path of a CTC model: the likeliest symbol of each frame, repeats joined and blanks dropped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from speechssl.model.ctc import BLANK_ID, CTCOutput


@dataclass(frozen=True)
class PathToken:
    """A symbol of a path: the greedy one, or one aligned with a text.

    Attributes:
        symbol_id: Its id; never blank.
        first_frame: The first frame that shows it.
        last_frame: The last frame of that run.
        log_prob: Mean of its log probability over the run.
    """

    symbol_id: int
    first_frame: int
    last_frame: int
    log_prob: float


def greedy_paths(output: CTCOutput) -> list[list[PathToken]]:
    """The likeliest symbol of each frame, repeats joined and blanks dropped.

    Args:
        output: From the model.

    Returns:
        The tokens of each utterance, in time order.
    """
    scores, symbols = output.log_probs.max(dim=2)
    rows = zip(scores.tolist(), symbols.tolist(), output.frame_lengths.tolist(), strict=True)
    return [join_repeats(row_scores[:length], row_symbols[:length]) for row_scores, row_symbols, length in rows]


def greedy_path(parts: Iterable[Tensor]) -> list[PathToken]:
    """The likeliest symbol of each frame of one recording, repeats joined and blanks dropped.

    Args:
        parts: (S, V) log probabilities, one after another.
    """
    log_probs: list[float] = []
    symbols: list[int] = []
    for part in parts:
        best = part.max(dim=1)
        log_probs += best.values.tolist()
        symbols += best.indices.tolist()
    return join_repeats(log_probs, symbols)


def join_repeats(log_probs: Sequence[float], symbols: Sequence[int], first_frame: int = 0) -> list[PathToken]:
    """The tokens of a path: repeats joined and blanks dropped.

    Args:
        log_probs: The log probability of each frame's symbol.
        symbols: The symbol of each frame.
        first_frame: The number of the first of these frames.
    """
    tokens: list[PathToken] = []
    first = 0
    for symbol, run in groupby(symbols):
        stop = first + sum(1 for _ in run)
        if symbol != BLANK_ID:
            mean = sum(log_probs[first:stop]) / (stop - first)
            tokens.append(PathToken(symbol, first_frame + first, first_frame + stop - 1, mean))
        first = stop
    return tokens
