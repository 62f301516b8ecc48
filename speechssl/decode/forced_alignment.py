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
    if not labels:
        return []
    from torchaudio.functional import forced_align  # greedy decoding runs where torchaudio cannot be imported

    targets = torch.tensor([list(labels)], dtype=torch.int32)
    path, scores = forced_align(log_probs[None], targets, blank=blank_id)
    return join_repeats(scores[0].tolist(), path[0].tolist(), blank_id, first_frame)
