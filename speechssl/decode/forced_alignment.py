"""Where a text is said that is spoken exactly so: the likeliest path of a CTC model that spells it, by torchaudio."""

from collections.abc import Sequence

import torch
from torch import Tensor

from speechssl.decode.greedy import PathToken, join_repeats


def align(log_probs: Tensor, labels: Sequence[int], blank_id: int, first_frame: int = 0) -> list[PathToken]:
    """Return a token for each label, with the frames that show it.

    Args:
        log_probs: (S, V) on the CPU; S must be at least ``num_frames_needed(labels)``.
        labels: Of the text, without blanks.
        blank_id: CTC's blank.
        first_frame: The number of the first row.
    """
    return join_repeats(*align_frames(log_probs, labels, blank_id), blank_id, first_frame)


def align_frames(log_probs: Tensor, labels: Sequence[int], blank_id: int) -> tuple[list[float], list[int]]:
    """Return what each of the S frames shows on the path of `align`: its log probability, and the symbol."""
    if not labels:
        return log_probs[:, blank_id].tolist(), [blank_id] * len(log_probs)
    from torchaudio.functional import forced_align  # greedy decoding runs where torchaudio cannot be imported

    targets = torch.tensor([list(labels)], dtype=torch.int32)
    path, scores = forced_align(log_probs[None], targets, blank=blank_id)
    return scores[0].tolist(), path[0].tolist()
