"""Wrong targets, for objectives that contrast them with the right one."""

import numpy as np
import numpy.typing as npt


def draw_distractors(num_frames: int, num_distractors: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw wrong targets for each frame, uniformly from the others and never the frame itself.

    A single frame has no others: it gets itself.

    Returns:
        (num_frames, num_distractors) int64 positions among the frames.
    """
    others = generator.integers(max(num_frames - 1, 1), size=(num_frames, num_distractors))
    own = np.arange(num_frames)[:, None]
    return others + (others >= own) if num_frames > 1 else others
