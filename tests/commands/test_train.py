"""The commands ``pretrain`` and ``finetune``: exit status, messages, where they are printed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from speechssl.__main__ import app
from speechssl.data.manifest import Utterance, write_manifest

CONFIG = """
[data]
train = "{folder}/train.tsv"
dev = "{folder}/train.tsv"
license = "CC0"
num_workers = 0

[batches]
seconds = 4
min_seconds = {min_seconds}

[encoder.feature_encoder]
dims = [8, 8]
kernels = [20, 16]
strides = [10, 16]

[encoder.context]
num_layers = 1
model_dim = 16
num_heads = 2
ffn_dim = 16
position_kernel = 4
position_groups = 2

[trainer]
num_steps = 2
microbatches = 1
device = "cpu"
"""
STAGES = pytest.mark.parametrize("stage", ["pretrain", "finetune"])


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_one_line(result: Result, *parts: str) -> None:
    """It failed with status 1, said why in one line on stderr, and nothing else."""
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings with texts, and a configuration for each stage."""
    generator = np.random.default_rng(0)
    utterances = []
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", generator.uniform(-0.5, 0.5, 16_000), 16_000)
        utterances.append(Utterance(str(tmp_path / f"{number}.wav"), 16_000, text="ab"))
    write_manifest(tmp_path / "train.tsv", utterances, ".")
    for stage, min_seconds in (("pretrain", 0.5), ("finetune", 0)):
        (tmp_path / f"{stage}.toml").write_text(CONFIG.format(folder=tmp_path, min_seconds=min_seconds), "utf-8")
    return tmp_path


@STAGES
def test_training_speaks_on_stderr_only(folder: Path, stage: str) -> None:
    result = run(stage, folder / f"{stage}.toml", "--output", folder / "run")
    assert (result.exit_code, result.stdout) == (0, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("1 x cpu; 2 updates")
    assert lines[1].startswith(f"{stage} train  step 2/2  loss ")
    assert lines[2].startswith(f"{stage} dev    step 2/2  loss ")
    assert {path.name for path in (folder / "run").iterdir()} == {
        "best",
        "checkpoints",
        "latest",
        "lock",
        "log.jsonl",
        "run.json",
        "tensorboard",
        *(["samples.jsonl"] if stage == "finetune" else []),
    }


def test_a_real_process_trains_and_says_nothing_unasked(folder: Path) -> None:
    command = [sys.executable, "-m", "speechssl", "pretrain", "pretrain.toml", "-o", "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert [line.split("  ")[0].split()[0] for line in result.stderr.splitlines()] == ["0.00", "pretrain", "pretrain"]
    again = run("pretrain", folder / "pretrain.toml", "-o", folder / "run", "--set", f"data.dev={folder}/train.tsv")
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == f"pretrain: {folder / 'run'} is finished after step 2\n"


@STAGES
def test_later_files_and_overrides_win(folder: Path, stage: str) -> None:
    (folder / "more.toml").write_text("[trainer]\nnum_steps = 3\nlog_steps = 1\n")
    files = (folder / f"{stage}.toml", folder / "more.toml")
    result = run(stage, *files, "-o", folder / "run", "--set", "trainer.num_steps=1")
    assert result.exit_code == 0
    assert "1 updates\n" in result.stderr
    assert "step 1/1" in result.stderr


@STAGES
def test_wrong_configurations(folder: Path, stage: str) -> None:
    config = folder / f"{stage}.toml"
    assert_one_line(run(stage, folder / "no.toml", "-o", folder / "run"), str(folder / "no.toml"), "No such file")
    (folder / "bad.toml").write_text("[trainer\n")
    assert_one_line(run(stage, folder / "bad.toml", "-o", folder / "run"), "bad.toml: expected TOML")
    for override, message in (
        ("trainer.color=1", "trainer.color: unknown setting"),
        ("trainer.num_steps=0", "trainer.num_steps: "),
        ("trainer.num_steps=many", "trainer.num_steps: "),
        ("trainer.num_steps", "--set trainer.num_steps: expected section.key=value"),
        ("trainer.device=teapot", "device teapot: not available"),
        ("batches.min_seconds=14", "expected utterances of 14.0 to "),
        ("batches.min_seconds=50", "max_seconds must be at least min_seconds, 50.0, found "),
        ("batches.max_seconds=1e300", "batches.max_seconds"),
        ("batches.num_buckets=100000000000000000000", "batches.num_buckets"),
        ("seed=99999999999999999999999", "seed"),
        ("optimizer.betas=[1.0,0.9]", "optimizer.betas"),
        ("batches.min_seconds=inf", "batches.min_seconds"),
        ("seed=-1", "seed: "),
    ):
        assert_one_line(run(stage, config, "-o", folder / "run", "--set", override), message)
    (folder / "no-data.toml").write_text('[data]\ntrain = "a.tsv"\ndev = "b.tsv"\n')
    assert_one_line(run(stage, folder / "no-data.toml", "-o", folder / "run"), "data.license: this setting is required")
    assert not (folder / "run" / "checkpoints").exists()


@STAGES
@pytest.mark.parametrize("split", ["train", "dev"])
def test_missing_and_malformed_manifests(folder: Path, stage: str, split: str) -> None:
    config = folder / f"{stage}.toml"
    override = f"data.{split}={folder / 'no.tsv'}"
    assert_one_line(run(stage, config, "-o", folder / "run", "--set", override), f"{folder / 'no.tsv'}: ")
    (folder / "bad.tsv").write_text(".\npath\tnum_samples\na.wav\n")
    override = f"data.{split}={folder / 'bad.tsv'}"
    assert_one_line(run(stage, config, "-o", folder / "run", "--set", override), "bad.tsv:3: expected 2 tab-separated")


@STAGES
def test_recordings_that_are_gone_are_listed_before_the_error(folder: Path, stage: str) -> None:
    (folder / "2.wav").unlink()
    result = run(stage, folder / f"{stage}.toml", "-o", folder / "run")
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    # The same manifest serves as training and dev set.
    assert lines[:2] == [f"{folder}/train.tsv:5: {folder}/2.wav: expected an audio file, found none"] * 2
    assert lines[2:] == ["error: 2 utterances are unfit for training; see `speechssl check`"]


@STAGES
def test_a_folder_that_cannot_be(folder: Path, stage: str) -> None:
    result = run(stage, folder / f"{stage}.toml", "-o", folder / "train.tsv")
    assert_one_line(result, f"{folder / 'train.tsv'}: cannot be used as a run folder")


def test_a_model_to_start_from_that_is_none(folder: Path) -> None:
    text = (folder / "finetune.toml").read_text("utf-8")
    head, tail = text.index("[encoder.feature"), text.index("[trainer]")
    (folder / "from.toml").write_text(f'init = "{folder}/model"\n' + text[:head] + text[tail:], "utf-8")
    for content in (None, "{}"):
        if content is not None:
            (folder / "model").mkdir()
            (folder / "model" / "config.json").write_text(content)
        assert_one_line(run("finetune", folder / "from.toml", "-o", folder / "run"), f"{folder / 'model'}")


@STAGES
@pytest.mark.parametrize(
    "arguments", [[], ["config.toml"], ["-o", "run"], ["config.toml", "-o"], ["config.toml", "-o", "run", "--steps=3"]]
)
def test_bad_syntax_is_status_2(stage: str, arguments: list[str]) -> None:
    result = run(stage, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_an_unknown_command_is_status_2() -> None:
    assert run("train").exit_code == 2
