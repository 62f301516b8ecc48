"""The seam between an objective and training: batches with counts in, terms of a loss out.

A new objective is one file beside this one, its configuration's name in ``speechssl/objective/kinds.py``, and settings
in ``recipes/prompts/objectives``, with which ``tests/train/test_every_objective.py`` tries it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from speechssl.config import Config
from speechssl.data.batches import Example, TaskBatch
from speechssl.frames import FrameGeometry
from speechssl.model.encoder import EncoderConfig, SpeechEncoder
from speechssl.objective.clusters import Clusters


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


@dataclass(frozen=True)
class TargetFiles:
    """Where targets come from that are not found in the recordings alone."""

    model: Path | str  # as for `read_model`
    clusters: Path | None = None


@dataclass(frozen=True)
class TargetSource:
    """What was read from there."""

    model: Path | str  # as it was named
    digest: str  # of the model's weights
    encoder: SpeechEncoder  # in evaluation mode, on the CPU
    clusters: Clusters | None = None


class Objective(nn.Module):
    """What an encoder is pretrained for, with the parameters that only pretraining needs.

    A call with (encoder, batch, step), ``step`` being the updates so far, returns ``Losses``. It becomes one graph if
    ``trainer.compile`` is set: it looks at no value, and ``step`` is a () float64 tensor then.
    """

    prepare_seconds: float = 0.0  # of audio that `prepare` wants

    def take(self, source: TargetSource) -> None:
        """Take what its configuration's ``target_files`` named, before anything else is done with the objective."""
        raise NotImplementedError

    def prepare(self, encoder: SpeechEncoder, batches: Iterable[TaskBatch], seed: int) -> None:
        """Find targets in the first training batches, before the first update.

        Every process does it, with the same result. The encoder has its first weights; batches are on the CPU.
        """

    def after_update(self, encoder: SpeechEncoder, step: int, all_reduce: AllReduce) -> None:
        """Follow an update, the ``step``-th: move averages, set what no gradient sets.

        ``all_reduce`` sums a tensor over all processes, in place: what an objective gathered from its own batches.
        """

    def frozen(self, encoder: SpeechEncoder, step: int) -> tuple[nn.Module, ...]:
        """Return the modules of the encoder that do not learn in the update after ``step``; teachers never do."""
        return ()


@dataclass(frozen=True)
class Limit:
    """A value that a healthy run does not fall below, or does not exceed."""

    metric: str  # as the log has it
    at_least: float = -math.inf
    from_step: int = 0  # before that many updates nothing is checked
    meaning: str = ""  # of a value beyond it, with what to try: the end of the message
    at_most: float = math.inf
    split: str = "train"
    from_share: float = 0.0  # likewise, as a share of the run's updates
    lines: int = 1  # of the log, one after the other, in which the value is beyond it
    is_fatal: bool = True  # ends the run; else the user decides whether it does
    lower_rate_helps: bool = True  # perhaps, so that the user may let the run go back and learn more slowly

    def find_problem(self, metrics: Mapping[str, float], step: int) -> str | None:
        """Say what is wrong with a line of the log."""
        if step < self.from_step:  # nor need there be such a metric yet
            return None
        found = metrics[self.metric]
        if self.at_least <= found <= self.at_most:
            return None
        bound = f"at least {self.at_least:g}" if math.isfinite(self.at_least) else f"at most {self.at_most:g}"
        return f"expected {self.metric} of {bound}, found {found:.3g}: {self.meaning}"


class ObjectiveConfig(Config):
    """The section ``objective`` of a pretraining configuration, of the kind that its ``kind`` names."""

    # The term on the dev set, lower being better, that chooses the ``best`` checkpoint. None where the targets change
    # with the model, so that losses of different steps do not compare: the latest is the best.
    best_metric: ClassVar[str | None]
    shown_metrics: ClassVar[tuple[str, ...]]  # what of the log is shown on the console, in this order
    predicts_future: ClassVar[bool] = False  # so that the context network must not see it

    def check_encoder(self, encoder: EncoderConfig) -> None:
        """Raise ValueError if the objective cannot train such an encoder."""
        if self.predicts_future and not encoder.context.is_causal:
            raise ValueError(
                "this objective needs an encoder.context that does not see the future, of kind "
                '"causal_transformer", or of kind "causal" with norm "frame" instead of "utterance"; '
                f'found kind "{encoder.context.kind}"'
            )

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What each line of the log is compared with."""
        return ()

    @property
    def chance(self) -> Mapping[str, float]:
        """Metrics of the log that a model would have which guesses, every answer as often as any other."""
        return {}

    @property
    def target_files(self) -> TargetFiles | None:
        """What has to be read for the objective to `Objective.take`."""
        return None

    def min_frames(self, geometry: FrameGeometry) -> int:
        """The fewest frames of an utterance that have something to predict."""
        raise NotImplementedError

    def make_collate(self, geometry: FrameGeometry, seed: int) -> Callable[[Sequence[Example]], TaskBatch]:
        """What makes a batch of its examples, in the loader's workers; it must pickle."""
        raise NotImplementedError

    def build(self, encoder: EncoderConfig) -> Objective:
        """The objective for such an encoder."""
        raise NotImplementedError
