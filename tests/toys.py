"""A task whose every number is known."""

from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from manifests import make_manifest
from torch import Tensor, nn

from speechssl.data.batches import AudioBatch, TaskBatch
from speechssl.data.manifest import Utterance
from speechssl.objective.objective import Limit, Term
from speechssl.train.optimizer import OptimizerConfig
from speechssl.train.parallel import Ranks
from speechssl.train.schedule import ScheduleConfig
from speechssl.train.task import Measured, Task
from speechssl.train.trainer import train
from speechssl.train.trainer_config import TrainerConfig

ALONE = Ranks(0, 1, torch.device("cpu"))
MANIFEST = make_manifest(Path("train.tsv"), [Utterance(f"{i}.wav", 16_000) for i in range(100)])


class Toy(nn.Module):
    """A loss whose gradient is known: the sum of the batch times a weight, as often as the batch counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls: list[tuple[int, bool, float]] = []  # (step, training, a random number)

    def forward(self, batch: TaskBatch, step: int) -> dict[str, Term]:
        self.calls.append((step, self.training, torch.rand(()).item()))
        total = (self.weight * batch.audio.waveforms).sum()
        return {"whole": Term(total, "rows", 1.0), "part": Term(total * 2, "rows")}


class ToyBatches:
    """Batch ``n`` has ``n % 3 + 1`` utterances of one sample of value ``values.get(n, n)``."""

    manifest = MANIFEST

    def __init__(self, values: Mapping[int, float]) -> None:
        self.values = values
        self.numbers: list[int] = []
        self.streams = (self,)

    def read(self, numbers: Iterable[int], *, pin_memory: bool) -> Generator[TaskBatch, None, None]:
        assert not pin_memory
        for number in numbers:
            self.numbers.append(number)
            rows = number % 3 + 1
            waveforms = torch.full((rows, 1), float(self.values.get(number, number)))
            yield TaskBatch(AudioBatch(waveforms, None, tuple(range(number, number + rows))), {"rows": rows})

    def read_share(self, rank: int, count: int, *, pin_memory: bool) -> Generator[TaskBatch, None, None]:
        assert not pin_memory
        for number in range(2):
            yield TaskBatch(AudioBatch(torch.ones(1, 1), None, (number,)), {"batches": 1})


class Toys:
    """A task of the two, and what was asked of it."""

    def __init__(self, scores: Iterable[float] = (), values: Mapping[int, float] | None = None) -> None:
        self.model = Toy()
        self.limits: tuple[Limit, ...] = ()
        self.scores = iter(scores)
        self.batches = ToyBatches(values or {})
        self.asked_steps: list[int] = []
        self.updates: list[int] = []
        self.evaluations: list[tuple[int, bool, bool]] = []
        self.saved: list[int] = []

    def frozen(self, step: int) -> tuple[nn.Module, ...]:
        self.asked_steps.append(step)
        return ()

    def evaluate(self, batch: TaskBatch, step: int) -> Measured:
        self.evaluations.append((step, self.model.training, torch.is_inference_mode_enabled()))
        index = batch.audio.indices[0]
        score = next(self.scores, 1.0) if index == 0 else 0.0
        terms = {
            "score": Term(torch.tensor(2 * score, dtype=torch.float64), "batches"),
            "index": Term(torch.tensor(index), "batches"),
        }
        return Measured(terms, batch.counts)

    def write_model(self, step: int, folder: Path, weights: Mapping[str, Tensor]) -> None:
        self.saved.append(step)
        (folder / "config.json").write_text(str(weights["weight"].item()))

    def task(self) -> Task[Any]:
        return Task(
            stage="pretrain",
            model=self.model,
            saved_module=self.model,
            compiled=(self.model,),
            train=self.batches,  # type: ignore[arg-type]
            dev=self.batches,  # type: ignore[arg-type]
            evaluate=self.evaluate,
            best_metric="score",
            shown_metrics=("loss", "score"),
            frozen=self.frozen,
            after_update=lambda step, all_reduce: self.updates.append(step),
            write_model=self.write_model,
            limits=self.limits,
        )


AnyToys = TypeVar("AnyToys", bound=Toys)


def train_toys(
    task: AnyToys,
    folder: Path,
    *,
    max_gradient_norm: float | None = None,
    limits: tuple[Limit, ...] = (),
    **values: Any,
) -> AnyToys:
    """Train a task of one update, unless ``values`` say otherwise."""
    settings = {"num_steps": 1, "microbatches": 1, "log_steps": 1, "evaluate_steps": 100, "checkpoint_steps": 100}
    config = TrainerConfig(**(settings | values))
    folder.mkdir(exist_ok=True)
    task.limits = limits
    optimizer = OptimizerConfig(learning_rate=0.5, max_gradient_norm=max_gradient_norm)
    schedule = ScheduleConfig(warmup=0.5)
    train(
        task.task(), config, optimizer, lambda step: 0.5 * schedule.scale(step, config.num_steps), folder, ALONE, seed=7
    )
    return task
