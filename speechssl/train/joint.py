"""One update from several data sets: labeled speech, and unlabeled speech from which something else is learned.

Every data set is a stream of batches with an order of its own, a pure function of (lengths, seed, epoch). Microbatch
number n has batch number n of each, so that ranks take their slices and a run resumes by number, as with one stream.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import Tensor, nn

from speechssl.data.batch_reader import BatchReader
from speechssl.data.batches import AudioBatch, TaskBatch, load_batches
from speechssl.data.sampler import BatchPlan
from speechssl.model.ctc import CTCModel
from speechssl.objective.objective import AllReduce, Limit, Losses, Term
from speechssl.rng import keyed_generator
from speechssl.train.labeled import LabeledBatch
from speechssl.train.parallel import Ranks
from speechssl.train.task import Batches

_STREAM = 60  # the purpose of the seeds of streams


def stream_seed(seed: int, stream: str) -> int:
    """Return the seed of a stream: two streams of one manifest must not have the same utterances in each update."""
    return int(keyed_generator(seed, _STREAM, *stream.encode()).integers(2**32))


@dataclass(frozen=True)
class JointBatch(TaskBatch):
    """A labeled batch, whose audio and counts come first, and a batch of each other stream, with counts STREAM.NAME."""

    labeled: LabeledBatch
    others: Mapping[str, TaskBatch]

    @classmethod
    def of(cls, labeled: LabeledBatch, others: Mapping[str, TaskBatch]) -> Self:
        """Put batches together."""
        counts = dict(labeled.counts)
        for stream, batch in others.items():
            counts |= {f"{stream}.{name}": count for name, count in batch.counts.items()}
        return cls(labeled.audio, counts, labeled, others)

    @property
    def audios(self) -> tuple[AudioBatch, ...]:
        """The audio of each stream."""
        return (self.audio, *(batch.audio for batch in self.others.values()))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        others = {stream: batch._map(function) for stream, batch in self.others.items()}
        return self.of(self.labeled._map(function), others)


@dataclass(frozen=True)
class _JointReader:
    """Reads a batch of each stream."""

    labeled: BatchReader[LabeledBatch]
    others: Mapping[str, BatchReader[Any]]

    def __call__(self, plans: Sequence[BatchPlan]) -> JointBatch:
        labeled, *others = plans
        pairs = zip(self.others.items(), others, strict=True)
        return JointBatch.of(self.labeled(labeled), {stream: read(plan) for (stream, read), plan in pairs})

    def where(self, plans: Sequence[BatchPlan]) -> str:
        """Return where the recordings of a batch stand in their manifests."""
        readers = (self.labeled, *self.others.values())
        return ", ".join(reader.where(plan) for reader, plan in zip(readers, plans, strict=True))


@dataclass(frozen=True)
class JointBatches(Batches[Any]):
    """The labeled batches, with those of other streams beside them."""

    others: Mapping[str, Batches[Any]] = field(default_factory=dict)

    def skipping_unreadable(self) -> Self:
        """Return the same batches of all streams, as `Batches` does."""
        others = {name: stream.skipping_unreadable() for name, stream in self.others.items()}
        return replace(self, skips_unreadable=True, others=others)

    @property
    def streams(self) -> tuple[Batches[Any], ...]:
        """The labeled data set and the others."""
        return (self, *self.others.values())

    def read(self, numbers: Iterable[int], *, pin_memory: bool = False) -> Generator[JointBatch, None, None]:
        """Read the batches of all streams with these numbers, counted across epochs."""
        reader = _JointReader(self.reader, {name: stream.reader for name, stream in self.others.items()})
        plans = (tuple(stream.sampler[number] for stream in self.streams) for number in numbers)
        return load_batches(reader, reader.where, plans, num_workers=self.num_workers, pin_memory=pin_memory)


class Part(nn.Module):
    """What an update learns from other streams than the labeled one.

    A call with (CTC model, batches by stream, step) returns ``Losses``, whose names and counts begin with the stream's.
    Its parameters are saved with the training state and not with the model.
    """

    streams: tuple[str, ...]
    limits: tuple[Limit, ...]
    shown_metrics: tuple[str, ...]
    compiled: tuple[nn.Module, ...] = ()  # as in `Task`

    def prepare(self, ctc: CTCModel, streams: Mapping[str, Batches[Any]], seed: int, ranks: Ranks) -> None:
        """Make ready for the first update; every process does it, with the same result."""

    def after_update(self, ctc: CTCModel, step: int, all_reduce: AllReduce) -> None:
        """Follow an update, as `Objective.after_update`."""

    def frozen(self, ctc: CTCModel, step: int) -> tuple[nn.Module, ...]:
        """What does not learn in an update, as `Objective.frozen`."""
        return ()


class JointModel(nn.Module):
    """A model of labeled speech, and the other parts of an update."""

    def __init__(self, labeled: nn.Module, parts: Sequence[Part]) -> None:
        super().__init__()
        self.labeled = labeled  # has a CTC model, ``ctc``; its call with (labeled batch, step) returns ``Losses``
        self.parts = nn.ModuleList(parts)

    def prepare(self, streams: Mapping[str, Batches[Any]], seed: int, ranks: Ranks) -> None:
        """Make all parts ready for the first update."""
        for part in self.parts:
            assert isinstance(part, Part)
            assert isinstance(self.labeled.ctc, CTCModel)
            part.prepare(self.labeled.ctc, streams, seed, ranks)

    def forward(self, batch: JointBatch, step: int) -> Losses:
        """The losses of all parts of a batch after ``step`` updates."""
        losses = dict(self.labeled(batch.labeled, step))
        for part in self.parts:
            losses |= part(self.labeled.ctc, batch.others, step)
        return losses


def of_stream(stream: str, losses: Losses, weight: float) -> Losses:
    """Name losses of a stream after it, and scale their weights."""
    return {
        f"{stream}.{name}": Term(term.sum, f"{stream}.{term.count}", weight * term.weight)
        for name, term in losses.items()
    }
