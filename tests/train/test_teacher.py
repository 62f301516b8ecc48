"""An objective with a teacher and two terms: on two ranks as on one, resumed as never stopped."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.training_state import load_progress
from speechssl.objective.teacher import Teacher, split_weights
from speechssl.train.log import read_log

SCRIPT = Path(__file__).with_name("teacher_run.py")
SETTINGS = (
    "trainer.num_steps=4",
    "trainer.microbatches=2",
    "trainer.log_steps=1",
    "trainer.evaluate_steps=2",
    "trainer.checkpoint_steps=2",
    "optimizer.epsilon=1e-3",  # or rounding errors of gradients that are 0 would become whole steps
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(
    corpus: Any, folder: Path, *settings: str, launcher: tuple[str, ...] = (), stop_after: str = ""
) -> subprocess.CompletedProcess[str]:
    file, *options = corpus.arguments("pretrain", *SETTINGS, *settings)
    command = [sys.executable, *launcher, str(SCRIPT), file, str(folder), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "STOP_AFTER": stop_after}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert bool(result.returncode) is bool(stop_after), result.stderr
    return result


def states(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tensors = safetensors.torch.load_file(folder / "latest" / "training.safetensors")
    teacher = {name: tensor for name, tensor in tensors.items() if name.startswith("teacher/")}
    return dict(read_model(folder / "latest").weights), teacher


@pytest.fixture(scope="module")
def whole(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "whole"
    run(corpus, folder)
    return folder


def test_two_ranks_train_it_as_one(corpus: Any, whole: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    stopped = run(corpus, two, launcher=TORCHRUN, stop_after="3 1")  # which only the second process notices
    assert stopped.stderr.count("pretrain: stopped by a signal after step 3 of 4, which is saved") == 1
    assert load_progress(two).step == 3
    run(corpus, two, launcher=TORCHRUN)
    for found, expected in zip(states(two), states(whole), strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    for mine, theirs in zip(read_log(two), read_log(whole), strict=True):
        for name in ("loss", "distillation", "loudness"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4)
        assert mine["loss"] == pytest.approx(mine["distillation"] + 0.3 * mine["loudness"], rel=1e-6)


def test_it_stops_when_asked_and_resumes_exactly_with_its_teacher(corpus: Any, whole: Path, tmp_path: Path) -> None:
    stopped = run(corpus, tmp_path / "run", "data.num_workers=1", stop_after="1 0")
    assert stopped.returncode == 75
    message = "pretrain: stopped by SIGTERM after step 1 of 4, which is saved; run the same command again to resume"
    assert stopped.stderr.splitlines()[-1] == message, "and nothing of leaked semaphores"
    assert load_progress(tmp_path / "run").step == 1
    run(corpus, tmp_path / "run")
    for found, expected in zip(states(tmp_path / "run"), states(whole), strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


def test_a_teacher_is_saved_with_the_training_and_not_with_the_model(whole: Path) -> None:
    weights, teacher = states(whole)
    assert teacher
    assert not any("teacher" in name for name in weights)
    student = {name.removeprefix("encoder."): tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    moved = 0
    for name, tensor in teacher.items():
        own = student[name.removeprefix("teacher/objective.teacher.network.")]
        assert (own - tensor).abs().max() < 0.1
        moved += int(not torch.equal(own, tensor))
    assert moved > len(teacher) / 2, "it follows, at a distance"


def test_a_teacher_has_neither_noise_nor_gradients() -> None:
    model = nn.ModuleDict(
        {"student": nn.Linear(3, 3), "teacher": Teacher(nn.Sequential(nn.Linear(3, 3), nn.Dropout()))}
    )
    model.train()
    assert not any(module.training for module in model["teacher"].modules())
    assert not model["teacher"](torch.ones(1, 3)).requires_grad
    weights, teachers = split_weights(model)
    assert set(weights) == {"student.weight", "student.bias"}
    assert set(teachers) == {"teacher.network.0.weight", "teacher.network.0.bias"}


def test_following_is_a_moving_average_and_copies_buffers() -> None:
    student, teacher = nn.BatchNorm1d(2), Teacher(nn.BatchNorm1d(2))
    nn.init.constant_(student.weight, 3.0)
    student.running_mean.fill_(7.0)
    teacher.follow(student, decay=0.75)
    assert teacher.network.weight.tolist() == [1.5, 1.5]
    assert teacher.network.running_mean.tolist() == [7.0, 7.0]
    teacher.follow(student, decay=0.0)
    assert teacher.network.weight.tolist() == [3.0, 3.0]
