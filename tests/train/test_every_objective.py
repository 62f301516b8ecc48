"""What holds for every objective: each file of recipes/prompts/objectives, with tones instead of speech."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch
from objective_cases import NAMES, PROMPTS, SETTINGS, Tones, every_objective, losses_of
from programs import load_tool
from torch import Tensor
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.training_state import load_progress, load_training_tensors
from speechssl.data.batches import Example
from speechssl.data.manifest import read_manifest, read_utterance
from speechssl.objective.objective import weighted_sum
from speechssl.objective.teacher import FrozenTeacher, Teacher, split_weights
from speechssl.train import update
from speechssl.train.finetune import FinetuneConfig, finetune
from speechssl.train.log import read_log
from speechssl.train.pretrain import pretrain
from speechssl.train.throughput import METRICS

_MIXES = "the other voice is one of the batch"
NOT_ONE_BY_ONE: dict[str, str] = {
    "denoising": _MIXES,
    "mixing": _MIXES,
    "reversed_future": "the past is told from that of the batch's other utterances",
}
"""Objectives whose loss of an utterance depends on the others of its batch by design, and why."""
OF_THE_BATCH = ("perplexity", "unused", "use", "spread", "rank", "deviation")
"""What is measured of a batch as a whole: terms with these words in their names."""

SHARDED_TOO = ("byol", "data2vec", "dinosr", "hubert_second", "wav2vec")
"""Those with teachers of each kind, codebooks that follow, or another context network."""


@every_objective
def test_every_parameter_takes_part_in_every_update(name: str, tones: Tones) -> None:
    """As training on several processes needs, which waits for the gradients of all."""
    task = tones.task(name)
    update.freeze(task.model, task.frozen(0))
    batch = next(task.train.read([0]))
    weighted_sum(losses_of(task, batch), batch.counts).backward()
    teachers = [module for module in task.model.modules() if isinstance(module, Teacher)]
    of_teachers = {id(parameter) for teacher in teachers for parameter in teacher.parameters()}
    for path, parameter in task.model.named_parameters():
        if id(parameter) in of_teachers:
            assert not parameter.requires_grad, path
            assert parameter.grad is None, path
        elif parameter.requires_grad:
            assert parameter.grad is not None, path
            assert parameter.grad.isfinite().all(), path
    first = task.model.encoder.feature_encoder.parameters()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in first), "the encoder learns"


@every_objective
def test_chance_is_what_equal_scores_give(name: str, tones: Tones) -> None:
    task = tones.task(name)
    for path, parameter in task.model.objective.named_parameters():
        if not path.startswith(("quantizer", "target_projection", "teacher")):
            torch.nn.init.zeros_(parameter)
    batch = next(task.train.read([0]))
    losses = losses_of(task, batch)
    margin = 0.1 if "left_out" in losses else 1e-5  # some distractors are the same code as the target
    for metric in task.chance.keys() - {"accuracy", "hidden_accuracy", "visible_accuracy"}:  # there is no best score
        term = losses[metric]
        assert term.sum.item() / batch.counts[term.count] == pytest.approx(task.chance[metric], rel=margin), metric


@every_objective
def test_a_padded_batch_is_its_utterances_one_by_one(name: str, tones: Tones) -> None:
    if name in NOT_ONE_BY_ONE:
        pytest.skip(NOT_ONE_BY_ONE[name])
    task = tones.task(name, "batches.num_buckets=1")
    task.model.eval()
    collate = task.train.collate
    examples = [Example(i, 0, read_utterance(row), row.text) for i, row in enumerate(read_manifest(tones.train))]
    together = collate(examples)
    assert together.audio.lengths is not None
    with torch.no_grad():
        found = losses_of(task, together)
        apart = [losses_of(task, collate([example])) for example in examples]
    for term_name, term in found.items():
        if not any(word in term_name.split("_") for word in OF_THE_BATCH):
            expected = sum(float(losses[term_name].sum) for losses in apart)
            assert float(term.sum) == pytest.approx(expected, rel=2e-3, abs=1e-3), term_name


@every_objective
def test_a_batch_is_made_in_another_process(name: str, tones: Tones) -> None:
    task = tones.task(name)
    batch = next(task.train.read([0]))
    assert pickle.loads(pickle.dumps(task.train.collate)) == task.train.collate
    restored = pickle.loads(pickle.dumps(batch))
    assert restored.counts == batch.counts
    assert {term.count for term in losses_of(task, batch).values()} <= batch.counts.keys()


def states(folder: Path) -> dict[str, Tensor]:
    """Weights, and what else a resumed run reads."""
    return dict(read_model(folder / "latest").weights) | load_training_tensors(folder)


@pytest.fixture(scope="module")
def whole(tones: Tones, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs of four updates, made when they are first asked for."""
    folder = tmp_path_factory.mktemp("whole")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            pretrain(tones.config(name), folder / name)
        return folder / name

    return run


@every_objective
def test_it_resumes_exactly(
    name: str,
    tones: Tones,
    whole: Callable[[str], Path],
    tmp_path: Path,
    kill_after_save: Callable[[Callable[[], None]], None],
) -> None:
    kill_after_save(lambda: pretrain(tones.config(name), tmp_path / "run"))
    assert load_progress(tmp_path / "run").step == 2
    pretrain(tones.config(name), tmp_path / "run")
    found, expected = states(tmp_path / "run"), states(whole(name))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


