"""Runs that go back to a checkpoint and learn more slowly."""

import json
from pathlib import Path
from typing import Any

import pytest
from toys import Toys, train_toys

from speechssl.checkpoint.training_state import load_progress
from speechssl.errors import StoppedError, TrainingError
from speechssl.objective.objective import Limit
from speechssl.train import run as run_module
from speechssl.train.finetune import finetune
from speechssl.train.health import BLANK, CLIPPED, RISING, SHIFTED, SOUND, Health, RollBackError
from speechssl.train.log import read_log
from speechssl.train.schedule import Course, LearningRate, ScheduleConfig
from speechssl.train.throughput import METRICS

# The rate grows until training comes apart, which it does again if the run goes back only once.
SETTINGS = (
    *("optimizer.learning_rate=1", "optimizer.max_gradient_norm=1e9", 'schedule={kind="polynomial", warmup=1.0}'),
    *("trainer.num_steps=40", "trainer.log_steps=1", "trainer.evaluate_steps=100", "trainer.checkpoint_steps=4"),
    "trainer.writers=[]",
)


def train(corpus: Any, folder: Path, on_warning: str) -> None:
    finetune(corpus.finetune_config(*SETTINGS, f"trainer.on_warning={on_warning}", stage="scratch"), folder)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in line.keys() - METRICS} for line in read_log(folder)]


def course_of(folder: Path) -> dict[str, Any]:
    course: dict[str, Any] = json.loads((folder / "run.json").read_text("utf-8"))["course"]
    return course


def test_a_run_goes_back_and_on_as_one_that_was_told_to(
    corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_itself, by_hand = tmp_path / "by_itself", tmp_path / "by_hand"
    train(corpus, by_itself, "roll_back")
    said = capsys.readouterr().err
    first, *others = course_of(by_itself)["roll_backs"]
    assert f"warning: step {first}: went back to this step with half the learning rate, because of step " in said
    warnings = [json.loads(line) for line in (by_itself / "warnings.jsonl").read_text("utf-8").splitlines()]
    assert [warning["step"] for warning in warnings if warning["kind"] == "roll_back"] == [first, *others]
    lines = lines_of(by_itself)
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 41))
    for line in lines[:-1]:  # the last is an evaluation
        slower = 0.5 ** sum(line["step"] > back for back in (first, *others))
        assert line["learning_rate"] == pytest.approx(slower * (line["step"] - 1) / 40)

    with pytest.raises(TrainingError, match="the loss is rising"):
        train(corpus, by_hand, "stop")
    assert lines_of(by_hand)[:first] == lines[:first]
    record = json.loads((by_hand / "run.json").read_text("utf-8"))
    record["course"]["roll_backs"] = [first]
    (by_hand / "run.json").write_text(json.dumps(record), "utf-8")
    train(corpus, by_hand, "roll_back")
    assert lines_of(by_hand) == lines
    assert course_of(by_hand) == course_of(by_itself)
    for name in ("model.safetensors", "training.safetensors"):
        assert (by_hand / "latest" / name).read_bytes() == (by_itself / "latest" / name).read_bytes()


def test_a_run_does_not_go_back_for_ever(corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    went = []

    def train_badly(*arguments: Any) -> None:
        went.append(arguments[-1])
        raise RollBackError("step 9: expected a good loss, found a bad one")

    with pytest.raises(TrainingError, match=r"^step \d+: .*the loss is rising"):
        train(corpus, tmp_path / "run", "stop")  # which has checkpoints
    (back,) = {json.loads((tmp_path / "run" / "latest" / "training.json").read_text("utf-8"))["step"]}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", train_badly)
        with pytest.raises(TrainingError, match=r"found a bad one \(it has gone back 3 times\)$"):
            train(corpus, tmp_path / "run", "roll_back")
        assert went == [0, back, back, back]  # from where on lines of the log count
        with pytest.raises(TrainingError, match=r"found a bad one \(it has no checkpoint to go back to\)$"):
            train(corpus, tmp_path / "new", "roll_back")


@pytest.mark.parametrize(("stops", "error"), [(False, RollBackError), (True, StoppedError)])
def test_a_run_that_is_asked_to_stop_does_so_whatever_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool, error: type[Exception]
) -> None:
    monkeypatch.setattr("speechssl.train.parallel.Ranks.any", lambda ranks, value: stops)
    bad = Limit("loss", at_least=1e9, meaning="once it is resumed, it finds that again")
    with pytest.raises(error):
        train_toys(Toys(), tmp_path, num_steps=3, on_warning="roll_back", limits=(bad,))
    assert load_progress(tmp_path).step == int(stops)


def test_a_run_goes_back_only_for_what_a_lower_rate_may_help(tmp_path: Path) -> None:
    bad = {limit: limit.at_least - 1 if limit.at_least > 0 else limit.at_most + 1 for limit in (*SOUND, CLIPPED)}
    losses = [4.0, *[2.0] * 20, *[9.0] * 8]
    for limit, value in bad.items():
        health = Health(tmp_path, [], [limit], {}, 10, "roll_back")
        assert [health.check(step, "train", {limit.metric: value}) for step in range(9)] == [None] * 9
    health = Health(tmp_path, [], [BLANK, SHIFTED], {"length_agreement": 0.0}, 10, "roll_back")
    assert health.check(9, "train", {"loss": 1.0}) is health.check(9, "dev", {"nothing_said": 1.0}) is None
    fatal = Limit("variance", at_least=1.0, meaning="it has collapsed")
    problem = Health(tmp_path, [], [fatal], {}, 10, "roll_back").check(3, "train", {"variance": 0.5})
    assert problem == "step 3: expected variance of at least 1, found 0.5: it has collapsed"

    lines = [{"step": step, "split": "train", "loss": loss} for step, loss in enumerate(losses)]
    rising = [Health(tmp_path, lines[:28], [RISING], {}, 30, "roll_back", since) for since in (0, 20)]
    found = [health.check(28, "train", {"loss": 9.0}) for health in rising]
    assert found[0] is not None
    assert found[1] is None  # what it left behind does not count


def test_each_time_the_rate_is_halved_from_there_on() -> None:
    course = Course(length=10, num_steps=10, roll_backs=(2, 2, 6))
    rate = LearningRate(8.0, ScheduleConfig(kind="tri_stage", warmup=0.0, hold=1.0), course)
    assert [rate(step) for step in range(8)] == [8, 8, 2, 2, 2, 2, 1, 1]
    for on_extend in ("continue", "restart"):
        assert course.extended(8, 20, on_extend).roll_backs == (2, 2, 6)
