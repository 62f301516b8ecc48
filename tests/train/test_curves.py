import json
import sys
from pathlib import Path
from typing import Any

import pytest

from speechssl.__main__ import main
from speechssl.errors import TrainingError
from speechssl.train.curves import find_deviations, healthy_band, read_curves, write_curves
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
    assert read_curves(reference) == {("dev", "loss", 10): (4.0, 4.1, 4.2), ("dev", "loss", 20): (3.0, 3.1, 3.2)}


def test_the_band_is_five_deviations_wide_or_two_per_cent() -> None:
    assert healthy_band([3.0, 3.1, 3.2]) == pytest.approx((2.6, 3.6))
    assert healthy_band([5.0, 5.0]) == pytest.approx((4.9, 5.1))


def test_leaving_the_band_is_said_once_until_the_run_is_back(tmp_path: Path) -> None:
    runs = [write_log(tmp_path / str(number), [4 + number / 10] * 5) for number in range(3)]
    write_curves(tmp_path / "curves.tsv", runs, ["loss"])
    run = write_log(tmp_path / "run", [4.1, 9.0, 9.0, 4.1, 1.0])
    where = f"lies outside 3.6 to 4.6, where the runs of {tmp_path / 'curves.tsv'} were"
    expected = [f"dev loss 9 at step 20 {where}", f"dev loss 1 at step 50 {where}"]
    assert find_deviations(tmp_path / "curves.tsv", run) == expected
    assert find_deviations(tmp_path / "curves.tsv", runs[1]) == []


def test_the_command_prints_what_left_the_band_and_exits_with_1(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy, ill = write_log(tmp_path / "healthy", [4.1, 3.1]), write_log(tmp_path / "ill", [4.1, 9.0])
    for runs, status in (([healthy], 0), ([healthy, ill], 1)):
        monkeypatch.setattr(sys, "argv", ["speechssl", "curves", "--reference", str(reference), *map(str, runs)])
        with pytest.raises(SystemExit) as exited:
            main()
        assert exited.value.code == status
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(" lies")[0] for line in lines] == [f"{ill}: dev loss 9 at step 20"] * status


def test_runs_of_another_length_or_without_a_log_are_not_compared(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"expected a run of 20 updates as in .*curves\.tsv, found more"):
        find_deviations(reference, write_log(tmp_path / "longer", [4, 3, 2]))
    with pytest.raises(TrainingError, match=r"none: expected a training run with a log, found none"):
        find_deviations(reference, tmp_path / "none")


def test_logs_of_other_steps_or_none_are_refused(tmp_path: Path) -> None:
    one, other = write_log(tmp_path / "one", [4, 3]), write_log(tmp_path / "other", [4, 3, 2])
    with pytest.raises(TrainingError, match=r"other: expected a log of the same steps and metrics as .*one"):
        write_curves(tmp_path / "curves.tsv", [one, other], ["loss"])
    with pytest.raises(TrainingError, match=r"none: expected a training run with a log, found none"):
        write_curves(tmp_path / "curves.tsv", [tmp_path / "none"], ["loss"])
    with pytest.raises(TrainingError, match=r"expected a log with nope, found none of them"):
        write_curves(tmp_path / "curves.tsv", [one], ["nope"])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "a\tb\n",
        "split\tmetric\tstep\nloss\n",
        "split\tmetric\tstep\tr\ts\nd\tl\tx\t1\t2\n",
        "split\tmetric\tstep\tr\nd\tl\t1\t1\n",
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.tsv").write_text(content, "utf-8")
    with pytest.raises(TrainingError, match=r"bad\.tsv: expected curves of several runs"):
        read_curves(tmp_path / "bad.tsv")


def test_a_run_is_told_from_its_reference(corpus: Any, tmp_path: Path) -> None:
    for name, settings in {"one": (), "same": (), "other": ("objective.penalty_weight=1000.0",)}.items():
        pretrain(corpus.pretrain_config("trainer.num_steps=6", *settings), tmp_path / name)
    curves = tmp_path / "curves.tsv"
    write_curves(curves, [tmp_path / "one", tmp_path / "one"], ["loss"])
    assert find_deviations(curves, tmp_path / "same") == []
    deviations = find_deviations(curves, tmp_path / "other")
    assert [line.partition(" loss ")[0] for line in deviations] == ["train", "dev"]
