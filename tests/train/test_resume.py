"""Runs that are killed again and again end as if they had never been."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.training_state import load_progress
from speechssl.train.finetune import finetune
from speechssl.train.log import MetricSums, read_log, read_samples
from speechssl.train.parallel import Ranks
from speechssl.train.pretrain import pretrain
from speechssl.train.run import _locked
from speechssl.train.throughput import METRICS

# Runs the command in a child that has everything imported already, which else takes seconds each time.
LAUNCHER = """
import json, os, runpy, sys
import torch._dynamo
import speechssl.train.finetune, speechssl.train.pretrain

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        for name, descriptor in ((os.devnull, 0), (request["stdout"], 1), (request["stderr"], 2)):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
        sys.argv = ["speechssl", *request["arguments"]]
        runpy.run_module("speechssl", run_name="__main__", alter_sys=True)
        sys.exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
NUM_STEPS = 60


class Command:
    """A running command, a real one or a child of the launcher."""

    def __init__(self, process: int, wait: Callable[[], int], output: Path) -> None:
        self.process = process
        self.wait = wait
        self.output = output

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, (self.output / "stderr").read_text()


class Launcher:
    """Starts ``speechssl`` with arguments."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.count = 0

    def _new_folder(self) -> Path:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        return folder

    def start(self, *arguments: str | Path) -> Command:
        """Start it in a child of the launcher."""
        assert self.process.stdin
        assert self.process.stdout
        output = self._new_folder()
        files = {name: str(output / name) for name in ("stdout", "stderr")}
        for file in files.values():
            Path(file).touch()  # the child may be killed before it gets there
        self.process.stdin.write(json.dumps({"arguments": [str(a) for a in arguments], **files}) + "\n")
        self.process.stdin.flush()
        answers: IO[str] = self.process.stdout
        return Command(int(answers.readline()), lambda: int(answers.readline()), output)

    def start_afresh(self, *arguments: str | Path) -> Command:
        """Start it as a user does."""
        output = self._new_folder()
        with (output / "stdout").open("w") as stdout, (output / "stderr").open("w") as stderr:
            command = [sys.executable, "-m", "speechssl", *map(str, arguments)]
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=ENVIRONMENT)
        return Command(process.pid, process.wait, output)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    command = [sys.executable, "-c", LAUNCHER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        yield Launcher(process, tmp_path_factory.mktemp("output"))
        assert process.stdin
        process.stdin.close()


def wait_for(condition: Callable[[], object], command: Command) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 120
    while not condition():
        error = (command.output / "stderr").read_text()
        assert time.monotonic() < deadline, error
        assert "error:" not in error, error
        time.sleep(0.002)


def has_reached(run: Path, step: int) -> bool:
    records = read_log(run)
    return bool(records) and int(records[-1]["step"]) >= step


def kill_at_random(command: Command, run: Path, step: int, generator: np.random.Generator) -> None:
    """Kill a run at the start, some time after a step, or while it writes its next checkpoint."""
    kind = generator.choice(["start", "step", "checkpoint"], p=[0.1, 0.5, 0.4])
    if kind == "start":
        time.sleep(generator.uniform(0, 0.5))
    else:
        wait_for(lambda: has_reached(run, step), command)
        if kind == "checkpoint":
            wait_for(lambda: list(run.glob("**/.*.partial")) or has_reached(run, step + 8), command)
        time.sleep(generator.uniform(0, 0.002 if kind == "checkpoint" else 0.05))
    command.kill()


def train_through_kills(
    launcher: Launcher,
    stage: str,
    run: Path,
    arguments: list[str],
    workers: list[int],
    num_steps: int,
    generator: np.random.Generator,
) -> None:
    """Kill a run once for each number of workers but the last, and let it finish with that."""
    for number, num_workers in enumerate(workers):
        start = launcher.start_afresh if stage == "pretrain" and number == 0 else launcher.start
        options = ("--output", run, "--set", f"data.num_workers={num_workers}")
        command = start(stage, *arguments, *options)
        if number < len(workers) - 1:
            # In the first half, so that a fast machine is not at the end before the last kill.
            kill_at_random(command, run, 1 + number * num_steps // (2 * (len(workers) - 1)), generator)
            assert load_progress(run).step < num_steps, "the run was over before it was killed"
        else:
            assert command.wait() == 0, (command.output / "stderr").read_text()
        assert (command.output / "stdout").read_text() == ""


def assert_same_runs(run: Path, expected: Path) -> None:
    """Everything but the speed is the same, to the bit."""
    assert load_progress(run) == load_progress(expected)
    names = {path.relative_to(expected).as_posix() for path in (expected / "checkpoints").rglob("*")}
    assert {path.relative_to(run).as_posix() for path in (run / "checkpoints").rglob("*")} == names
    assert len(names) >= 5
    for name in sorted(names):
        if (expected / name).is_file():
            assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    for link in ("latest", "best"):
        assert (run / link).readlink() == (expected / link).readlink()
    logs = [read_log(folder) for folder in (run, expected)]
    for record in logs[0] + logs[1]:
        assert (record.get("audio_seconds_per_second", 0) > 0) == (record["split"] == "train")
    without_times = [[{name: line[name] for name in line.keys() - METRICS} for line in lines] for lines in logs]
    assert without_times[0] == without_times[1]
    assert read_samples(run) == read_samples(expected)
    steps = [record["step"] for record in logs[0] if record["split"] == "train"]
    assert steps == sorted(set(steps))


def arguments_of(stage: str, corpus: Any, pretrained: Path, num_steps: int) -> list[str]:
    overrides = [f"trainer.num_steps={num_steps}"]
    if stage == "finetune":
        overrides += [f"init={pretrained}", "head_only_steps=9", "feature_encoder_is_frozen=true"]
        overrides += ["trainer.average_decay=0.9"]
    arguments: list[str] = corpus.arguments(stage, *overrides)
    return arguments


def train_undisturbed(stage: str, corpus: Any, pretrained: Path, num_steps: int, run: Path) -> None:
    _, *options = arguments_of(stage, corpus, pretrained, num_steps)
    overrides = options[1::2]
    if stage == "pretrain":
        pretrain(corpus.pretrain_config(*overrides), run)
    else:
        finetune(corpus.finetune_config(*overrides), run)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_five_kills_change_nothing(
    launcher: Launcher, corpus: Any, pretrained: Path, tmp_path: Path, stage: str
) -> None:
    train_undisturbed(stage, corpus, pretrained, NUM_STEPS, tmp_path / "undisturbed")
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed of the kills: {seed}")  # noqa: T201
    arguments = arguments_of(stage, corpus, pretrained, NUM_STEPS)
    generator = np.random.default_rng(seed)
    train_through_kills(launcher, stage, tmp_path / "run", arguments, [0, 1, 0, 2, 0, 0], NUM_STEPS, generator)
    assert_same_runs(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_fifty_kills_change_nothing(
    launcher: Launcher, corpus: Any, pretrained: Path, tmp_path: Path, stage: str
) -> None:
    train_undisturbed(stage, corpus, pretrained, 150, tmp_path / "undisturbed")
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed of the kills: {seed}")  # noqa: T201
    generator = np.random.default_rng(seed)
    workers = [int(number) for number in generator.choice(3, size=51, p=[0.9, 0.05, 0.05])]  # which take long to start
    arguments = arguments_of(stage, corpus, pretrained, 150)
    train_through_kills(launcher, stage, tmp_path / "run", arguments, workers, 150, generator)
    assert_same_runs(tmp_path / "run", tmp_path / "undisturbed")


def test_a_truncated_checkpoint_changes_nothing(corpus: Any, tmp_path: Path) -> None:
    run, arguments = tmp_path / "run", corpus.arguments("pretrain", "trainer.num_steps=6")
    for folder in (run, tmp_path / "undisturbed"):
        pretrain(corpus.pretrain_config("trainer.num_steps=6"), folder)
    damaged = run / "checkpoints" / "step_00000006" / "training.safetensors"
    os.truncate(damaged, 200)
    result = CliRunner().invoke(app, ["pretrain", *arguments, "--output", str(run)])
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[:2] == [
        f"warning: {damaged}: expected what was written, found it truncated or damaged: "
        "falls back to the checkpoint after step 3",
        f"pretrain: {run} resumes after step 3",
    ]
    assert_same_runs(run, tmp_path / "undisturbed")


def descendants(process: int) -> set[int]:
    """The children of a process, their children and so on."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, last = {process}, set[int]()
    while found != last:
        last, found = found, found | {child for child, parent in parents.items() if parent in found}
    return found - {process}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_folder_is_one_process_own_until_that_is_killed(launcher: Launcher, corpus: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = corpus.arguments("pretrain", "trainer.num_steps=100000", "trainer.evaluate_steps=100000")
    first = launcher.start("pretrain", *arguments, "--output", run, "--set", "data.num_workers=1")
    stopped: set[int] = set()
    try:
        wait_for(lambda: has_reached(run, 4), first)
        before = (run / "run.json").read_bytes()
        second = CliRunner().invoke(app, ["pretrain", *arguments, "--output", str(run)])
        assert second.exit_code == 1
        assert second.stdout == ""
        assert second.stderr == f"error: {run}: another process is training in this folder\n"
        assert (run / "run.json").read_bytes() == before

        # Its loader's worker outlives it for a moment; here for as long as it is looked at.
        for child in descendants(first.process):
            os.kill(child, signal.SIGSTOP)
            stopped.add(child)
        assert stopped
        first.kill()
        with _locked(run, Ranks(0, 1, None)):  # type: ignore[arg-type]
            states = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in stopped]
            assert "T" in states, "nothing was shown about workers that live on"
    finally:
        for child in stopped:
            os.kill(child, signal.SIGKILL)


