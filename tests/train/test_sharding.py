"""A model of which each process has a part trains as a whole one, and its checkpoints are as good as any other's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.training_state import find_progress, load_training_tensors
from speechssl.train.log import read_log
from speechssl.train.throughput import METRICS

SETTINGS = (
    "trainer.microbatches=4",
    "trainer.log_steps=1",
    "trainer.evaluate_steps=2",
    "optimizer.epsilon=1e-3",  # or rounding errors of gradients that are 0 would become whole steps
    "optimizer.learning_rate=1e-2",
    "optimizer.max_gradient_norm=0.5",
    "trainer.num_steps=3",
)
# What is frozen changes at the second update, and what is saved is not what learns.
HEAD_FIRST = ("head_only_steps=1", "feature_encoder_is_frozen=true", "trainer.average_decay=0.5")
KINDS = [("fsdp", 1), ("fsdp", 2), ("fsdp", 4)]  # `test_parallel` has those of "ddp"
OTHERS = [("fsdp", 4), ("ddp", 2)]
SHARD = "training/shard-00002-model-00001-of-00001.safetensors"


def run_jobs(jobs: list[dict[str, Any]], file: Path) -> list[list[tuple[str, int]]]:
    file.write_text(json.dumps(jobs), "utf-8")
    command = [sys.executable, Path(__file__).with_name("many_ranks_run.py"), file]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr
    said: list[list[tuple[str, int]]] = json.loads(result.stdout)
    return said


class Ran:
    """Runs below a folder, and what the processes of each said, with their exit statuses."""

    def __init__(self, corpus: Any, pretrained: Path, folder: Path) -> None:
        self.folder = folder
        # The dev set is one batch, so that all processes but one have none.
        dev = corpus.write(folder / "dev.tsv", ["ab cd"])
        tune = (*SETTINGS, *HEAD_FIRST, f"init={pretrained}", f"data.dev={dev}")
        jobs: dict[str, dict[str, Any]] = {}

        def add(name: str, stage: str, kind: str, ranks: int, **values: Any) -> None:
            parallel = f"trainer.parallel={kind}"
            if stage == "pretrain":
                config = corpus.pretrain_config(*SETTINGS, parallel, "trainer.num_steps=1")
            else:
                recomputes = f"trainer.checkpoint_activations={str(ranks == 4).lower()}"
                config = corpus.finetune_config(*tune, parallel, recomputes)
            run = {"stage": stage, "config": config.to_dict(), "folder": str(folder / name), "ranks": ranks}
            jobs[name] = run | values

        for kind, ranks in (("ddp", 1), *KINDS):
            name = f"gradients {kind} {ranks}"
            add(name, "pretrain", kind, ranks, gradients=str(folder / f"{name}.pt"))
        add("one", "finetune", "ddp", 1)
        add("parts", "finetune", "fsdp", 2)
        # The newest checkpoint of each copy is damaged: it resumes one update earlier.
        add("again", "finetune", "fsdp", 2, copy_of=str(folder / "parts"), damaged=SHARD)
        for kind, ranks in OTHERS:
            add(f"parts {kind} {ranks}", "finetune", kind, ranks, copy_of=str(folder / "parts"), damaged=SHARD)
        add("one fsdp 2", "finetune", "fsdp", 2, copy_of=str(folder / "one"), damaged="training.safetensors")
        add("full", "finetune", "fsdp", 2, file_bytes=4_000)
        self.said = dict(zip(jobs, run_jobs([*jobs.values()], folder / "jobs.json"), strict=True))

    def ended_well(self, name: str) -> Path:
        """The folder of a run, of which one process speaks for all."""
        for rank, (said, status) in enumerate(self.said[name]):
            assert status == 0, said
            assert rank == 0 or not said
        return self.folder / name

    def gradients(self, kind: str, ranks: int) -> dict[str, Tensor]:
        """Those of the update of a pretraining."""
        name = f"gradients {kind} {ranks}"
        self.ended_well(name)
        [update] = torch.load(self.folder / f"{name}.pt")
        gradients: dict[str, Tensor] = update
        return gradients


@pytest.fixture(scope="module")
def ran(corpus: Any, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(corpus, pretrained, tmp_path_factory.mktemp("sharded"))


def states(run: Path) -> dict[str, Tensor]:
    weights = {f"model/{name}": tensor for name, tensor in read_model(run / "latest").weights.items()}
    return weights | load_training_tensors(run)


def assert_close(found: Path, expected: Path) -> None:
    mine, theirs = states(found), states(expected)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    for one, other in zip(read_log(found), read_log(expected), strict=True):
        for metric in one.keys() - {*METRICS, "split"}:
            assert one[metric] == pytest.approx(other[metric], rel=2e-3, abs=1e-4), metric


@pytest.mark.parametrize(("kind", "ranks"), KINDS)
def test_gradients_are_those_of_one_process(ran: Ran, kind: str, ranks: int) -> None:
    found, expected = ran.gradients(kind, ranks), ran.gradients("ddp", 1)
    assert found.keys() == expected.keys()
    whole = max(gradient.norm() for gradient in expected.values())
    for number, gradient in expected.items():
        allowed = 1e-5 * max(gradient.norm(), 1e-3 * whole)  # some gradients are 0 but for rounding
        assert (found[number] - gradient).norm() <= allowed, number
    # They have been scaled down to 0.5, the norm over all parameters and processes.
    [record, *_] = read_log(ran.folder / f"gradients {kind} {ranks}")
    assert record["gradient_norm"] > 1
    assert torch.stack([gradient.norm() for gradient in found.values()]).norm() == pytest.approx(0.5, rel=1e-4)


def test_each_process_saves_its_part_and_rank_0_the_model(ran: Ran) -> None:
    run = ran.ended_well("parts")
    assert_close(run, ran.ended_well("one"))
    folder = run / "latest"
    sizes = [file.stat().st_size for file in sorted((folder / "training").iterdir())]
    whole = (ran.folder / "one" / "latest" / "training.safetensors").stat().st_size
    assert len(sizes) == 2
    assert max(sizes) < 0.7 * whole
    assert not (folder / "training.safetensors").exists()
    assert set(json.loads((folder / "checksums.json").read_text())) == {
        "config.json",
        "model.safetensors",
        "training.json",
        "vocab.json",
        SHARD,
        SHARD.replace("00002", "00001", 1),
    }


def test_a_damaged_part_falls_back_and_as_many_processes_resume_exactly(ran: Ran) -> None:
    run = ran.ended_well("again")
    said = ran.said["again"][0][0]
    assert f"{SHARD}: expected what was written, found it truncated or damaged: falls back to the checkpoint" in said
    assert "resumes after step 2" in said
    found, expected = states(run), states(ran.folder / "parts")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("name", "is_sharded"),
    [(f"parts {kind} {ranks}", kind == "fsdp") for kind, ranks in OTHERS] + [("one fsdp 2", True)],
)
def test_others_resume_it(ran: Ran, name: str, is_sharded: bool) -> None:
    run = ran.ended_well(name)
    assert "resumes after step 2" in ran.said[name][0][0]
    assert (run / "latest" / "training").is_dir() is is_sharded
    assert_close(run, ran.folder / "one")


def test_a_full_disk_of_one_process_ends_all_in_one_line(ran: Ran) -> None:
    (first, status), (second, other) = ran.said["full"]
    assert (status, other, second) == (1, 1, "")
    assert "step_00000002: cannot be written, the checkpoint before it is intact: " in first.splitlines()[-1]
    assert "File too large" in first.splitlines()[-1]
    assert find_progress(ran.folder / "full")[0].step == 0
    assert not list((ran.folder / "full").rglob(".*"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_a_part_each(corpus: Any, tmp_path: Path) -> None:
    runs = {"one": ("ddp", 1), "two": ("fsdp", 2)}
    configs = [
        corpus.pretrain_config(
            *SETTINGS, f"trainer.parallel={kind}", "trainer.device=cuda", "trainer.precision=float32"
        )
        for kind, _ in runs.values()
    ]
    jobs = [
        {"stage": "pretrain", "config": config.to_dict(), "folder": str(tmp_path / name), "ranks": ranks}
        for config, (name, (_, ranks)) in zip(configs, runs.items(), strict=True)
    ]
    assert all(status == 0 for job in run_jobs(jobs, tmp_path / "jobs.json") for _, status in job)
    one, two = (read_log(tmp_path / name) for name in runs)
    for mine, theirs in zip(two, one, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
