"""The loop, with a task whose every number is known."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Toy, Toys, train_toys

from speechssl.checkpoint.training_state import Progress, load_progress
from speechssl.data.batches import TaskBatch
from speechssl.errors import TrainingError
from speechssl.objective.objective import Limit, Term
from speechssl.train import trainer
from speechssl.train.log import read_log
from speechssl.train.optimizer import OptimizerConfig
from speechssl.train.parallel import Ranks
from speechssl.train.task import Measured
from speechssl.train.throughput import Throughput
from speechssl.train.trainer import train
from speechssl.train.trainer_config import TrainerConfig


@pytest.fixture
def plain_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates that show the gradient as it is."""

    def make_descent(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, lr=123.0)

    monkeypatch.setattr(trainer, "make_optimizer", make_descent)


def steps_of(folder: Path, split: str) -> list[int]:
    return [record["step"] for record in read_log(folder) if record["split"] == split]


@pytest.mark.usefixtures("plain_descent")
def test_an_update_follows_the_mean_gradient_of_all_its_utterances(tmp_path: Path) -> None:
    task = train_toys(Toys(), tmp_path, microbatches=4)
    # Microbatches 0..3 with 1, 2, 3 and 1 utterances: not the mean of their means.
    gradient = (0 + 2 * 1 + 3 * 2 + 1 * 3) / (1 + 2 + 3 + 1)
    assert task.model.weight.item() == pytest.approx(-0.5 * gradient)
    assert task.model.weight.grad is None
    record = read_log(tmp_path)[0]
    assert record["gradient_norm"] == pytest.approx(gradient)
    assert record["learning_rate"] == 0.5


@pytest.mark.usefixtures("plain_descent")
def test_gradients_do_not_leak_into_the_next_update(tmp_path: Path) -> None:
    task = train_toys(Toys(values={0: 5.0, 1: 7.0}), tmp_path, num_steps=2)
    rates = [record["learning_rate"] for record in read_log(tmp_path) if record["split"] == "train"]
    assert rates == [0.0, 0.5]  # the warm-up of one update, then the start of the decay
    assert task.model.weight.item() == pytest.approx(-0.5 * 7)


@pytest.mark.usefixtures("plain_descent")
@pytest.mark.parametrize(("max_norm", "step_size"), [(1.0, 1.0), (8.0, 8.0), (9.0, 8.0), (None, 8.0)])
def test_clipping_limits_the_norm_and_never_raises_it(tmp_path: Path, max_norm: float | None, step_size: float) -> None:
    task = train_toys(Toys(values={0: -8.0}), tmp_path, max_gradient_norm=max_norm)
    assert task.model.weight.item() == pytest.approx(0.5 * step_size)
    assert read_log(tmp_path)[0]["gradient_norm"] == pytest.approx(8.0), "the log has the norm before clipping"


@pytest.mark.usefixtures("plain_descent")
def test_a_gradient_of_zero_can_be_clipped(tmp_path: Path) -> None:
    assert train_toys(Toys(values={0: 0.0}), tmp_path, max_gradient_norm=1.0).model.weight.item() == 0


def test_lines_evaluations_and_checkpoints_come_when_they_are_due(tmp_path: Path) -> None:
    task = train_toys(Toys(), tmp_path, num_steps=11, microbatches=2, log_steps=4, evaluate_steps=6, checkpoint_steps=5)
    assert task.saved == [5, 6, 10, 11]
    assert steps_of(tmp_path, "dev") == [6, 11]
    # Before each checkpoint too, or a resumed run would not know the sums since the last line.
    assert steps_of(tmp_path, "train") == [4, 5, 6, 8, 10, 11]
    assert task.batches.numbers == list(range(22))
    assert sorted(set(task.asked_steps)) == list(range(11))
    assert task.updates == list(range(1, 12))
    assert [call[:2] for call in task.model.calls] == [(step, True) for step in range(11) for _ in range(2)]
    assert task.evaluations == [(step, False, True) for step in (6, 6, 11, 11)]
    dev = next(record for record in read_log(tmp_path) if record["split"] == "dev")
    assert dev == {"step": 6, "split": "dev", "loss": 0.0, "score": 1.0, "index": 0.5}


@pytest.mark.usefixtures("plain_descent")
def test_logged_means_are_over_the_steps_since_the_last_line(tmp_path: Path) -> None:
    train_toys(Toys(), tmp_path, num_steps=4, log_steps=2)
    losses = [record["loss"] for record in read_log(tmp_path) if record["split"] == "train"]
    parts = [record["part"] for record in read_log(tmp_path) if record["split"] == "train"]
    # Update s has s % 3 + 1 utterances of value s, a gradient of s, and rates of 0, 0.25, 0.5, 0.25.
    weights = [0.0, 0.0, -0.25, -1.25]
    assert losses == pytest.approx([0.0, (3 * 2 * weights[2] + 1 * 3 * weights[3]) / 4])
    assert parts == pytest.approx([2 * loss for loss in losses])


