"""The folder of a run: its lock, its configuration, and data that cannot be trained on."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import AliasChoices, Field

from speechssl.checkpoint.training_state import load_progress
from speechssl.config import Config
from speechssl.data.check import check_before_training
from speechssl.data.manifest import Utterance, read_manifest, write_manifest
from speechssl.data.sampler import BatchConfig, BatchSampler
from speechssl.data.units import Letters
from speechssl.errors import TrainingError
from speechssl.frames import FrameGeometry
from speechssl.train.optimizer import OptimizerConfig
from speechssl.train.parallel import Ranks
from speechssl.train.run import _begin_or_resume, _describe, _locked, _refuse
from speechssl.train.schedule import Course, ScheduleConfig
from speechssl.train.trainer_config import TrainerConfig

ALONE = Ranks(0, 1, torch.device("cpu"))
# Holds the lock, and leaves a child that inherits everything and outlives it.
HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


class _Section(Config):
    num_steps: int = 4
    log_steps: int = 1
    evaluate_steps: int = 1
    checkpoint_steps: int = 1
    keep_last: int = 2
    microbatches: int = 2
    device: str | None = None


class _Data(Config):
    train: Path = Path("train.tsv")
    num_workers: int = 2
    license: str = Field(validation_alias=AliasChoices("license", "licence"))


class _Config(Config):
    seed: int = 0
    init: Path | None = None
    trainer: _Section = _Section()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    schedule: ScheduleConfig = ScheduleConfig(kind="tri_stage", warmup=0.25, end_scale=0.05)
    data: _Data


def configuration(**values: Any) -> _Config:
    return _Config.from_dict(values | {"data": {"license": "CC0"} | values.get("data", {})}, "test")


def begin(run: Path, config: _Config, digest: str = "1a", stage: str = "pretrain") -> bool:
    """Whether anything is left to do."""
    run.mkdir(exist_ok=True)
    progress, _ = _begin_or_resume(run, stage, config, {"train": digest}, ALONE)  # type: ignore[arg-type]
    return progress.step < config.trainer.num_steps


def pretend_progress(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps({"step": step, "best_step": None, "best_score": None}))
    (run / "latest").symlink_to(folder)


@pytest.fixture
def started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run of the default configuration after 2 of 4 steps."""
    run = tmp_path / "run"
    assert begin(run, configuration())
    pretend_progress(run, 2)
    capsys.readouterr()
    return run


