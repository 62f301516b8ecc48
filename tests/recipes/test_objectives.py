"""The comparison of objectives at its smallest, as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from miniature import RECIPES, TINY_ENCODER, clean_environment, set_all
from warm_python import warm_environment

from speechssl.data.manifest import read_manifest, write_manifest

RECIPE = RECIPES / "prompts"
COSTS = """\
objective\tupdate_ratio\tprepare_updates\tgflop_per_second\tpeak_mib
masked_prediction\t1\t10\t0.2\t900
spectral_contrast\t2\t0\t0.3\t800
"""
SMALLEST = set_all("trainer.num_steps=3", "trainer.evaluate_steps=2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few utterances of every manifest, and of every language."""
    folder = tmp_path_factory.mktemp("a corpus")
    for file in ("pretrain_train", "pretrain_dev", "train", "train_10min", "train_5min", "dev", "test"):
        manifest = read_manifest(RECIPE / "corpus" / f"{file}.tsv")
        languages: dict[str | None, int] = {}
        chosen = []
        for utterance in manifest:
            languages[utterance.language] = languages.get(utterance.language, 0) + 1
            if languages[utterance.language] <= (14 if file == "train_5min" else 12):
                chosen.append(utterance)
        write_manifest(folder / f"{file}.tsv", chosen, (RECIPE / "corpus").absolute())
    return folder


def run_objectives(out: Path, corpus: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    (out / "page").mkdir(parents=True, exist_ok=True)
    own = {"OUT": str(out), "PAGE": str(out / "page" / "OBJECTIVES.md"), "CORPUS": str(corpus), "RATES": "5e-3 1e-2"}
    own |= {"OBJECTIVES": "spectral_contrast", "ENCODER": str(TINY_ENCODER), "BUDGET": "2", "UPDATE_SECONDS": "0.1"}
    return subprocess.run(
        ["bash", str(RECIPE / "objectives.sh"), *arguments],
        env=clean_environment() | warm_environment() | own | settings,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


def updates_of(run: Path) -> int:
    steps: int = json.loads((run / "run.json").read_text("utf-8"))["config"]["trainer"]["num_steps"]
    return steps


@pytest.mark.slow
def test_every_row_has_the_same_time_and_failures_are_named(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "an out"
    (out / "page").mkdir(parents=True)
    (out / "costs.tsv").write_text(COSTS, "utf-8")
    result = run_objectives(out, corpus, *SMALLEST, HEADLINE="masked_prediction", MORE_SEEDS="1")
    assert result.returncode == 0, result.stderr
    assert updates_of(out / "masked_prediction_0" / "pretrain") == 20 - 10
    assert updates_of(out / "spectral_contrast_0" / "pretrain") == 20 // 2
    assert updates_of(out / "masked_prediction_0" / "finetune_train") == 3
    page = (out / "page" / "OBJECTIVES.md").read_text("utf-8")
    lines = [line for line in page.partition("## Errors")[2].partition("## What")[0].splitlines() if line[:1] == "|"]
    assert {line.split("|")[1].strip() for line in lines[2:]} == {"masked_prediction", "spectral_contrast", "scratch"}
    assert all(line.count("[") >= (0 if "scratch" in line else 2) for line in lines[2:])
    known = page.partition("## What the layers know")[2]
    assert all(f"| {name} |" in known for name in ("spectral_contrast", "masked_prediction", "fresh weights"))
    assert "Failed" not in page
    assert (out / "page" / "curves" / "objectives_errors.svg").exists()
    assert (out / "masked_prediction_1" / "finetune_train_5min" / "scores.json").exists()
    scratch = {path.name.rpartition("_")[0] for path in (out / "scratch_1").iterdir()}
    assert scratch == {"train", "train_5min"}

    # Again: nothing is trained, and the page is the same.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("log.jsonl")}
    again = run_objectives(out, corpus, *SMALLEST, HEADLINE="masked_prediction", MORE_SEEDS="1")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("log.jsonl")} == before
    assert (out / "page" / "OBJECTIVES.md").read_text("utf-8") == page

    # A row that cannot train is named, and does not keep the others from theirs.
    shutil.rmtree(out / "spectral_contrast_0")
    shutil.rmtree(out / "masked_prediction_1" / "finetune_train")
    (out / "spectral_contrast_0").mkdir()
    (out / "spectral_contrast_0" / "pretrain").write_text("no folder")
    failed = run_objectives(out, corpus, *SMALLEST, HEADLINE="masked_prediction", MORE_SEEDS="1")
    assert failed.returncode == 1
    assert f"failed: {out / 'spectral_contrast_0'}: error: " in failed.stderr
    assert (out / "masked_prediction_1" / "finetune_train" / "scores.json").exists()
    assert "* spectral_contrast_0: error: " in (out / "page" / "OBJECTIVES.md").read_text("utf-8")


@pytest.mark.slow
def test_the_search_tries_as_many_settings_of_each(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "costs.tsv").write_text(COSTS, "utf-8")
    result = run_objectives(tmp_path, corpus, "search", *SMALLEST, LABELS="train", SEARCH_BUDGET="1.5")
    assert result.returncode == 0, result.stderr
    head, _, *rows = result.stdout.splitlines()
    assert head.startswith("| objective | settings |")
    names = [row.split("|")[1].strip() for row in rows]
    assert names.count("masked_prediction") == names.count("spectral_contrast") == len(names) / 2 > 1
    assert sum("**" in row for row in rows) == 2
    assert updates_of(tmp_path / "search" / "spectral_contrast_1" / "pretrain") == 15 // 2
    (tmp_path / "search" / "spectral_contrast_1" / "probes.json").unlink()
    shutil.rmtree(tmp_path / "search" / "spectral_contrast_1" / "pretrain")
    (tmp_path / "search" / "spectral_contrast_1" / "pretrain").write_text("no folder")
    failed = run_objectives(tmp_path, corpus, "search", *SMALLEST, LABELS="train", SEARCH_BUDGET="1.5")
    assert failed.returncode == 1
    assert f"failed: {tmp_path / 'search' / 'spectral_contrast_1'}: error: " in failed.stderr
    assert not (tmp_path / "scratch_0").exists()


@pytest.mark.slow
def test_costs_are_measured_once(corpus: Path, tmp_path: Path) -> None:
    unpack = [sys.executable, "-m", "speechssl", "unpack", *map(str, corpus.glob("pretrain_*.tsv"))]
    subprocess.run([*unpack, "--output", str(tmp_path / "data")], check=True)
    program = [sys.executable, str(RECIPE / "costs.py"), str(tmp_path), "--turns", "1", "--updates", "1"]
    environment = os.environ | {"ENCODER": str(TINY_ENCODER)}
    for names in (["masked_prediction"], ["masked_prediction", "wav2vec2"]):
        subprocess.run([*program, *names], env=environment, check=True)
        lines = (tmp_path / "costs.tsv").read_text("utf-8").splitlines()
        assert [line.split("\t")[0] for line in lines[1:]] == names
    reference, other = ([float(value) for value in line.split("\t")[1:]] for line in lines[1:])
    assert reference[0] == 1
    assert all(value > 0 for value in (*reference[1:], other[0], *other[2:]))
    assert not (tmp_path / "costs").exists()


def test_an_unknown_objective_is_refused(tmp_path: Path) -> None:
    result = run_objectives(tmp_path, tmp_path, OBJECTIVES="wav2vec3")
    assert result.returncode == 1
    assert result.stderr.startswith("error: OBJECTIVES=wav2vec3: expected names of masked_prediction ")
