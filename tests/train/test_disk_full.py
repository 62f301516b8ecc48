"""A disk that is full at any moment of a run: one line, and everything that was saved can be used."""

import io
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from toys import Toys, train_toys

from speechssl.checkpoint.training_state import find_progress, load_training_tensors
from speechssl.errors import SpeechSSLError
from speechssl.train import run as runs
from speechssl.train.log import read_log
from speechssl.train.pretrain import pretrain
from speechssl.train.throughput import METRICS

NUM_STEPS = 2
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def fill_disk(after: int, run: Path, kind: Literal["data", "names"]) -> None:
    """Let every write fail after so many events that make or change a file of the run.

    Without room for data writing fails; without room for names making and naming files fails too. Other processes are
    not affected: it is this process that may not write.
    """
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not is_write and event not in ("os.mkdir", "os.symlink", "os.rename", "shutil.rmtree"):
            return
        if str(run) not in str(arguments[0]):
            return
        count += 1
        if count <= after:
            return
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        if kind == "names" and (is_write or event in ("os.mkdir", "os.symlink", "os.rename")):
            raise OSError(28, "No space left on device", str(arguments[0]))

    sys.addaudithook(hook)


def message_of(train: Callable[[], object]) -> str:
    """Train in a child process, since its disk stays full; return its error, or nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        sys.stderr = io.StringIO()
        try:
            train()
            message = ""
        except SpeechSSLError as error:
            message = str(error)
        except BaseException as error:
            message = f"no known error: {error!r}\n"
        os.write(writer, message.encode() + b"\0")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        content = answers.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert content.endswith(b"\0"), content
    return content[:-1].decode()


def assert_whole(run: Path) -> int:
    """The run can be resumed, and nothing lies about; return the updates that are saved."""
    left = list(run.rglob(".*"))
    assert not left, left
    progress, damaged = find_progress(run)
    assert not damaged
    if progress.step:
        load_training_tensors(run)
        assert (run / "latest" / "config.json").read_text()
    return progress.step


def train_explained(task: Toys, run: Path) -> Toys:
    settings: dict[str, Any] = {"num_steps": NUM_STEPS, "checkpoint_steps": 1, "evaluate_steps": 2}
    with runs._explained_writing(run):
        return train_toys(task, run, **settings)


@pytest.mark.parametrize("kind", ["data", "names"])
def test_a_disk_that_is_full_at_any_write_ends_the_run_in_one_line(
    tmp_path: Path, kind: Literal["data", "names"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which would take most of the time
    expected = train_explained(Toys(), tmp_path / "undisturbed")
    number, saved, named = 0, set(), set()
    while True:
        run = tmp_path / str(number)
        run.mkdir()

        def train(number: int = number, run: Path = run) -> None:
            fill_disk(number, run, kind)
            train_explained(Toys(), run)

        message = message_of(train)
        step = assert_whole(run)
        if not message:
            break
        assert "\n" not in message
        assert message.startswith(f"{run}/")
        assert "cannot be written" in message
        assert "intact" in message
        named.add(message.removeprefix(f"{run}/").split(":")[0].split("/")[0])
        saved.add(step)

        # With room again the same command goes on as if nothing had happened.
        task = Toys()
        if step:
            nn.init.constant_(task.model.weight, float((run / "latest" / "config.json").read_text()))
        train_explained(task, run)
        assert torch.equal(task.model.weight, expected.model.weight)
        logs = [read_log(folder) for folder in (run, tmp_path / "undisturbed")]
        without_times = [[{name: line[name] for name in line.keys() - METRICS} for line in log] for log in logs]
        assert without_times[0] == without_times[1]
        number += 1
    assert step == NUM_STEPS
    assert saved >= set(range(NUM_STEPS)), "the disk was not full in every part of the run"
    assert named >= {"log.jsonl", "checkpoints"}


@pytest.mark.parametrize(("file_bytes", "named"), [(0, "run.json"), (8_000, "checkpoints/step_00000001")])
def test_a_whole_run_ends_in_one_line_and_resumes(corpus: Any, tmp_path: Path, file_bytes: int, named: str) -> None:
    config = corpus.pretrain_config("trainer.num_steps=2", "trainer.microbatches=1", "trainer.checkpoint_steps=1")

    def train() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        pretrain(config, tmp_path / "run")

    message = message_of(train)
    assert message.startswith(f"{tmp_path / 'run' / named}: cannot be written")
    assert "\n" not in message
    assert assert_whole(tmp_path / "run") == 0
    pretrain(config, tmp_path / "run")
    assert assert_whole(tmp_path / "run") == 2