@contextmanager
def holder(run: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has the lock, and its child."""
    run.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(run / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def is_alive(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_lock_keeps_others_out_until_its_owner_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    message = re.escape(f"{run}: another process is training in this folder")
    with holder(run) as (process, child):
        with pytest.raises(TrainingError, match=f"^{message}$"), _locked(run, ALONE):
            pytest.fail("two runs in one folder")
        process.send_signal(signal.SIGKILL)
        process.wait()
        with _locked(run, ALONE):
            if sys.platform == "linux":
                assert is_alive(child), "nothing was shown about children that outlive the run"


def test_the_lock_is_free_after_the_run_and_after_its_failure(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    with pytest.raises(ZeroDivisionError), _locked(run, ALONE):
        raise ZeroDivisionError
    with _locked(run, ALONE):
        code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        command = [sys.executable, "-c", code, str(run / "lock")]
        assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 1
    assert subprocess.run(command, check=False).returncode == 0


def test_only_the_first_rank_locks(tmp_path: Path) -> None:
    first, second = (Ranks(rank, 2, torch.device("cpu")) for rank in range(2))
    has_entered = False
    with holder(tmp_path / "run"):
        with _locked(tmp_path / "run", second):
            has_entered = True
        with pytest.raises(TrainingError, match="another process"), _locked(tmp_path / "run", first):
            pytest.fail("two runs in one folder")
    assert has_entered


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        message = re.escape(f"{run}: cannot be used as a run folder")
        with pytest.raises(TrainingError, match=message), _locked(run, ALONE):
            pass


def test_a_new_run_notes_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configuration(seed=3)
    assert begin(tmp_path / "run", config)
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    [part] = record.pop("parts")
    assert (part["step"], part["torch"], part["processes"]) == (0, torch.__version__, 1)
    assert record == {
        "stage": "pretrain",
        "config": config.to_dict(),
        "inputs": {"train": "1a"},
        "course": {"first_step": 0, "position": 0.0, "length": 4, "num_steps": 4, "roll_backs": []},
    }
    # Nothing is done yet, so that anything may still change.
    assert begin(tmp_path / "run", configuration(seed=4))
    assert json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["config"]["seed"] == 4
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("values", "digest", "message"),
    [
        ({"seed": 1}, "1a", "seed was 0, now 1"),
        ({"trainer": {"microbatches": 8}}, "1a", "trainer.microbatches was 2, now 8"),
        ({"data": {"license": "CC-BY"}}, "1a", "data.license was 'CC0', now 'CC-BY'"),
        ({}, "2b", "inputs.train was '1a', now '2b'"),
        ({"seed": 1, "data": {"license": "x"}}, "1a", "data.license was 'CC0', now 'x'; seed was 0, now 1"),
    ],
)
def test_a_run_does_not_go_on_otherwise(started: Path, values: dict[str, Any], digest: str, message: str) -> None:
    before = (started / "run.json").read_bytes()
    for num_steps in (4, 2):  # to be finished is no excuse
        trainer = {**values.get("trainer", {}), "num_steps": num_steps}
        with pytest.raises(TrainingError) as caught:
            begin(started, configuration(**{**values, "trainer": trainer}), digest)
        assert str(caught.value) == (
            f"{started}: this run was started with different settings ({message}); use another folder or remove it"
        )
    assert (started / "run.json").read_bytes() == before


def test_a_folder_of_another_stage_is_refused_as_that(started: Path) -> None:
    record = json.loads((started / "run.json").read_text("utf-8"))
    record["config"]["objective"] = {"kind": "contrastive"}  # which the configuration of another stage does not have
    (started / "run.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(
        TrainingError, match=r"run\.json: expected a run of finetune, found one of pretrain; use another"
    ):
        begin(started, configuration(), stage="finetune")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"schedule": {"on_extend": "restart"}},
        {"trainer": {"log_steps": 3, "evaluate_steps": 3, "checkpoint_steps": 3}},
        {"trainer": {"device": "cpu"}},
        {"data": {"num_workers": 0}},
        {"data": {"train": "elsewhere/train.tsv"}},
        {"init": "elsewhere/model"},
    ],
)
def test_what_may_change_is_taken_and_noted(
    started: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(**values)
    assert begin(started, config)
    assert json.loads((started / "run.json").read_text("utf-8"))["config"] == config.to_dict()
    assert capsys.readouterr() == ("", f"pretrain: {started} resumes after step 2\n")


def test_a_run_notes_each_part_that_led_to_its_state(started: Path) -> None:
    def steps() -> list[int]:
        return [part["step"] for part in json.loads((started / "run.json").read_text("utf-8"))["parts"]]

    for _ in range(2):  # a start that got no further than the one before takes its place
        assert begin(started, configuration())
        assert steps() == [0, 2]
    (started / "latest").unlink()
    pretend_progress(started, 3)
    assert begin(started, configuration())
    assert steps() == [0, 2, 3]


@pytest.mark.parametrize(("on_extend", "position"), [("continue", 4.0), ("restart", 0.0)])
def test_a_run_whose_latest_checkpoint_is_damaged_resumes_from_the_one_before(
    started: Path, on_extend: str, position: float, capsys: pytest.CaptureFixture[str]
) -> None:
    (started / "latest").unlink()
    pretend_progress(started, 4)
    longer = configuration(trainer={"num_steps": 10}, schedule={"on_extend": on_extend})
    assert begin(started, longer)  # the rate of the updates after the fourth is decided
    capsys.readouterr()
    damaged = started / "checkpoints" / "step_00000004" / "training.json"
    damaged.write_text("{")
    with pytest.raises(TrainingError, match="different settings"):
        begin(started, configuration(seed=1))
    assert damaged.exists(), "what is refused changes nothing"
    progress, course = _begin_or_resume(started, "pretrain", longer, {"train": "1a"}, ALONE)  # type: ignore[arg-type]
    assert (progress.step, course.first_step, course.position) == (2, 2, position)
    warning, resumes = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {damaged}: expected the numbers of a training state: ")
    assert warning.endswith(": falls back to the checkpoint after step 2")
    assert resumes == f"pretrain: {started} resumes after step 2"
    assert load_progress(started).step == 2


def test_a_run_becomes_no_shorter_than_planned(started: Path) -> None:
    with pytest.raises(TrainingError, match=r"different settings \(trainer\.num_steps was 4, now 3\)"):
        begin(started, configuration(trainer={"num_steps": 3}))
    assert begin(started, configuration(trainer={"num_steps": 5}))


@pytest.mark.parametrize(
    ("done", "on_extend", "said", "course"),
    [
        (
            2,
            "continue",
            "goes on from 0.001, on the rest of its schedule, which now lasts until then",
            Course(first_step=2, position=2.0, length=4, num_steps=10),
        ),
        (
            4,
            "continue",
            "stays at 5e-05, the end of its schedule; schedule.on_extend=restart begins the schedule again",
            Course(first_step=4, position=4.0, length=4, num_steps=10),
        ),
        (
            4,
            "restart",
            "begins its schedule again, from 0 up to 0.001 (it was 0.000136)",
            Course(first_step=4, position=0.0, length=6, num_steps=10),
        ),
    ],
)
def test_a_run_with_more_updates_says_what_the_learning_rate_does(
    started: Path, done: int, on_extend: str, said: str, course: Course, capsys: pytest.CaptureFixture[str]
) -> None:
    if done == 4:
        (started / "latest").unlink()
        pretend_progress(started, 4)
    longer = configuration(trainer={"num_steps": 10}, schedule={"on_extend": on_extend})
    for expected in (f"{started}: extended from 4 to 10 updates: the learning rate {said}\n", ""):
        # A second time nothing is decided, whatever happened to the first: the run goes on as it was noted.
        progress, found = _begin_or_resume(started, "pretrain", longer, {"train": "1a"}, ALONE)  # type: ignore[arg-type]
        assert (progress.step, found) == (done, course)
        assert capsys.readouterr().err == f"pretrain: {started} resumes after step {done}\n{expected}"


def test_a_run_that_ended_at_a_rate_of_0_is_not_continued_with_it(started: Path) -> None:
    record = json.loads((started / "run.json").read_text("utf-8"))
    record["config"]["schedule"]["kind"] = "polynomial"
    del record["course"]  # as earlier versions wrote it
    (started / "run.json").write_text(json.dumps(record))
    (started / "latest").unlink()
    pretend_progress(started, 4)
    longer: dict[str, Any] = {"trainer": {"num_steps": 10}, "schedule": {"kind": "polynomial", "warmup": 0.25}}
    with pytest.raises(TrainingError) as caught:
        begin(started, configuration(**longer))
    assert str(caught.value) == (
        f"{started}: finished with a learning rate of 0, so that more updates would change nothing: "
        "expected schedule.on_extend=restart, which begins the schedule again, up to 0.001"
    )
    longer["schedule"]["on_extend"] = "restart"
    assert begin(started, configuration(**longer))


def test_a_setting_that_came_after_a_run_began_had_its_default(started: Path) -> None:
    record = json.loads((started / "run.json").read_text("utf-8"))
    del record["config"]["trainer"]["microbatches"]
    (started / "run.json").write_text(json.dumps(record))
    with pytest.raises(TrainingError, match=r"trainer\.microbatches was 2, now 3"):
        begin(started, configuration(trainer={"microbatches": 3}))
    assert begin(started, configuration())


def test_a_run_says_what_its_crops_cost() -> None:
    batches = BatchConfig(seconds=8.0, max_seconds=4.0)
    for crop, said in (
        (True, "2 batches an epoch, 25.0% of the audio cropped away; an"),
        (False, "1 batches an epoch, 1"),
    ):
        sampler = BatchSampler([4 * 16_000, 4 * 16_000, 8 * 16_000], batches, 0, crop=crop)
        task = SimpleNamespace(train=SimpleNamespace(streams=(SimpleNamespace(sampler=sampler),)))
        config = SimpleNamespace(batches=batches, trainer=TrainerConfig())
        assert said in _describe(task, config, ALONE)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_finished_run_says_so_and_stays_as_it_is(
    started: Path, num_steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (started / "run.json").read_bytes()
    assert not begin(started, configuration(trainer={"num_steps": num_steps}))
    assert capsys.readouterr() == ("", f"pretrain: {started} is finished after step 2\n")
    assert (started / "run.json").read_bytes() == before


@pytest.mark.parametrize("content", [None, "{"])
def test_a_run_without_its_configuration_is_refused(started: Path, content: str | None) -> None:
    (started / "run.json").unlink()
    if content is not None:
        (started / "run.json").write_text(content)
    with pytest.raises(TrainingError, match=r"run\.json: expected what the run was started with: .") as caught:
        begin(started, configuration())
    assert "\n" not in str(caught.value)


def test_links_are_repaired_when_a_run_goes_on(started: Path) -> None:
    (started / "checkpoints" / ".step_00000003.partial").mkdir()
    assert begin(started, configuration())
    assert [path.name for path in (started / "checkpoints").iterdir()] == ["step_00000002"]
    (started / "checkpoints" / "stray").write_text("somebody's")
    assert begin(started, configuration())
    assert sorted(path.name for path in (started / "checkpoints").iterdir()) == ["step_00000002", "stray"]


@pytest.mark.parametrize(
    ("number", "is_contention"), [(errno.EAGAIN, True), (errno.EACCES, True), (errno.ENOLCK, False)]
)
def test_a_file_system_without_locks_is_no_other_process(
    tmp_path: Path, number: int, is_contention: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    if is_contention:
        with pytest.raises(TrainingError, match="another process is training in this folder"), _locked(tmp_path, ALONE):
            pytest.fail("two runs in one folder")
    else:
        with pytest.warns(UserWarning, match=r"lock: no locks here \("), _locked(tmp_path, ALONE):
            pass


def test_settings_of_earlier_versions_are_the_same_settings(started: Path) -> None:
    record = json.loads((started / "run.json").read_text("utf-8"))
    record["config"]["data"]["licence"] = record["config"]["data"].pop("license")
    record["config"]["trainer"]["reference"] = "curves.tsv"
    (started / "run.json").write_text(json.dumps(record), "utf-8")
    assert begin(started, configuration())
    with pytest.raises(TrainingError, match=r"data\.license was 'CC0', now 'CC-BY'"):
        begin(started, configuration(data={"license": "CC-BY"}))


def test_unfit_utterances_are_listed_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = [Utterance(str(tmp_path / f"{number}.wav"), 16_000, text="a") for number in range(25)]
    write_manifest(tmp_path / "train.tsv", missing, ".")
    manifest = read_manifest(tmp_path / "train.tsv")
    geometry = FrameGeometry((400,), (320,))
    problems = check_before_training(manifest, geometry, Letters.from_texts(["a"]), 0)
    with pytest.raises(TrainingError, match=r"^25 utterances are unfit for training, 20 of them listed; see"):
        _refuse(problems)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 20
    assert lines[0].startswith(f"{manifest.path}:3: ")
    assert lines[19].startswith(f"{manifest.path}:22: ")