def test_more_steps_go_on_and_a_finished_run_is_left_alone(corpus: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(corpus.pretrain_config("trainer.num_steps=3"), run)
    for num_steps in (3, 2):  # finished, or fewer than done
        files = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        arguments = corpus.arguments("pretrain", f"trainer.num_steps={num_steps}")
        result = CliRunner().invoke(app, ["pretrain", *arguments, "--output", str(run)])
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == f"pretrain: {run} is finished after step 3\n"
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == files
    more = ["trainer.num_steps=5", "data.num_workers=1", "trainer.device=cpu", "schedule.on_extend=restart"]
    pretrain(corpus.pretrain_config(*more), run)
    assert [record["step"] for record in read_log(run) if record["split"] == "train"] == [2, 3, 4, 5]
    assert load_progress(run).step == 5


WITHOUT_FCNTL = """
import multiprocessing, sys

if __name__ == "__main__":
    for name in ("fcntl", "grp", "pwd", "resource", "termios"):
        sys.modules[name] = None
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    from speechssl.__main__ import main
    main()
"""


def test_training_works_where_there_are_no_locks_and_no_forks(corpus: Any, tmp_path: Path) -> None:
    """As on Windows: without the modules that only POSIX has, and with workers that are not forked."""
    (tmp_path / "program.py").write_text(WITHOUT_FCNTL, "utf-8")
    arguments = corpus.arguments("pretrain", "trainer.num_steps=2", "data.num_workers=1")
    command = [sys.executable, tmp_path / "program.py", "pretrain", *arguments, "--output", tmp_path / "run"]
    ran = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert ran.returncode == 0, ran.stderr
    assert f"warning: {tmp_path / 'run' / 'lock'}: no locks here (Function not implemented): make sure" in ran.stderr
    assert load_progress(tmp_path / "run").step == 2


@pytest.mark.parametrize("on_extend", ["continue", "restart"])
@pytest.mark.parametrize("planned", [4, 6])
def test_an_extended_run_resumes_exactly_and_its_rate_jumps_only_if_asked(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_extend: str, planned: int
) -> None:
    """Stopped after 4 updates, of 4 or 6 that were planned; 10 are wanted, without and with another stop after 7."""
    schedule = ['schedule={kind="cosine", warmup=0.25}', "trainer.microbatches=1", "trainer.checkpoint_steps=1"]

    def go_on(run: Path, num_steps: int, stop_after: int = 10) -> None:
        config = corpus.pretrain_config(*schedule, f"trainer.num_steps={num_steps}", f"schedule.on_extend={on_extend}")

        updates = count(load_progress(run).step)

        def stop(sums: MetricSums, *arguments: Any) -> None:
            add(sums, *arguments)
            is_update = not torch.is_inference_mode_enabled() and "updates" not in arguments[1]
            if is_update and next(updates) == stop_after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(MetricSums, "add", stop)
            pretrain(config, run)

    add = MetricSums.add
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    for run in (through, stopped):
        with nullcontext() if planned == 4 else pytest.raises(KeyboardInterrupt):
            go_on(run, planned, 4)
    go_on(through, 10)
    with pytest.raises(KeyboardInterrupt):
        go_on(stopped, 10, 7)
    assert load_progress(stopped).step == 7
    go_on(stopped, 10)

    weights = [read_model(run / "latest").weights for run in (through, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rates = [
        [record["learning_rate"] for record in read_log(run) if record["split"] == "train"]
        for run in (through, stopped)
    ]
    assert rates[0] == rates[1]
    assert len(rates[0]) == 10
    if on_extend == "restart":
        assert rates[0][4:6] == [0.0, 0.002], "a warm-up of one update"
    else:
        assert rates[0][2:] == sorted(rates[0][2:], reverse=True)
        assert 0.0001 <= rates[0][-1] < 0.0005, "near the end of the schedule, or there"


def test_a_changed_configuration_or_manifest_is_refused_by_name(corpus: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    texts = ["abc", "dcb", "ad", "bda", "cab dab"]
    train = corpus.write(tmp_path / "train.tsv", texts)
    base = [f"data.train={train}", "trainer.num_steps=6"]

    def start(*overrides: str) -> Any:
        return CliRunner().invoke(
            app, ["finetune", *corpus.arguments("scratch", *base, *overrides), "--output", str(run)]
        )

    assert start("trainer.num_steps=3").exit_code == 0
    for override, message in (
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate was 0.002, now 0.5"),
        ("regularization.time_mask.span_frames=3", "regularization.time_mask.span_frames was 2, now 3"),
        ("encoder.context.norm_first=true", "encoder.context.norm_first was False, now True"),
        ("seed=1", "seed was 0, now 1"),
    ):
        result = start(override)
        assert (result.exit_code, result.stdout) == (1, "")
        expected = (
            f"error: {run}: this run was started with different settings ({message}); use another folder or remove it\n"
        )
        assert result.stderr == expected
    train.write_text(train.read_text("utf-8").replace("cab dab", "cab dad"), "utf-8")
    result = start()
    assert result.exit_code == 1
    assert f"error: {run}: this run was started with different settings (inputs.train was " in result.stderr
    assert load_progress(run).step == 3


def test_a_changed_start_model_is_refused(corpus: Any, pretrained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pretrain(corpus.pretrain_config("trainer.num_steps=1", "seed=1"), other)
    run = tmp_path / "run"
    finetune(corpus.finetune_config(f"init={pretrained}", "trainer.num_steps=1"), run)
    arguments = corpus.arguments("finetune", f"init={other}", "trainer.num_steps=2")
    result = CliRunner().invoke(app, ["finetune", *arguments, "--output", str(run)])
    assert result.exit_code == 1
    assert "this run was started with different settings (inputs.init was " in result.stderr
    # The same model in another place is the same.
    moved = tmp_path / "moved"
    moved.symlink_to(pretrained)
    finetune(corpus.finetune_config(f"init={moved}", "trainer.num_steps=2"), run)
    assert load_progress(run).step == 2
