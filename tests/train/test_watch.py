"""A process of a run that dies or hangs ends all of them, with its cause."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from speechssl.checkpoint.training_state import load_progress

PROGRAM = Path(__file__).with_name("dying_ranks.py")
GONE = "error: process 0 of 2 ends because {} has ended; see what that one said last\n"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[object]]]:
    command = [sys.executable, PROGRAM, tmp_path_factory.mktemp("said")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, list[list[object]]] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("doing", ["waits for it", "computes"])
def test_the_death_of_a_process_ends_the_other(ended: dict[str, list[list[object]]], doing: str) -> None:
    assert ended[f"killed while the other {doing}"] == [[1, GONE.format("another one")], [-9, ""]]


@pytest.mark.parametrize("doing", ["waits for it", "computes"])
def test_an_error_of_a_process_is_said_once_and_ends_the_other(
    ended: dict[str, list[list[object]]], doing: str
) -> None:
    first, second = ended[f"failed while the other {doing}"]
    assert second == [1, "error: a recording of process 1\n"]
    assert first in ([1, GONE.format("another one")], [1, GONE.format("process 1")])


def test_who_leaves_together_is_not_missed(ended: dict[str, list[list[object]]]) -> None:
    assert ended["finished"] == [[0, ""], [0, ""]]
    assert ended["stopped"] == [[75, "stopped\n"], [75, "stopped\n"]]


def start(corpus: Any, folder: Path, num_restarts: int, killed_step: str) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["pretrain", *corpus.arguments("pretrain", "trainer.num_steps=7"), "--output", folder]
    return subprocess.Popen(
        [*torchrun, "--max-restarts", str(num_restarts), PROGRAM.with_name("killed_run.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "KILLED_STEP": killed_step},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_goes_on_from_the_last_checkpoint(corpus: Any, tmp_path: Path) -> None:
    whole, restarted, stopped = (tmp_path / name for name in ("whole", "restarted", "stopped"))
    runs = [start(corpus, whole, 0, ""), start(corpus, restarted, 1, "5"), start(corpus, stopped, 0, "5")]
    said = [run.communicate(timeout=600)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 1], said
    assert "resumes after step 3" in said[1]
    assert "process 0 of 2 ends because another one has ended" in said[2]
    assert "Signal 9 (SIGKILL)" in said[2], "torchrun's own summary"
    assert load_progress(stopped).step == 3
    assert start(corpus, stopped, 0, "").wait(600) == 0
    for file in ("model.safetensors", "training.safetensors"):
        expected = (whole / "latest" / file).read_bytes()
        assert expected == (restarted / "latest" / file).read_bytes() == (stopped / "latest" / file).read_bytes()