def test_the_best_checkpoint_has_the_lowest_score(tmp_path: Path) -> None:
    train_toys(Toys(scores=[0.5, 0.3, 0.3, 0.4]), tmp_path, num_steps=8, evaluate_steps=2, checkpoint_steps=1)
    assert load_progress(tmp_path) == Progress(8, 4, 0.3)
    assert (tmp_path / "best").resolve().name == "step_00000004"
    assert (tmp_path / "latest").resolve().name == "step_00000008"


def test_a_score_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    scores = [float("nan"), 0.5, float("nan")]
    train_toys(Toys(scores=scores), tmp_path, num_steps=3, evaluate_steps=1)
    assert load_progress(tmp_path) == Progress(3, 2, 0.5)


def test_noise_belongs_to_the_batch_whatever_came_before(tmp_path: Path) -> None:
    draws = [
        [number for _, _, number in train_toys(Toys(), tmp_path / name, **settings).model.calls]
        for name, settings in {
            "one": {"num_steps": 6},
            "two": {"num_steps": 3, "microbatches": 2, "evaluate_steps": 1},
        }.items()
    ]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 6


@pytest.mark.parametrize("checkpoint_steps", [1, 2])
def test_a_run_goes_on_where_its_checkpoint_is(tmp_path: Path, checkpoint_steps: int) -> None:
    settings = {"num_steps": 6, "microbatches": 2, "checkpoint_steps": checkpoint_steps, "evaluate_steps": 3}
    through = train_toys(Toys(), tmp_path / "through", **settings)

    class KilledError(Exception):
        pass

    class Killed(Toys):
        def frozen(self, step: int) -> tuple[nn.Module, ...]:
            if step == 5:
                raise KilledError
            return ()

    first = Killed()
    with pytest.raises(KilledError):
        train_toys(first, tmp_path / "resumed", **settings)
    done = 5 if checkpoint_steps == 1 else 4
    assert load_progress(tmp_path / "resumed").step == done
    second = Toys()
    weight = float((tmp_path / "resumed" / "latest" / "config.json").read_text())
    nn.init.constant_(second.model.weight, weight)  # which is the task's part of resuming
    train_toys(second, tmp_path / "resumed", **settings)
    assert second.batches.numbers == list(range(2 * done, 12))
    assert torch.equal(second.model.weight, through.model.weight)
    assert [call[2] for call in second.model.calls] == [call[2] for call in through.model.calls[2 * done :]]


@pytest.mark.parametrize("from_step", [1, 2, 4])
def test_a_value_below_its_limit_ends_the_run_before_it_is_saved(tmp_path: Path, from_step: int) -> None:
    task = Toys(values={0: 1.0, 1: 1.0, 2: 1.5})
    limits = (Limit("gradient_norm", 1.5, from_step, "nothing learns"), Limit("gradient_norm", 1.5, 3, "nor later"))
    if from_step == 4:  # the third update has the least that is allowed
        assert train_toys(task, tmp_path, limits=limits, num_steps=3).saved == [3]
        return
    message = f"step {from_step}: expected gradient_norm of at least 1.5, found 1: nothing learns"
    with pytest.raises(TrainingError, match=message):
        train_toys(task, tmp_path, limits=limits, num_steps=3, checkpoint_steps=1)
    assert steps_of(tmp_path, "train") == [*range(1, from_step + 1)]
    assert task.saved == [*range(1, from_step)]


class Poisoned(Toy):
    """A finite loss whose gradient is not."""

    def forward(self, batch: TaskBatch, step: int) -> dict[str, Term]:
        losses = super().forward(batch, step)
        if 0 in batch.audio.indices:
            return losses
        zero: Tensor = self.weight * 0
        return losses | {"poison": Term(zero.sqrt().sum(), "rows", 1.0)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("checkpoint_steps", [1, 2, 3])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_utterances(
    tmp_path: Path, value: float, checkpoint_steps: int
) -> None:
    task = Toys(values={8: value})  # in the fifth update, which ends on a checkpoint or does not
    nn.init.ones_(task.model.weight)
    message = r"^step 5: expected a finite loss, found (nan|-?inf) on train\.tsv:11, train\.tsv:12, train\.tsv:13$"
    with pytest.raises(TrainingError, match=message):
        train_toys(task, tmp_path, num_steps=6, microbatches=2, checkpoint_steps=checkpoint_steps)
    last = 4 - 4 % checkpoint_steps
    assert load_progress(tmp_path).step == last
    assert torch.isfinite(torch.tensor(float((tmp_path / "latest" / "config.json").read_text())))


@pytest.mark.parametrize("checkpoint_steps", [1, 3])
def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path: Path, checkpoint_steps: int) -> None:
    task = Toys()
    task.model = Poisoned()
    with pytest.raises(TrainingError, match=r"^step 2: expected a finite gradient, found one of norm nan$"):
        train_toys(task, tmp_path, num_steps=6, checkpoint_steps=checkpoint_steps)
    assert load_progress(tmp_path).step == (1 if checkpoint_steps == 1 else 0)


