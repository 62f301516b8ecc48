"""The prompts recipe at its smallest, from the corpus to transcripts, as a user runs it."""

import json
import subprocess
from pathlib import Path

import pytest
from miniature import RECIPES, run_recipe, set_all

from speechssl.model.encoder import EncoderConfig
from speechssl.train.pretrain import PretrainConfig

RECIPE = RECIPES / "prompts"
CHECKPOINT = RECIPE / "checkpoints" / "masked_prediction_24000"
DATA = ("data.train=none", "data.dev=none", "data.license=none")
VARIANTS = [("wav2vec", "wav2vec", "causal"), ("wav2vec2", "contrastive", "transformer")]
SMALLEST = set_all("trainer.num_steps=2", "data.num_workers=0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("recipe") / "with space"
    result = run_recipe("prompts", out, *SMALLEST, VIRTUAL_ENV="")  # the Python that a user has
    assert result.returncode == 0, result.stderr
    return out, result


def test_every_stage_leaves_its_result(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, result = finished
    assert "0 errors" in (out / "check.txt").read_text("utf-8")
    assert (out / "pretrain" / "best" / "model.safetensors").is_file()
    description = json.loads((out / "finetune" / "best" / "config.json").read_text("utf-8"))
    assert [data["stage"] for data in description["training_data"]] == ["pretrain", "finetune"]
    assert all("CC-BY" in data["license"] for data in description["training_data"])
    scores = json.loads((out / "finetune" / "scores.json").read_text("utf-8"))["evaluations"][0]
    assert scores["num_utterances"] == len(scores["utterances"]) > 100
    assert len((out / "heldout.txt").read_text("utf-8").splitlines()) == 5
    assert [line for line in result.stderr.splitlines() if line.startswith("==")] == [
        f"== {stage}"
        for stage in (
            "unpack",
            "check",
            "pretrain",
            "finetune",
            "evaluate",
            "language_model",
            "self_train",
            "transcribe",
            "results",
        )
    ]
    rows = [(out / "finetune" / f"results_rows{suffix}.md").read_text("utf-8").strip() for suffix in ("", "_lm")]
    assert result.stdout.splitlines()[-2:] == rows
    assert (
        ["| greedy |" in row for row in rows] == ["| beam 50, lm.arpa " in row for row in rows[::-1]] == [True, False]
    )
    for name in ("reference", "transcript", "by a language model"):
        assert result.stdout.count(f"\n  {name} ") == 5


def test_running_again_trains_nothing(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = finished
    before = (out / "finetune" / "log.jsonl").read_bytes()
    result = run_recipe("prompts", out, *SMALLEST, FROM="pretrain", TO="finetune")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("is finished after step 2") == 2
    assert (out / "finetune" / "log.jsonl").read_bytes() == before
    assert "== evaluate" not in result.stderr


def test_the_checkpoint_is_fine_tuned_in_the_place_of_a_pretraining(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(finished[0] / "data")
    result = run_recipe("prompts", tmp_path, *SMALLEST, FROM="pretrain", TO="finetune", INIT=str(CHECKPOINT))
    assert result.returncode == 0, result.stderr
    assert f"not needed: INIT={CHECKPOINT}" in result.stderr
    description = json.loads((tmp_path / "finetune" / "best" / "config.json").read_text("utf-8"))
    pretraining, _ = description["training_data"]
    assert (pretraining["stage"], round(pretraining["hours"], 2)) == ("pretrain", 1.43)
    pretrained = PretrainConfig.load([RECIPE / "encoder.toml", RECIPE / "pretrain.toml"], DATA)
    made = json.loads((CHECKPOINT / "config.json").read_text("utf-8"))
    # It was made before the recipe normalized waveforms, and hears usual levels only.
    former = pretrained.encoder.feature_encoder.model_copy(update={"norm_epsilon": 1e-5})
    former_encoder = pretrained.encoder.model_copy(update={"normalize_waveforms": False, "feature_encoder": former})
    assert EncoderConfig.from_dict(made["encoder"], "encoder") == former_encoder
    assert type(pretrained.objective).from_dict(made["objective"], "objective") == pretrained.objective
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 4 * 2**20


def test_a_changed_setting_is_refused(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = finished
    result = run_recipe(
        "prompts", out, *SMALLEST, "--set", "optimizer.learning_rate=0.5", FROM="finetune", TO="finetune"
    )
    assert result.returncode == 1
    assert "optimizer.learning_rate was 0.004, now 0.5" in result.stderr


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    result = run_recipe("prompts", tmp_path, FROM="polish")
    assert result.returncode == 1
    stages = "unpack check pretrain finetune evaluate language_model self_train transcribe"
    assert result.stderr.strip() == f"error: FROM=polish: expected one of {stages}"


@pytest.mark.parametrize(("name", "objective", "context"), VARIANTS)
def test_variants_run_too(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, name: str, objective: str, context: str
) -> None:
    (tmp_path / "data").symlink_to(finished[0] / "data")
    variant = str(RECIPE / "objectives" / f"{name}.toml")
    result = run_recipe("prompts", tmp_path, *SMALLEST, VARIANT=variant, FROM="pretrain", TO="finetune")
    assert result.returncode == 0, result.stderr
    description = json.loads((tmp_path / "finetune" / "best" / "config.json").read_text("utf-8"))
    assert description["encoder"]["context"]["kind"] == context
    pretrained = json.loads((tmp_path / "pretrain" / "best" / "config.json").read_text("utf-8"))
    assert pretrained["objective"]["kind"] == objective
