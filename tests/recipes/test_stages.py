"""What all run.sh share."""

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from miniature import RECIPES

STAGES = """
recipe=$1
stages=(check pretrain evaluate)
source "$2"
"""


def run_stages(folder: Path, program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe of no more than these lines, in a folder of its own."""
    command = ["bash", "-euo", "pipefail", "-c", STAGES + program, "run", str(folder), str(RECIPES / "stages.sh")]
    environment = {"PATH": "/usr/bin:/bin", "OUT": str(folder / "out")} | settings
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_rounds_are_none_or_a_whole_number(tmp_path: Path) -> None:
    assert run_stages(tmp_path, "", ROUNDS="0").returncode == 0
    result = run_stages(tmp_path, "", ROUNDS="-1")
    assert (result.returncode, result.stderr) == (1, "error: ROUNDS=-1: expected a whole number of at least 1\n")


SELF_TRAINING = """
speechssl=(echo)
save() {
    mkdir -p "$1/best"
    printf '{"step": 9, "best_step": 7, "best_score": %s}\n' "$2" >"$1/best/training.json"
}
fine_tune() { save "$1" "${scores[0]}"; scores=("${scores[@]:1}"); }
evaluate() { echo "evaluate $*"; }
language_model() { echo "language_model $*"; touch "$1/results_rows_lm.md"; }
scores=($SCORES)
save "$OUT/run" 0.5
self_train "$OUT/run" new.tsv train.tsv dev.tsv test.tsv train.tsv
"""


@pytest.mark.parametrize(
    ("scores", "num_rounds"),
    [("0.4 0.3 0.2", 3), ("0.4 0.4 0.2", 2), ("0.6 0.3 0.2", 1), ("1.0 0.3 0.2", 1), ("0.09 1e-3 0.0", 3)],
)
def test_self_training_goes_on_while_dev_gets_better(tmp_path: Path, scores: str, num_rounds: int) -> None:
    result = run_stages(tmp_path, SELF_TRAINING, ROUNDS="3", SCORES=scores)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "out" / "run"
    labels = [line for line in result.stdout.splitlines() if line.startswith("label ")]
    models = [str(run), *(f"{run}_round{number}" for number in range(1, num_rounds + 1))]
    assert [line.split()[1] for line in labels] == models[:-1]
    scored = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("evaluate ")]
    assert scored == models[1:]  # the last one too, by which it stopped
    before = models[-2]
    stopped = f"stopped after round {num_rounds}: on dev it is no better than the model before, {before}\n"
    assert result.stderr == (stopped if num_rounds < 3 else "")


@pytest.mark.parametrize("value", ["8x", "0", "-1", "1.5", "08", "1 2", "²"])
@pytest.mark.parametrize("setting", ["GPUS", "NODES", "TRIALS"])
def test_numbers_of_processes_are_whole(tmp_path: Path, setting: str, value: str) -> None:
    result = run_stages(tmp_path, "", **{setting: value})
    assert (result.returncode, result.stderr) == (
        1,
        f"error: {setting}={value}: expected a whole number of at least 1\n",
    )


def test_the_last_stage_is_not_before_the_first(tmp_path: Path) -> None:
    result = run_stages(tmp_path, "", FROM="evaluate", TO="check")
    expected = "error: TO=check: expected FROM=evaluate or a stage after it, found one before it\n"
    assert (result.returncode, result.stderr) == (1, expected)
    assert run_stages(tmp_path, "", FROM="evaluate", TO="evaluate").returncode == 0


@pytest.mark.parametrize(
    ("first", "last", "is_allowed"),
    [("pretrain", "pretrain", True), ("check", "check", False), ("check", "pretrain", False)],
)
def test_several_machines_train_one_stage(tmp_path: Path, first: str, last: str, is_allowed: bool) -> None:
    result = run_stages(tmp_path, "", NODES="2", HEAD="a", FROM=first, TO=last)
    expected = "expected one training stage, FROM=TO=pretrain or FROM=TO=finetune"
    said = f"error: NODES=2: {expected}, found FROM={first} TO={last}\n"
    assert (result.returncode, result.stderr) == ((0, "") if is_allowed else (1, said))


def test_one_of_several_is_one_of_them(tmp_path: Path) -> None:
    assert run_stages(tmp_path, "require_one_of LABELS 10h 1h 10h").returncode == 0
    for value in ("1h 10h", "h", "", "*"):
        result = run_stages(tmp_path, f"require_one_of LABELS '{value}' 1h 10h")
        assert (result.returncode, result.stderr) == (1, f"error: LABELS={value}: expected one of 1h 10h\n")


def test_a_report_is_whole(tmp_path: Path) -> None:
    report = tmp_path / "an out" / "check.txt"
    check = f"speechssl=(bash -c 'echo \"a report\"; exit $STATUS'); check '{report}' train.tsv"
    for status, code, said in (("0", 0, ""), ("137", 137, ""), ("1", 1, "a report\n")):
        report.unlink(missing_ok=True)
        result = run_stages(tmp_path, check, STATUS=status)
        assert (result.returncode, result.stderr) == (code, said)
        assert report.exists() == (status != "137")


def test_a_model_that_says_no_word_stays_uncalibrated(tmp_path: Path) -> None:
    program = "speechssl=(bash -c 'exit $STATUS'); calibrate run dev.tsv; echo next"
    note = "note: these confidences stay uncalibrated\n"
    for status, code, out, said in (("0", 0, "next\n", ""), ("1", 0, "next\n", note), ("130", 130, "", "")):
        result = run_stages(tmp_path, program, STATUS=status)
        assert (result.returncode, result.stdout, result.stderr) == (code, out, said)


SAVES = """trap 'echo saved; exit 75' TERM; echo ready; while :; do sleep 0.05; done"""


@pytest.mark.parametrize("to_all", [False, True], ids=["SIGTERM to the script", "Ctrl-C to all"])
def test_a_training_saves_when_the_recipe_is_stopped(tmp_path: Path, to_all: bool) -> None:
    program = f"run_training bash -c {shlex.quote(SAVES)}; echo after"
    command = ["bash", "-euo", "pipefail", "-c", STAGES + program, "run", str(tmp_path), str(RECIPES / "stages.sh")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT if to_all else signal.SIGTERM)
        try:
            assert process.communicate(timeout=60)[0] == "saved\n"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # or leaving the block would wait for it
            raise
    assert process.returncode == 75


@pytest.mark.parametrize("status", [0, 3])
def test_a_training_that_ends_gives_its_status(tmp_path: Path, status: int) -> None:
    result = run_stages(tmp_path, f"run_training bash -c 'exit {status}'; echo after")
    assert (result.returncode, result.stdout) == (status, "" if status else "after\n")


def test_the_report_of_all_runs_is_named_at_the_end(tmp_path: Path) -> None:
    program = "speechssl=(python -m speechssl); show_results"
    result = run_stages(tmp_path, program)
    assert (result.returncode, "one page" in result.stderr) == (0, False)  # nothing to report
    out = tmp_path / "an out"
    for stage in ("pretrain", "finetune"):
        (out / stage).mkdir(parents=True)
        (out / stage / "log.jsonl").touch()
    (out / "data").mkdir()
    for references in ("", "a.tsv b.tsv"):
        result = run_stages(tmp_path, f"references=({references}); {program}", OUT=str(out))
        *_, last = result.stderr.splitlines()
        expected = ["python", "-m", "speechssl", "report", str(out / "finetune"), str(out / "pretrain")]
        expected += [part for file in references.split() for part in ("--reference", file)]
        assert shlex.split(last.partition(": ")[2]) == [*expected, "-o", str(out / "report.html")]
