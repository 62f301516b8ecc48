"""Compiled updates: few graphs, each whole, with the losses and gradients of those that are not compiled.

Dropout is off wherever numbers are compared: a compiled one draws from the same generator in its own way.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_cases import NAMES, Tones
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.training_state import load_progress
from speechssl.errors import TrainingError
from speechssl.objective.objective import Losses, weighted_sum
from speechssl.train import compiled, trainer, update
from speechssl.train.compiled import compiled_calls
from speechssl.train.finetune import finetune
from speechssl.train.log import read_log
from speechssl.train.pretrain import PretrainConfig, pretrain
from speechssl.train.task import Task
from speechssl.train.throughput import METRICS

COMPILED = ("trainer.compile=true", "batches.fixed_shapes=true")
NO_NOISE = tuple(
    f"encoder.context.{name}=0.0" for name in ("dropout", "input_dropout", "attention_dropout", "layer_drop")
)
NO_DROPOUT = ("regularization.activation_dropout=0.0", "regularization.layer_drop=0.0")
ONE_SHAPE = ("batches.fixed_shapes=true", "batches.num_buckets=1")
SMALL = (  # an encoder that is traced fast, and one batch an epoch
    "encoder.feature_encoder={dims=[16, 16], kernels=[40, 40], strides=[20, 32], norm='layer'}",
    "encoder.context.num_layers=1",
    "batches={seconds=9.0, min_seconds=1.0, num_buckets=1, fixed_shapes=true}",
)
FAST = ("masked_prediction", "wav2vec2")
traced_objectives = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in NAMES]
)
LAST_LAYERS = dict.fromkeys(("data2vec", "dinosr", "spidr"), "objective.num_target_layers=1")
FEWER = LAST_LAYERS | {"reversed_future": "objective.gaps=[2, 5]"}
CAUSAL_CONVOLUTIONS = ("reversed_future", "wav2vec")


@dataclass
class Compiler:
    """A backend that counts the graphs, noting the update of each."""

    step: int = 0
    steps: list[int] = field(default_factory=list)
    run: Callable[..., Any] = aot_eager  # forward and backward as graphs, without code of their own

    def __call__(self, graph: Any, inputs: Any) -> Any:
        made = self.run(graph, inputs)  # or raises what has the graph traced anew, with a number as a constant
        self.steps.append(self.step)
        return made


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    torch._dynamo.reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep all of it
    compiler = Compiler()
    monkeypatch.setattr(compiled, "BACKEND", compiler)
    seed = update._seed_noise

    def begin(run_seed: int, number: int) -> None:
        compiler.step = number
        seed(run_seed, number)

    monkeypatch.setattr(update, "_seed_noise", begin)
    yield compiler
    torch._dynamo.reset()


def updates_of(task: Task[Any]) -> list[dict[str, Tensor]]:
    """What two updates give: sums of losses, gradients, and what the objective remembers."""
    update.freeze(task.model, task.frozen(0))
    found = []
    for step, batch in enumerate(task.train.read([0, 1])):
        task.model.zero_grad()
        torch.manual_seed(step)
        losses: Losses = task.model(batch, step)
        weighted_sum(losses, batch.counts).backward()  # type: ignore[no-untyped-call]
        task.after_update(step + 1, lambda tensor: None)
        sums = {f"loss {name}": term.sum.detach() for name, term in losses.items()}
        gradients = {f"gradient of {n}": p.grad for n, p in task.model.named_parameters() if p.grad is not None}
        found.append(sums | gradients | {name: value.clone() for name, value in task.model.named_buffers()})
    return found


def assert_same_numbers(name: str, tones: Tones, settings: Sequence[str]) -> None:
    """Compare two updates with those that are not compiled: losses, gradients and what is remembered."""
    plain, task = (tones.task(name, *settings, "trainer.compile=true") for _ in range(2))
    with compiled_calls(task.compiled, task.train):
        found = updates_of(task)
    for mine, theirs in zip(found, updates_of(plain), strict=True):
        assert mine.keys() == theirs.keys()
        for key, expected in theirs.items():
            near = 1e-4 * expected.double().norm() + 1e-5
            assert (mine[key].double() - expected).norm() <= near, key


@traced_objectives
def test_every_objective_is_one_graph_with_the_same_numbers(name: str, tones: Tones, compiler: Compiler) -> None:
    settings = [*SMALL, *([FEWER[name]] if name in FEWER else [])]
    if name in CAUSAL_CONVOLUTIONS:
        settings[settings.index("encoder.context.num_layers=1")] = "encoder.context.kernels=[2, 3]"
    assert_same_numbers(name, tones, settings)
    assert len(compiler.steps) == 1, "neither another batch of the shape nor another update needs one"


def run_of(settings: tuple[str, ...], corpus: Any, folder: Path) -> Task[Any]:
    """Pretrain; return what was trained."""
    tasks: list[Task[Any]] = []
    train = trainer.train

    def noted(task: Task[Any], *arguments: Any) -> None:
        tasks.append(task)
        train(task, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speechssl.train.run.train", noted)
        pretrain(corpus.pretrain_config(*settings), folder)
    return tasks[0]


def test_nothing_is_compiled_after_the_first_pass(corpus: Any, compiler: Compiler, tmp_path: Path) -> None:
    """As base is trained: group norm, contrast, dropout and layer drop; with evaluations in between."""
    compiler.run = lambda graph, inputs: graph.forward
    settings = ("trainer.num_steps=200", "trainer.microbatches=1", "trainer.log_steps=50", "trainer.evaluate_steps=50")
    task = run_of((*COMPILED, *settings), corpus, tmp_path / "run")
    assert 2 <= len(compiler.steps) <= task.train.sampler.num_shapes
    assert max(compiler.steps) < task.train.sampler.num_batches < 30
    assert [record["step"] for record in read_log(tmp_path / "run") if record["split"] == "dev"] == [50, 100, 150, 200]


@pytest.mark.parametrize("num_steps", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_what_gathers_over_an_update_needs_two_graphs_a_shape(
    num_steps: int, tones: Tones, compiler: Compiler, tmp_path: Path
) -> None:
    """In the recipe of the prompts, an objective that counts its codes."""
    compiler.run = lambda graph, inputs: graph.forward
    settings = (f"trainer.{name}={num_steps}" for name in ("num_steps", "evaluate_steps", "checkpoint_steps"))
    config = tones.config("best_rq", *SMALL, *settings, "trainer.compile=true", "batches={seconds=3.0, num_buckets=2}")
    pretrain(config, tmp_path / "run")
    num_shapes = 3
    assert num_shapes < len(compiler.steps) <= 2 * num_shapes <= compiled.GRAPHS_PER_SHAPE * num_shapes
    assert max(compiler.steps) < 20


@pytest.mark.slow
def test_gradients_of_pretraining_stay(corpus: Any, compiler: Compiler, record_gradients: Any, tmp_path: Path) -> None:
    settings = (*NO_NOISE, *ONE_SHAPE, "objective.target_dropout=0.0", "trainer.num_steps=2")
    plain, found = (
        record_gradients(lambda: pretrain(corpus.pretrain_config(*settings, choice), tmp_path / choice))  # noqa: B023
        for choice in ("trainer.compile=false", "trainer.compile=true")
    )
    assert compiler.steps
    found.assert_close(plain, 1e-3)


def test_gradients_of_fine_tuning_stay(corpus: Any, compiler: Compiler, record_gradients: Any, tmp_path: Path) -> None:
    """With padding, masks and two views of each batch; CTC is no part of a graph."""
    settings = (
        *NO_DROPOUT,
        *ONE_SHAPE,
        "trainer.num_steps=2",
        "regularization.consistency=0.2",
    )

    def run(choice: str) -> Any:
        config = corpus.finetune_config(*settings, choice, stage="scratch")
        return record_gradients(lambda: finetune(config, tmp_path / choice))

    plain, found = run("trainer.compile=false"), run("trainer.compile=true")
    assert 1 <= len(compiler.steps) <= 2, "of what an epoch leaves over, another one"
    found.assert_close(plain, 1e-3)
    logs = [read_log(tmp_path / f"trainer.compile={value}") for value in ("true", "false")]
    for mine, theirs in zip(*logs, strict=True):
        for metric in (mine.keys() | theirs.keys()) - {*METRICS, "split"}:
            assert mine[metric] == pytest.approx(theirs[metric], rel=1e-3, abs=1e-4), metric


def test_a_joint_update_is_compiled_stream_by_stream(corpus: Any, compiler: Compiler, tmp_path: Path) -> None:
    compiler.run = lambda graph, inputs: graph.forward
    objective = (
        'joint.objective={kind="masked_prediction", num_clusters=6, num_bands=8, comparison_dim=16, fit_seconds=20.0}',
        "joint.objective.mask={start_prob=0.1, span_frames=2}",
        "joint.batches={seconds=3.0, min_seconds=0.3, max_seconds=1.5, num_buckets=1, fixed_shapes=true}",
        f"data.unlabeled={corpus.train}",
        "trainer.num_steps=2",
        "batches.num_buckets=1",
    )
    finetune(corpus.finetune_config(*COMPILED, *objective, stage="scratch"), tmp_path / "run")
    assert 2 <= len(compiler.steps) <= 4, "the labeled batches and the others"
    config = corpus.finetune_config(*COMPILED, *objective, "joint.batches.fixed_shapes=false", stage="scratch")
    with pytest.raises(TrainingError, match=r"^trainer\.compile: expected fixed_shapes = true in .* every data set"):
        finetune(config, tmp_path / "other")


def test_what_is_divided_is_not_compiled(tones: Tones, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r'^trainer\.compile: expected parallel = "ddp", found "fsdp"'):
        pretrain(tones.config("masked_prediction", *COMPILED, "trainer.parallel=fsdp"), tmp_path / "run")


@pytest.mark.parametrize(
    "backend", ["traced", *(pytest.param(name, marks=pytest.mark.slow) for name in ("aot_eager", "inductor"))]
)
def test_a_compiled_run_resumes_exactly_and_only_as_one(
    backend: str,
    tones: Tones,
    compiler: Compiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_after_save: Callable[[Callable[[], None]], None],
) -> None:
    """With dropout and layer drop, which come from the same draws in both parts."""
    compiler.run = lambda graph, inputs: graph.forward
    if backend != "traced":
        monkeypatch.setattr(compiled, "BACKEND", backend)

    noise = [f"encoder.context.{name}=0.3" for name in ("dropout", "input_dropout", "layer_drop")]

    def settings(choice: str) -> PretrainConfig:
        return tones.config("masked_prediction", *SMALL, *noise, f"trainer.compile={choice}")

    pretrain(settings("true"), tmp_path / "whole")
    torch._dynamo.reset()
    kill_after_save(lambda: pretrain(settings("true"), tmp_path / "run"))
    assert load_progress(tmp_path / "run").step == 2
    with pytest.raises(TrainingError, match=r"different settings \(trainer\.compile was True, now False\)"):
        pretrain(settings("false"), tmp_path / "run")
    torch._dynamo.reset()
    pretrain(settings("true"), tmp_path / "run")
    found, expected = (read_model(tmp_path / name / "latest").weights for name in ("run", "whole"))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


class Breaking(nn.Module):
    """Looks at a value, which a graph cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x if x.sum() > 0 else x


