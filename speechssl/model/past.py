"""What a causal network keeps of a recording that it is given piece by piece."""

import torch
from torch import Tensor, nn


class Past:
    """The last inputs of the modules that look back, from one piece of a recording to the next.

    With them, the outputs for the pieces, one after another, are those for the whole recording, to rounding.
    """

    def __init__(self) -> None:
        self._kept: dict[nn.Module, Tensor] = {}

    def extend(self, owner: nn.Module, new: Tensor, num_kept: int | None, start: Tensor | None = None) -> Tensor:
        """Put what is kept for a module before its new inputs, and keep the last of both for the next call.

        Args:
            owner: The module.
            new: (B, C, S, ...), the new frames.
            num_kept: Frames to keep; None keeps all.
            start: (B, C, S', ...), what lies before the first frame; None is nothing.

        Returns:
            (B, C, S'' + S, ...).
        """
        before = self._kept.get(owner, start)
        seen = new if before is None else torch.cat((before, new), dim=2)
        first = 0 if num_kept is None else max(seen.shape[2] - num_kept, 0)
        self._kept[owner] = seen[:, :, first:].clone()  # a view would keep the whole piece
        return seen

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(kept.nbytes for kept in self._kept.values())
