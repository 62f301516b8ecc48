"""What every objective has: a configuration that makes its batches and its module, and losses.

A new objective is one file beside this one and its configuration's name in ``speechssl/train/pretrain.py``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from speechssl.data.batches import AudioBatch, Example, TaskBatch
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig


@dataclass(frozen=True)
class Losses:
    """A loss as a sum and what it is a sum over, so that parts of a batch add up to the whole.

    Attributes:
        sum: () the differentiable sum.
        count: What to divide by: hidden frames, utterances; with a fraction where a part of them weighs less.
        parts: () detached sums to report, each a mean when divided by ``count``.
    """

    sum: Tensor
    count: float
    parts: Mapping[str, Tensor]


class ObjectiveConfig(Protocol):
    """The section ``objective`` of a pretraining configuration, of the kind that its ``kind`` names.

    Attributes:
        best_metric: The part of the losses on the dev set, lower being better, that chooses the ``best`` checkpoint.
        shown_metrics: What of the log is shown on the console, in this order.
    """

    best_metric: ClassVar[str]
    shown_metrics: ClassVar[tuple[str, ...]]

    def min_frames(self, geometry: FrameGeometry) -> int:
        """The fewest frames of an utterance that have something to predict."""

    def make_collate(self, geometry: FrameGeometry, seed: int) -> Callable[[Sequence[Example]], TaskBatch]:
        """What makes a batch of its examples, in the loader's workers; it must pickle."""

    def build(self, encoder: EncoderConfig) -> nn.Module:
        """The module whose call with (encoder, batch, step) returns ``Losses``; ``step`` is the updates so far."""


@runtime_checkable
class FittedObjective(Protocol):
    """An objective whose targets are found in the training data, before the first update.

    Attributes:
        fit_seconds: How much of it is wanted.
    """

    fit_seconds: float

    def fit(self, batches: Iterable[AudioBatch], seed: int) -> None:
        """Find the targets in recordings without padding."""
