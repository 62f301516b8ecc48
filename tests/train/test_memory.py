"""Running out of memory is a line that names the batch and says what to change."""

import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from speechssl.errors import TrainingError
from speechssl.train.finetune import finetune
from speechssl.train.finetune_model import FinetuneModel
from speechssl.train.log import MetricSums
from speechssl.train.memory import explained_shortage
from speechssl.train.pretrain import PretrainModel, pretrain

ADVICE = (
    "halve batches.seconds and double trainer.microbatches (an update stays as large), or lower batches.max_seconds"
)


def ask_for_too_much() -> None:
    torch.empty(2**50)


def fail_as_a_gpu_does() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity ...")


@pytest.mark.parametrize("fail", [ask_for_too_much, fail_as_a_gpu_does])
def test_the_batch_that_does_not_fit_is_named(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Any
) -> None:
    forward = PretrainModel.forward
    batches = []

    def forward_or_fail(self: PretrainModel, batch: Any, step: int) -> Any:
        batches.append(batch)
        if len(batches) == 4:  # the second of the second update
            fail()
        return forward(self, batch, step)

    monkeypatch.setattr(PretrainModel, "forward", forward_or_fail)
    with pytest.raises(TrainingError) as caught:
        pretrain(corpus.pretrain_config(), tmp_path / "run")
    rows, num_samples = batches[-1].audio.waveforms.shape
    places = [f"{corpus.train}:{index + 3}" for index in batches[-1].audio.indices]
    rest = f" and {rows - 3} more" if rows > 3 else ""
    assert str(caught.value) == (
        f"step 2 on cpu, a batch of {rows} x {num_samples / 16_000:.1f} s ({', '.join(places[:3])}{rest}): "
        f"out of memory: {ADVICE}"
    )


def test_a_dev_batch_that_does_not_fit_is_named(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FinetuneModel, "evaluate", lambda *arguments: ask_for_too_much())
    with pytest.raises(TrainingError) as caught:
        finetune(corpus.finetune_config("trainer.num_steps=1", stage="scratch"), tmp_path / "run")
    assert str(caught.value).startswith("step 1 on cpu, a batch of ")
    assert f"({corpus.dev}:" in str(caught.value)


def test_memory_that_runs_out_elsewhere_is_a_line_too(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda optimizer: ask_for_too_much())
    with pytest.raises(TrainingError, match=f"^{re.escape(f'pretrain on cpu: out of memory: {ADVICE}')}$"):
        pretrain(corpus.pretrain_config(), tmp_path / "run")


def test_a_worker_that_is_killed_is_a_line(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = MetricSums.add

    def kill_workers(*arguments: Any) -> None:
        add(*arguments)
        for worker in multiprocessing.active_children():
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)

    monkeypatch.setattr(MetricSums, "add", kill_workers)
    message = (
        r"^pretrain on cpu: a process that reads audio ended unexpectedly, .*: lower data\.num_workers \(0 reads in .*$"
    )
    with pytest.raises(TrainingError, match=message):
        pretrain(corpus.pretrain_config("data.num_workers=1"), tmp_path / "run")


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "Connection refused"), EOFError(), FileNotFoundError()])
def test_a_worker_that_is_killed_while_it_hands_over_a_batch_is_a_line(
    error: Exception, corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hand_over(*_: Any, **__: Any) -> Iterator[Any]:
        yield from ()
        raise error

    monkeypatch.setattr("speechssl.data.batches.DataLoader", hand_over)
    with pytest.raises(TrainingError, match=r"^pretrain on cpu: a process that reads audio ended unexpectedly, "):
        pretrain(corpus.pretrain_config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "is_shortage"),
    [
        (MemoryError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("unable to write to file </torch_12>: No space left on device (28)"), True),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(28, "No space left on device"), False),  # a full disk
    ],
    ids=str,
)
def test_other_errors_stay_as_they_are(error: Exception, is_shortage: bool) -> None:
    with pytest.raises(TrainingError if is_shortage else type(error)), explained_shortage(lambda: "here"):
        raise error
