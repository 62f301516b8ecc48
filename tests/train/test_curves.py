import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from speechssl.__main__ import app
from speechssl.errors import TrainingError
from speechssl.train.curves import ReferenceCurves, Watch, write_curves
from speechssl.train.pretrain import pretrain


def write_log(folder: Path, losses: list[float], split: str = "dev") -> Path:
    folder.mkdir()
    lines = [{"step": 10 * number, "split": split, "loss": loss, "wer": 0.5} for number, loss in enumerate(losses, 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    runs = [write_log(tmp_path / str(number), [4 + number / 10, 3 + number / 10]) for number in range(3)]
    assert write_curves(tmp_path / "curves.tsv", runs, ["loss", "accuracy"]) == 2
    return tmp_path / "curves.tsv"


def test_curves_keep_a_column_a_run(reference: Path) -> None:
    assert reference.read_text("utf-8") == (
        "split\tmetric\tstep\trun_1\trun_2\trun_3\ndev\tloss\t10\t4\t4.1\t4.2\ndev\tloss\t20\t3\t3.1\t3.2\n"
    )
    curves = ReferenceCurves.read(reference)
    assert curves.num_steps == 20
    assert curves.values["dev", "loss", 20] == (3.0, 3.1, 3.2)
    assert curves.band("dev", "loss", 20) == pytest.approx((2.6, 3.6))
    assert curves.band("train", "loss", 20) is None


def test_runs_that_agree_have_a_band_of_two_per_cent(tmp_path: Path) -> None:
    runs = [write_log(tmp_path / str(number), [5.0]) for number in range(2)]
    write_curves(tmp_path / "curves.tsv", runs, ["loss"])
    assert ReferenceCurves.read(tmp_path / "curves.tsv").band("dev", "loss", 10) == pytest.approx((4.9, 5.1))


def test_leaving_the_band_is_said_once_until_the_run_is_back(reference: Path) -> None:
    watch = Watch(reference, num_steps=20)
    assert watch.remarks(10, "dev", {"loss": 4.3, "other": 99.0}) == []
    [remark] = watch.remarks(20, "dev", {"loss": 6.0})
    assert remark == f"dev loss 6 at step 20 lies outside 2.6 to 3.6, where the runs of {reference} were"
    assert watch.remarks(20, "dev", {"loss": 6.0}) == []
    assert watch.remarks(20, "dev", {"loss": 3.0}) == []
    assert len(watch.remarks(10, "dev", {"loss": 9.0})) == 1


def test_runs_of_another_length_or_without_reference_are_not_compared(reference: Path) -> None:
    assert Watch(reference, num_steps=30).remarks(20, "dev", {"loss": 99.0}) == []
    assert Watch(None, num_steps=20).remarks(20, "dev", {"loss": 99.0}) == []


def test_logs_of_other_steps_or_none_are_refused(tmp_path: Path) -> None:
    one, other = write_log(tmp_path / "one", [4, 3]), write_log(tmp_path / "other", [4, 3, 2])
    with pytest.raises(TrainingError, match=r"other: expected a log of the same steps and metrics as .*one"):
        write_curves(tmp_path / "curves.tsv", [one, other], ["loss"])
    with pytest.raises(TrainingError, match=r"none: expected a training run with a log, found none"):
        write_curves(tmp_path / "curves.tsv", [tmp_path / "none"], ["loss"])


@pytest.mark.parametrize(
    "content", ["", "a\tb\n", "split\tmetric\tstep\nloss\n", "split\tmetric\tstep\tr\nd\tl\tx\t1\n"]
)
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.tsv").write_text(content, "utf-8")
    with pytest.raises(TrainingError, match=r"bad\.tsv: expected curves of several runs"):
        Watch(tmp_path / "bad.tsv", 1)


def test_a_run_says_that_it_is_not_like_its_reference(
    corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(corpus.pretrain_config("trainer.num_steps=6"), tmp_path / "one")
    arguments = ["curves", str(tmp_path / "one"), str(tmp_path / "one"), "--output", str(tmp_path / "curves.tsv")]
    assert CliRunner().invoke(app, [*arguments, "--metric", "loss"]).exit_code == 0
    capsys.readouterr()
    settings = (f"trainer.reference={tmp_path / 'curves.tsv'}", "trainer.num_steps=6")
    pretrain(corpus.pretrain_config(*settings), tmp_path / "same")
    assert "lies outside" not in capsys.readouterr().err
    pretrain(corpus.pretrain_config(*settings, "objective.penalty_weight=1000.0"), tmp_path / "different")
    err = capsys.readouterr().err
    assert err.count("pretrain: train loss ") == err.count("pretrain: dev loss ") == 1
