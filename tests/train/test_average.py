"""A moving average of the weights is evaluated and saved; the weights themselves go on learning."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from toys import Toys, train_toys

from speechssl.checkpoint.training_state import load_progress
from speechssl.data.batches import TaskBatch
from speechssl.errors import TrainingError
from speechssl.objective.teacher import Teacher
from speechssl.train.average import WeightAverage
from speechssl.train.finetune import finetune
from speechssl.train.pretrain import pretrain
from speechssl.train.task import Measured

SETTINGS = ("trainer.num_steps=6", "trainer.microbatches=1", "trainer.evaluate_steps=3", "trainer.log_steps=3")
AVERAGE = "trainer.average_decay=0.5"


class Watched(Toys):
    """Notes its weight after each update and in each evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[float] = []
        self.evaluated: list[float] = []

    def evaluate(self, batch: TaskBatch, step: int) -> Measured:
        self.evaluated.append(self.model.weight.item())
        return super().evaluate(batch, step)

    def write_model(self, step: int, folder: Path, weights: Mapping[str, Tensor]) -> None:
        super().write_model(step, folder, weights)
        self.trained.append(weights["weight"].item())


def test_the_average_is_evaluated_and_saved_and_the_weights_learn_as_without_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_steps": 6, "evaluate_steps": 1, "checkpoint_steps": 1}
    plain = train_toys(Watched(), tmp_path / "plain", **settings)
    averaged = train_toys(Watched(), tmp_path / "averaged", average_decay=0.4, **settings)
    assert averaged.model.weight.item() == plain.model.weight.item() != 0
    expected, average = [], 0.0
    for step, weight in enumerate(plain.trained, 1):
        decay = min(0.4, (1 + step) / (10 + step))  # which grows until the fifth update
        average = decay * average + (1 - decay) * weight
        expected.append(average)
    assert averaged.trained == pytest.approx(expected)
    assert averaged.evaluated[::2] == averaged.evaluated[1::2] == averaged.trained
    assert averaged.trained != plain.trained
    assert float((tmp_path / "averaged" / "latest" / "config.json").read_text()) == averaged.trained[-1]


def test_what_is_no_part_of_the_saved_model_is_not_averaged() -> None:
    saved = nn.ModuleDict({"learns": nn.Linear(1, 1), "teacher": Teacher(nn.Linear(1, 1)), "norm": nn.BatchNorm1d(1)})
    model = nn.ModuleDict({"saved": saved, "beside": nn.Linear(1, 1)})
    average = WeightAverage(model, saved, 0.9)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for weight in model.state_dict().values():
        weight.add_(1)
    with average.in_place() as learning:
        changed = {name for name, weight in model.state_dict().items() if torch.equal(weight, before[name])}
    names = ("saved.learns.weight", "saved.learns.bias", "saved.norm.weight", "saved.norm.bias")
    assert changed == set(names)
    assert learning.keys() == {f"raw/{name}" for name in names}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name] + 1), name


def test_an_error_leaves_the_weights_that_learn() -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, model, 0.9)
    model.weight.data.fill_(7.0)
    with pytest.raises(ZeroDivisionError), average.in_place():
        raise ZeroDivisionError
    assert model.weight.item() == 7.0


def states(run: Path) -> dict[str, Tensor]:
    folder = run / "latest"
    return {
        f"{name}: {key}": tensor
        for name in ("model", "training")
        for key, tensor in safetensors.torch.load_file(folder / f"{name}.safetensors").items()
    }


@pytest.fixture(params=["pretrain", "finetune"])
def start(request: pytest.FixtureRequest, corpus: Any, pretrained: Path) -> Callable[..., None]:
    def start(run: Path, *overrides: str) -> None:
        if request.param == "pretrain":
            pretrain(corpus.pretrain_config(*SETTINGS, *overrides), run)
        else:
            finetune(corpus.finetune_config(*SETTINGS, f"init={pretrained}", *overrides), run)

    return start


def test_it_resumes_exactly_and_learns_as_without_it(
    start: Callable[..., None], tmp_path: Path, kill_after_save: Callable[..., None]
) -> None:
    kill_after_save(lambda: start(tmp_path / "resumed", AVERAGE))
    assert load_progress(tmp_path / "resumed").step == 3
    start(tmp_path / "resumed", AVERAGE)
    start(tmp_path / "whole", AVERAGE)
    start(tmp_path / "plain")
    resumed, whole, plain = (states(tmp_path / name) for name in ("resumed", "whole", "plain"))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    learning = {key.replace("training: raw/", ""): tensor for key, tensor in whole.items() if "raw/" in key}
    assert learning
    differ = 0
    for name, tensor in learning.items():
        short = name.removeprefix("labeled.ctc.").removeprefix("ctc.")
        assert torch.equal(tensor, plain[f"model: {short}"]), name
        differ += not torch.equal(tensor, whole[f"model: {short}"])
    assert differ > len(learning) / 2
    with pytest.raises(TrainingError, match=r"trainer\.average_decay was 0\.5, now None"):
        start(tmp_path / "whole", "trainer.num_steps=7")
