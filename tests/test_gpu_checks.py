"""What a machine with a GPU is given to do, rehearsed on a CPU, and with a Python that does nothing."""

import json
import subprocess
from pathlib import Path

import pytest
from miniature import TINY_ENCODER, clean_environment, set_all
from miniature_amazon_queen import make_tree
from warm_python import warm_python

ROOT = Path(__file__).parents[1]
SETTINGS = {"WHEELS", "COMMIT", "LIMIT", "PEAK_TFLOPS", "JOBS"}
SMALLEST = set_all(
    "trainer.num_steps=2",
    "trainer.log_steps=1",
    "trainer.checkpoint_steps=1",
    "data.num_workers=0",
    "batches.seconds=8",
)


def run(folder: Path, part: str, *arguments: str, **settings: str) -> tuple[int, str]:
    """Its status and what it says."""
    environment = {name: value for name, value in clean_environment().items() if name not in SETTINGS}
    environment |= {"WORK": str(folder / "work"), "OUT": str(folder / "out"), "DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        ["bash", str(ROOT / "tools" / "gpu_checks.sh"), part, *arguments],
        env=environment | {"PYTHON": warm_python()} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return process.returncode, process.stdout


def stub_python(folder: Path, otherwise: str) -> str:
    """A Python that finds everything installed, and does something else with other programs."""
    python = folder / "stub"
    python.write_text(f'#!/bin/sh\n[ "$1" != - ] || exit 0\n{otherwise}\n')
    python.chmod(0o755)
    return str(python)


def test_queen_to_its_results_and_nothing_twice(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "corpus").mkdir()
    settings = make_tree(tmp_path / "corpus") | {"SIZE": "cpu", "ENCODER": str(TINY_ENCODER), "COMMIT": "0123abc"}
    finished = tmp_path / "work" / "finished"
    finished.mkdir(parents=True)
    before = {f"{labels}_scratch_{scratch}" for labels in ("1h", "10min") for scratch in (0, 1)}
    for name in before:  # in an earlier call
        (finished / f"queen-{name}").touch()

    status, said = run(tmp_path, "queen", *SMALLEST, **settings)
    assert status == 0, said
    now = {"prepare", "pretrain", "all_scratch_0", "all_scratch_1"}
    assert {file.name.removeprefix("queen-") for file in finished.iterdir()} == before | now
    for name in before:
        assert f"queen: {name} is finished\n" in said
    for name in now:
        assert f"queen: {name} finished, " in said
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {"queen.log", "queen.md", "queen_curves.jsonl"}
    assert (out / "queen.log").read_text("utf-8") == said
    assert ", commit 0123abc\n" in said
    kept = (out / "queen.md").read_text("utf-8")
    assert kept.startswith("Rows for RESULTS.md, of commit 0123abc:\n\n| ")
    rows = [line for line in kept.splitlines() if line.startswith("| ")]
    runs = tmp_path / "work" / "queen"
    assert [row.split(" | ")[1] for row in rows] == [str(runs / "finetune"), str(runs / "scratch")]
    for title in ("scratch -> finetune", "finetune on test.tsv: reference", "scratch on test.tsv: reference"):
        assert f"\n{title}" in kept
    curves = [json.loads(line) for line in (out / "queen_curves.jsonl").read_text("utf-8").splitlines()]
    trained = [(line["run"], line["step"]) for line in curves if line["split"] == "train"]
    assert trained == [(name, step) for name in ("finetune", "pretrain", "scratch") for step in (1, 2)]

    written = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    status, again = run(tmp_path, "queen", *SMALLEST, **settings)
    assert status == 0, again
    assert again.count(" is finished\n") == len(before | now)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == written
    assert (out / "queen.md").read_text("utf-8") == kept
    assert (out / "queen.log").read_text("utf-8") == said + again


@pytest.mark.parametrize(
    ("part", "advice"),
    [
        pytest.param("tests", "called again it starts anew: set a longer LIMIT", id="tests"),
        pytest.param("bench", "called again it starts anew: set a longer LIMIT", id="bench"),
        pytest.param("updates", "called again it starts anew: set a longer LIMIT", id="updates"),
        pytest.param("queen", "call again", id="queen"),
        pytest.param("prompts", "call again", id="prompts"),
    ],
)
def test_a_part_that_is_stopped_says_what_calling_again_does(part: str, advice: str, tmp_path: Path) -> None:
    settings = {"PYTHON": stub_python(tmp_path, "exec sleep 600"), "LIMIT": "0.2", "CORPUS": str(tmp_path)}
    status, said = run(tmp_path, part, **settings)
    assert status == 124, said
    assert f"\n{part}: not finished after 0.2 s; {advice}\n" in said


def test_an_error_ends_a_part_with_its_status(tmp_path: Path) -> None:
    settings = {"PYTHON": stub_python(tmp_path, "exit 3")}
    status, said = run(tmp_path, "bench", **settings)
    assert status == 3
    assert said.endswith("\nbench: status 3\n")
    assert (tmp_path / "out" / "bench.log").read_text("utf-8") == said


def test_bench_runs_every_benchmark_with_the_arguments(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    settings = {"PYTHON": stub_python(tmp_path, f'echo "$*" >>"{calls}"'), "PEAK_TFLOPS": "989"}
    status, said = run(tmp_path, "bench", "--tiny", **settings)
    assert status == 0, said
    options = "--device cpu --threads 1"  # nproc heeds OMP_NUM_THREADS
    pretrain = f"tools/bench_pretrain.py {options} --peak-tflops 989"
    assert calls.read_text("utf-8").splitlines() == [
        f"{pretrain} --tiny",
        f"{pretrain} --batch-seconds 300 --tiny",
        f"{pretrain} --stage finetune --tiny",
        f"tools/bench_transcribe.py {options} --tiny",
    ]


def test_updates_are_measured_in_every_way(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    settings = {"PYTHON": stub_python(tmp_path, f'echo "$*" >>"{calls}"')}
    status, said = run(tmp_path, "updates", "--tiny", **settings)
    assert status == 0, said
    before = "tools/bench_pretrain.py --device cpu --threads 1"
    options = "--models base --variants compiled checkpointed --parts --tiny"
    assert calls.read_text("utf-8").splitlines() == [
        f"{before} {options}",
        f"{before} --batch-seconds 300 {options}",
        f"{before} --stage finetune {options}",
    ]