class Growing(Breaking):
    """Takes any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def test_what_cannot_be_compiled_is_refused_by_name(tones: Tones, compiler: Compiler) -> None:
    batches = tones.task("masked_prediction", *SMALL).train
    compiler.run = lambda graph, inputs: graph.forward
    breaking = Breaking()
    message = r"^trainer\.compile: Breaking cannot be compiled: \w[^\n]*; set trainer\.compile = false$"
    with compiled_calls((breaking,), batches), pytest.raises(TrainingError, match=message):
        breaking(torch.ones(2))
    assert breaking(torch.ones(2)).tolist() == [1, 1], "as it was"
    growing = Growing()
    message = r"^trainer\.compile: expected Growing to need 8 graphs, found more; set trainer\.compile = false$"
    with compiled_calls((growing,), batches):
        for size in range(2, 10):
            growing(torch.ones(size))
        growing.eval()(torch.ones(11))
        with pytest.raises(TrainingError, match=message):
            growing.train()(torch.ones(12))
    assert len(compiler.steps) == 8


@pytest.mark.slow
def test_code_for_the_processor_computes_the_same(tones: Tones, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real compiler, which makes each kernel a C++ program: for minutes, on a busy machine."""
    torch._dynamo.reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    assert_same_numbers("masked_prediction", tones, SMALL)


@pytest.mark.slow
def test_two_processes_train_compiled_as_one_does_not(tones: Tones, tmp_path: Path) -> None:
    config = tones.config("masked_prediction", *SMALL)
    pretrain(config, tmp_path / "one")
    file = tmp_path / "two.json"
    file.write_text(json.dumps(tones.config("masked_prediction", *SMALL, "trainer.compile=true").to_dict()))
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [*launcher, str(Path(__file__).with_name("ranks_run.py")), str(tmp_path), str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COMPILE_BACKEND": "aot_eager"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found, expected = (read_model(tmp_path / name / "latest").weights for name in ("two", "one"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=2e-3, atol=2e-5, msg=name)
