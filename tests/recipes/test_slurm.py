"""The job script of recipes/, with stand-ins for Slurm's commands and for the recipe."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "slurm.sh"
COMMANDS = {
    "scontrol": """case $1 in
        show) printf 'first\\nsecond\\n' ;;
        requeue) echo "$2" >requeued ;;
    esac""",
    "srun": '[[ $1 == --kill-on-bad-exit=1 ]] && exec "${@:2}"',
}
JOB = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "nodes[1-2]"}
PRINT = 'echo "$FROM $TO $NODES $GPUS $HEAD $RESTARTS $OUT" "$@" >said\n'


def submit(folder: Path, run: str, **settings: str) -> subprocess.Popen[str]:
    """Run the script as Slurm does, from a copy elsewhere, in a folder with a recipe of these lines."""
    for name, lines in COMMANDS.items():
        stand_in = folder / name
        stand_in.write_text(f"#!/bin/bash\n{lines}\n")
        stand_in.chmod(0o755)
    recipe = folder / "recipes" / "mine"
    recipe.mkdir(parents=True)
    (recipe / "run.sh").write_text(run)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "OUT": "out", "STAGE": "pretrain"} | JOB | settings
    copy = folder / "job"
    copy.write_text(SCRIPT.read_text())
    command = ["bash", copy, "mine", "--set", "a=1"]
    return subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("status", [0, 3])
def test_a_stage_on_all_machines(tmp_path: Path, status: int) -> None:
    assert submit(tmp_path, f"{PRINT}exit {status}").wait(60) == status
    assert (tmp_path / "said").read_text() == "pretrain pretrain 2 4 first 3 out --set a=1\n"
    assert not (tmp_path / "requeued").exists(), "what fails by itself would fail again"


@pytest.mark.parametrize(("saved", "status"), [("true", 0), ("exit 1", 1)])
def test_a_job_whose_time_is_over_saves_and_queues_again(tmp_path: Path, saved: str, status: int) -> None:
    job = submit(
        tmp_path, f"trap 'sleep 0.2; touch saved; {saved}' TERM\ntouch ready\nwhile [[ ! -e saved ]]; do :; done"
    )
    while not (tmp_path / "ready").exists():
        assert job.poll() is None, job.stderr
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == status
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").exists() is bool(status), "a stage that is finished is not repeated"


@pytest.mark.parametrize("setting", ["OUT", "STAGE"])
def test_what_is_missing_is_named(tmp_path: Path, setting: str) -> None:
    job = submit(tmp_path, PRINT, **{setting: ""})
    assert job.wait(60) == 1
    assert job.stderr is not None
    assert f"{setting}: " in job.stderr.read()
    assert not (tmp_path / "said").exists()


def test_options_are_slurms() -> None:
    head = SCRIPT.read_text().split("\nset -euo")[0].splitlines()
    options = [line.removeprefix("#SBATCH ") for line in head if line.startswith("#SBATCH")]
    assert "--signal=B:TERM@300" in options, "to this script alone, before the end"
    assert all(option.startswith("--") and ("=" in option or option == "--requeue") for option in options)
