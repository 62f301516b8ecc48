"""Long recordings cut at pauses, for searches that look at a whole sentence at once."""

from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from speechssl.data.units import Units


def cut_sentences(parts: Iterable[Tensor], units: Units, max_frames: int | None) -> Iterator[Tensor]:
    """Yield the frames of a recording, cut at the longest pause in the second half of what is long enough.

    The (S, V) log probabilities come in parts of any length; None is never to cut.
    """
    pending = torch.empty(0, len(units))
    for part in parts:
        pending = torch.cat((pending, part.cpu()))
        while max_frames is not None and len(pending) > max_frames:
            middle = max_frames // 2
            stop = middle + _longest_pause(pending[middle:max_frames], units)
            yield pending[:stop]
            pending = pending[stop:]
    yield pending


def _longest_pause(log_probs: Tensor, units: Units) -> int:
    """Return the frame in the middle of the longest run without letters; if there is none, the last."""
    pauses = []
    stop = 0
    for is_silent, run in groupby(not units.decode([unit]) for unit in log_probs.argmax(dim=1).tolist()):
        start, stop = stop, stop + sum(1 for _ in run)
        if is_silent:
            pauses.append((stop - start, (start + stop) // 2))
    return max(pauses, default=(0, len(log_probs)))[1]