@every_objective
def test_what_is_saved_has_no_teacher_and_every_value_is_finite(
    name: str, tones: Tones, whole: Callable[[str], Path]
) -> None:
    weights, task = read_model(whole(name) / "latest").weights, tones.task(name)
    assert weights.keys() == split_weights(task.model)[0].keys()
    follows = any(isinstance(m, Teacher) and not isinstance(m, FrozenTeacher) for m in task.model.modules())
    assert not (follows and task.best_metric), "losses against targets that move do not compare"
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())
    for record in read_log(whole(name)):
        assert all(abs(value) < 1e6 for value in record.values() if isinstance(value, float)), record


@every_objective
def test_what_it_learned_goes_on_and_is_fine_tuned_and_used(
    name: str, tones: Tones, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    run, learned = whole(name), read_model(whole(name))
    encoder = {key: tensor for key, tensor in learned.weights.items() if key.startswith("encoder.")}

    # A rate of next to nothing shows with what weights a training begins.
    begin = (f"init={run}", "trainer.num_steps=1", "optimizer.learning_rate=1e-12")
    pretrain(tones.config(name, *begin), tmp_path / "more")
    manifests = (f"data.train={tones.train}", f"data.dev={tones.dev}")
    settings = (setting for setting in SETTINGS if not setting.startswith("trainer.num_steps"))
    finetune(FinetuneConfig.load([PROMPTS / "finetune.toml"], [*manifests, *settings, *begin]), tmp_path / "tuned")
    for folder in ("more", "tuned"):
        found = read_model(tmp_path / folder).weights
        for key, tensor in encoder.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-6, msg=f"{folder}: {key}")

    said = CliRunner().invoke(app, ["inspect", str(run)])
    assert said.exit_code == 0, said.stderr
    assert f"objective:  {tones.config(name).objective.kind}\n" in said.stdout
    row = read_manifest(tones.dev)[0]
    file = tmp_path / "features.safetensors"
    result = CliRunner().invoke(app, ["extract", str(run), row.path, "-o", str(file), "--device", "cpu"])
    assert result.exit_code == 0, result.stderr
    features = safetensors.torch.load_file(file)[row.path]
    expected = learned.encoder("cpu").encode(torch.from_numpy(read_utterance(row))[None]).context[0]
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def of_two(tones: Tones, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes, of all objectives one after another: most of it is start-up."""
    folder = tmp_path_factory.mktemp("two")
    files = []
    for kind, names in (("ddp", NAMES), ("fsdp", SHARDED_TOO)):
        for name in names:
            files.append(folder / f"{name}.{kind}.json")
            files[-1].write_text(json.dumps(tones.config(name, f"trainer.parallel={kind}").to_dict()))
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [*launcher, str(Path(__file__).with_name("ranks_run.py")), str(folder), *map(str, files)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "ddp") for name in NAMES), *((name, "fsdp") for name in SHARDED_TOO)]
)
def test_two_processes_train_it_as_one(name: str, kind: str, of_two: Path, whole: Callable[[str], Path]) -> None:
    run = of_two / f"{name}.{kind}"
    found, expected = states(run), states(whole(name))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=2e-3, atol=2e-5, msg=key)
    for mine, theirs in zip(read_log(run), read_log(whole(name)), strict=True):
        for metric in mine.keys() - {*METRICS, "split"}:
            assert mine[metric] == pytest.approx(theirs[metric], rel=2e-3, abs=1e-4), metric


@pytest.fixture(scope="module")
def model_table() -> ModuleType:
    return load_tool("model_table")


@every_objective
def test_the_cost_of_an_update_is_known(name: str, tones: Tones, model_table: ModuleType) -> None:
    parts = model_table.model_parts(tones.config(name), 4.0)
    assert sum(part.flops for part in parts) > 1e8


@pytest.mark.parametrize("freeze_step", [0, 1])
def test_what_is_frozen_from_a_step_on_does_not_learn_and_the_latest_is_the_best(
    freeze_step: int, tones: Tones, tmp_path: Path
) -> None:
    """DinoSR's, whose dev loss at one step says nothing of that at another."""
    overrides = (f"objective.freeze_step={freeze_step}", "trainer.num_steps=2", "trainer.evaluate_steps=1")
    first = {name: weight.clone() for name, weight in tones.task("dinosr", *overrides).model.state_dict().items()}
    pretrain(tones.config("dinosr", *overrides), tmp_path / "run")
    weights = read_model(tmp_path / "run" / "latest").weights
    for name in ("encoder.feature_encoder.layers.0.conv.weight", "encoder.context.projection.weight"):
        assert torch.equal(weights[name], first[name]) is (freeze_step == 0), name
    assert not torch.equal(weights["objective.heads.0.weight"], first["objective.heads.0.weight"])
    assert (tmp_path / "run" / "best").resolve() == (tmp_path / "run" / "latest").resolve()
    assert load_progress(tmp_path / "run").best_step == 2