class Measuring(Toys):
    """A task whose loss on the dev set is its score."""

    def evaluate(self, batch: TaskBatch, step: int) -> Measured:
        measured = super().evaluate(batch, step)
        return Measured({"score": replace(measured.losses["score"], weight=1.0)}, measured.counts)


@pytest.mark.parametrize("response", ["warn", "roll_back"])
def test_weights_whose_loss_on_the_dev_set_is_not_finite_are_not_saved(tmp_path: Path, response: str) -> None:
    task = Measuring(scores=[0.5, float("nan")])
    with pytest.raises(
        TrainingError, match=r"^step 4: expected a finite loss on the dev set, found nan: .* try a lower"
    ):
        train_toys(task, tmp_path, num_steps=6, evaluate_steps=2, on_warning=response)
    assert load_progress(tmp_path) == Progress(2, 2, 0.5)


def test_microbatches_must_divide_among_the_processes(tmp_path: Path) -> None:
    config = TrainerConfig(num_steps=1, microbatches=4)
    ranks = Ranks(0, 3, torch.device("cpu"))
    message = r"^trainer\.microbatches: expected a multiple of the 3 processes, found 4$"
    with pytest.raises(TrainingError, match=message):
        train(Toys().task(), config, OptimizerConfig(), lambda step: 0.0, tmp_path, ranks, seed=0)


def test_half_precision_reaches_the_model_if_asked_for(tmp_path: Path) -> None:
    class Precision(Toy):
        def forward(self, batch: TaskBatch, step: int) -> dict[str, Term]:
            assert (batch.audio.waveforms @ self.weight[:, None]).dtype == self.expected
            return super().forward(batch, step)

    for precision, expected in (("bfloat16", torch.bfloat16), ("float32", torch.float32), (None, torch.float32)):
        task = Toys()
        task.model = Precision()
        task.model.expected = expected
        train_toys(task, tmp_path / str(precision), precision=precision)


def cpu_settings() -> tuple[bool, bool, int]:
    return bool(torch.backends.mkldnn.enabled), torch._C._get_nnpack_enabled(), torch.get_num_threads()


class Convolving(Toy):
    """Notes how its forward and backward pass are computed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 1)
        self.settings: list[tuple[bool, bool, int]] = []

    def forward(self, batch: TaskBatch, step: int) -> dict[str, Term]:
        def note(_: Any = None) -> None:
            self.settings.append(cpu_settings())

        losses = super().forward(batch, step)
        note()
        losses["whole"].sum.register_hook(note)  # type: ignore[no-untyped-call]
        return losses


@pytest.mark.parametrize(
    ("dim", "precision", "threads", "expected"),
    [
        (8, None, None, (False, False, 1)),
        (8, None, "2", (False, False, 2)),
        (8, "bfloat16", None, (True, True, 2)),
        (1024, None, None, (True, True, 2)),
    ],
    ids=str,
)
def test_only_small_models_that_train_in_float32_do_so_by_one_thread_and_plain_products(
    dim: int, precision: Any, threads: str | None, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        task = Toys()
        task.model = Convolving(dim)
        train_toys(task, tmp_path, num_steps=1, precision=precision)
        assert task.model.settings == [expected] * 2
        assert cpu_settings() == (True, True, 2)
    finally:
        torch.set_num_threads(before)


def test_flops_are_counted_again_where_what_learns_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Thawing(Toys):
        beside = nn.Linear(1, 1)

        def frozen(self, step: int) -> tuple[nn.Module, ...]:
            super().frozen(step)
            return (self.beside,) if step < 2 else ()

    toys, asked = Thawing(), []
    monkeypatch.setattr(Throughput, "count_flops_again", lambda _: asked.append(toys.asked_steps[-1]))
    train_toys(toys, tmp_path, num_steps=4)
    assert asked == [0, 2]
