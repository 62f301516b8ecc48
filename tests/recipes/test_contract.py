"""What every recipe promises, run end to end on a miniature of its corpus."""

import importlib
import json
import os
import signal
import time
from pathlib import Path

import hf_models
import pytest
from miniature import RECIPES, TINY_ENCODER, run_recipe, set_all, start_recipe

from speechssl.train.finetune import FinetuneConfig
from speechssl.train.log import read_log
from speechssl.train.pretrain import PretrainConfig

NAMES = ("librispeech", "common_voice", "amazon_queen", "own_data")
NUM_STEPS = 4
SMALLEST = set_all(
    f"trainer.num_steps={NUM_STEPS}",
    "trainer.microbatches=2",
    "trainer.checkpoint_steps=1",
    "trainer.log_steps=1",
    "data.num_workers=0",
    "batches.seconds=8",
)


def test_every_recipe_is_tested() -> None:
    assert {path.parent.name for path in RECIPES.glob("*/run.sh")} == {*NAMES, "prompts"}


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_from_the_corpus_to_a_score(recipe: str, tmp_path: Path) -> None:
    """Two processes, killed in pretraining, run again to the end, and again with nothing left to do."""
    corpus = tmp_path / "a corpus"
    corpus.mkdir()
    out = tmp_path / "an output"
    settings = importlib.import_module(f"miniature_{recipe}").make_tree(corpus) | {"ENCODER": str(TINY_ENCODER)}

    process = start_recipe(recipe, out, *SMALLEST, **settings, GPUS="2", TO="pretrain")
    give_up = time.monotonic() + 300
    while not (out / "pretrain" / "latest").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    result = run_recipe(recipe, out, *SMALLEST, **settings, GPUS="2")
    rows, said = result.stdout, result.stderr
    assert result.returncode == 0, said
    stages = [line.removeprefix("== ") for line in said.splitlines() if line.startswith("== ")]
    assert [stage for stage in stages if stage in ("prepare", "check", "pretrain", "finetune", "evaluate")] == [
        *("prepare", "check", "pretrain", "finetune", "evaluate"),
    ]
    assert "an update sees up to 16 s of audio in 2 batches on 2 x cpu" in said  # whatever the processes
    assert "resumes after step" in said or "is finished after step" in said
    (scores,) = out.glob("finetune*/scores.json")
    for folder in (out / "pretrain", scores.parent):
        steps = [line["step"] for line in read_log(folder) if line["split"] == "train"]
        assert steps == list(range(1, NUM_STEPS + 1)), folder
        description = json.loads((folder / "best" / "config.json").read_text("utf-8"))
        assert description["training_data"][-1]["license"]
    greedy, *others = [path.read_text("utf-8") for path in sorted(scores.parent.glob("results_rows*.md"))]
    assert rows == "".join([greedy, *others])
    assert greedy.count("| greedy |") == len(json.loads(scores.read_text("utf-8"))["evaluations"]) > 0
    assert [other.count(", lm.arpa x ") for other in others] == ([1] if recipe == "own_data" else [])

    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    result = run_recipe(recipe, out, *SMALLEST, **settings, FROM="pretrain", TO="finetune")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(f"is finished after step {NUM_STEPS}") == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before


def test_ones_own_data_fine_tune_a_model_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "a corpus").mkdir()
    settings = importlib.import_module("miniature_own_data").make_tree(tmp_path / "a corpus")
    folder = hf_models.save(hf_models.build("wav2vec2-large"), tmp_path / "tiny")
    out = tmp_path / "an output"
    result = run_recipe("own_data", out, *SMALLEST, **settings, INIT=str(folder), TO="evaluate")
    assert result.returncode == 0, result.stderr
    assert f"not needed: INIT={folder}" in result.stderr
    assert not (out / "pretrain").exists()
    description = json.loads((out / "finetune" / "best" / "config.json").read_text("utf-8"))
    assert [data["stage"] for data in description["training_data"]] == ["tiny (wav2vec2)", "finetune"]
    assert "| greedy |" in result.stdout


@pytest.mark.parametrize(
    ("place", "configuration", "files", "seconds"),
    [
        ("prompts/README.md", PretrainConfig, "prompts/pretrain", 6),
        ("prompts/README.md", FinetuneConfig, "prompts/finetune", 6),
        ("own_data/README.md", PretrainConfig, "prompts/pretrain own_data/small_pretrain", 8),
        ("own_data/README.md", FinetuneConfig, "prompts/finetune own_data/small_finetune", 6),
        ("amazon_queen/run.sh", PretrainConfig, "prompts/pretrain amazon_queen/pretrain_cpu", 6),
        ("amazon_queen/run.sh", FinetuneConfig, "prompts/finetune amazon_queen/finetune_cpu", 6),
        ("README.md", PretrainConfig, "prompts/pretrain amazon_queen/pretrain_gpu", 160),
    ],
)
def test_two_processes_share_an_update_as_it_is_said(
    place: str, configuration: type[PretrainConfig | FinetuneConfig], files: str, seconds: int
) -> None:
    settings = ["trainer.microbatches=2", f"batches.seconds={seconds}"]
    assert " ".join(f"--set {setting}" for setting in settings) in (RECIPES / place).read_text("utf-8")
    data = ["data.train=none", "data.dev=none", "data.license=none"]
    data += ["init=none"] if configuration is FinetuneConfig else []
    paths = [RECIPES / f"{file}.toml" for file in files.split()]
    shipped, shared = configuration.load(paths, data), configuration.load(paths, [*data, *settings])
    updates = [config.trainer.microbatches * config.batches.seconds for config in (shipped, shared)]
    assert (shipped.trainer.microbatches, updates[0]) == (1, updates[1])


@pytest.mark.parametrize("recipe", NAMES)
def test_mistakes_are_one_line(recipe: str, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    for settings, expected in (
        ({"FROM": "polish"}, "error: FROM=polish: expected one of "),
        (
            {"FROM": "evaluate", "TO": "prepare"},
            "error: TO=prepare: expected FROM=evaluate or a stage after it, found ",
        ),
        ({"GPUS": "8x"}, "error: GPUS=8x: expected a whole number of at least 1"),
        ({"NODES": "0"}, "error: NODES=0: expected a whole number of at least 1"),
        ({"NODES": "2"}, "error: NODES=2: expected HEAD"),
        ({"NODES": "2", "HEAD": "a"}, "error: NODES=2: expected one training stage, FROM=TO=pretrain or "),
        ({"CORPUS": nowhere, "FROM": "prepare", "TO": "prepare"}, f"{nowhere}: expected "),
    ):
        result = run_recipe(recipe, tmp_path / "out", **settings)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert (result.returncode, len(errors)) == (1, 1), result.stderr
        assert expected in errors[0]
        assert "Traceback" not in result.stderr
