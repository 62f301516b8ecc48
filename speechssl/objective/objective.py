"""The seam between an objective and training: batches with counts in, terms of a loss out.

A new objective is one file beside this one, its configuration's name in ``speechssl/objective/kinds.py``, and settings
in ``recipes/prompts/objectives``, with which ``tests/train/test_every_objective.py`` tries it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from speechssl.config import Config
from speechssl.data.batches import Example, TaskBatch
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig, SpeechEncoder


@dataclass(frozen=True)
class Term:
    """A part of a loss, or a measure to report, as a sum over a batch.

    Attributes:
        sum: (), differentiable if it has a weight.
        count: The name, in the batch's counts, of what it is a sum over. The sums of all batches of an update are
            divided by their counts together, so that how utterances are batched does not matter.
        weight: Of its mean in the loss; 0 only reports it.
    """

    sum: Tensor
    count: str
    weight: float = 0.0


Losses = Mapping[str, Term]
AllReduce = Callable[[Tensor], None]


def weighted_sum(losses: Losses, totals: Mapping[str, float]) -> Tensor:
    """Return the share of a batch in an update's loss, whose counts are ``totals``: the sum of weight x sum / count."""
    shares = [term.sum * (term.weight / totals[term.count]) for term in losses.values() if term.weight]
    return torch.stack(shares).sum() if len(shares) > 1 else shares[0]


class Objective(nn.Module):
    """What an encoder is pretrained for, with the parameters that only pretraining needs.

    A call with (encoder, batch, step), ``step`` being the updates so far, returns ``Losses``.
    """

    prepare_seconds: float = 0.0  # of audio that `prepare` wants

    def prepare(self, encoder: SpeechEncoder, batches: Iterable[TaskBatch], seed: int) -> None:
        """Find targets in the first training batches, before the first update.

        Every process does it, with the same result. The encoder has its first weights; batches are on the CPU.
        """

    def after_update(self, encoder: SpeechEncoder, step: int, all_reduce: AllReduce) -> None:
        """Follow an update, the ``step``-th: move averages, set what no gradient sets.

        ``all_reduce`` sums a tensor over all processes, in place: what an objective gathered from its own batches.
        """


@dataclass(frozen=True)
class Limit:
    """A value that a healthy run does not fall below."""

    metric: str  # of the training data
    at_least: float
    from_step: int  # before that many updates nothing is checked
    meaning: str  # of a lower value, with what to try: the end of the error message


class ObjectiveConfig(Config):
    """The section ``objective`` of a pretraining configuration, of the kind that its ``kind`` names."""

    best_metric: ClassVar[str]  # the term on the dev set, lower being better, that chooses the ``best`` checkpoint
    shown_metrics: ClassVar[tuple[str, ...]]  # what of the log is shown on the console, in this order
    limits: ClassVar[tuple[Limit, ...]] = ()  # looked at with each line of the log; they end the run

    def min_frames(self, geometry: FrameGeometry) -> int:
        """The fewest frames of an utterance that have something to predict."""
        raise NotImplementedError

    def make_collate(self, geometry: FrameGeometry, seed: int) -> Callable[[Sequence[Example]], TaskBatch]:
        """What makes a batch of its examples, in the loader's workers; it must pickle."""
        raise NotImplementedError

    def build(self, encoder: EncoderConfig) -> Objective:
        """The objective for such an encoder."""
        raise NotImplementedError
