"""What a run says: the console, the JSONL log, TensorBoard."""

import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from speechssl.objective.objective import Losses, Term
from speechssl.train.log import MetricSums, RunLog, read_log, read_samples
from speechssl.train.parallel import Ranks
from speechssl.train.task import Sample
from speechssl.train.writers import LogStart

ALONE = Ranks(0, 1, torch.device("cpu"))


def open_log(
    folder: Path, stage: str, shown: Sequence[str] = (), first_step: int = 0, num_steps: int = 100, **chance: float
) -> RunLog:
    return RunLog(LogStart(folder, stage, shown, chance, first_step, num_steps), ["tensorboard"])


def losses(total: float, accuracy: float) -> Losses:
    return {
        "whole": Term(torch.tensor(total, requires_grad=True), "frames", 1.0),
        "other": Term(torch.tensor(2.0), "utterances", 0.5),
        "accuracy": Term(torch.tensor(accuracy), "frames"),
    }


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_means_are_over_everything_counted_since_the_last_report() -> None:
    sums = MetricSums()
    sums.add(losses(10.0, 1.0), {"frames": 3, "utterances": 1})
    sums.add(losses(2.0, 1.0), {"frames": 1, "utterances": 1})
    assert sums.means(ALONE) == {"loss": 4.0, "whole": 3.0, "other": 2.0, "accuracy": 0.5}
    sums.add(losses(5.0, 0.0), {"frames": 5, "utterances": 2})
    means = sums.means(ALONE)
    assert (means["loss"], means["other"]) == (1.5, 1.0)


def test_of_nothing_counted_the_mean_is_0() -> None:
    sums = MetricSums()
    sums.add({"visible": Term(torch.tensor(0.0), "visible")}, {"visible": 0})
    assert sums.means(ALONE)["visible"] == 0


def test_sums_hold_no_graph() -> None:
    sums = MetricSums()
    sums.add(losses(1.0, 0.0), {"frames": 1, "utterances": 1})
    assert not any(value.requires_grad for value in sums._sums.values())


def test_the_log_is_json_a_line_and_tensorboard_has_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_log(tmp_path, "pretrain", ("loss", "wer"), 0, 100) as log:
        log.write(10, "train", {"loss": 0.1 + 0.2, "gradient_norm": 1e-9, "audio_seconds_per_second": 12.3})
        log.write(10, "dev", {"wer": 0.5, "loss": 2.0})
        # On the disk at once: a killed run must find here everything up to its checkpoint.
        assert [record["split"] for record in read_log(tmp_path)] == ["train", "dev"]
        assert curve(tmp_path, "dev/wer") == [(10, 0.5)]
    lines = (tmp_path / "log.jsonl").read_text("utf-8").splitlines()
    expected = [
        {
            "step": 10,
            "split": "train",
            "loss": 0.1 + 0.2,
            "gradient_norm": 1e-9,
            "audio_seconds_per_second": 12.3,
        },
        {"step": 10, "split": "dev", "wer": 0.5, "loss": 2.0},
    ]
    assert [json.loads(line) for line in lines] == expected == read_log(tmp_path)
    assert curve(tmp_path, "train/loss") == [(10, pytest.approx(0.3))]
    assert curve(tmp_path, "train/gradient_norm") == [(10, pytest.approx(1e-9))]
    out, err = capsys.readouterr()
    assert out == ""
    shown = err.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("pretrain train  step 10/100  loss 0.3  12 s of audio/s  left 0:00:0")
    assert shown[1].startswith("pretrain dev    step 10/100  loss 2  wer 0.5  left 0:00:0")


def test_small_values_are_shown_with_an_exponent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_log(tmp_path, "finetune", ("a", "b", "c", "d"), 0, 2) as log:
        log.write(1, "train", {"a": 0.00123, "b": 0.0, "c": -0.00456, "d": math.inf})
    assert "a 1.23e-03  b 0  c -4.56e-03  d inf" in capsys.readouterr().err


def test_a_resumed_log_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def write(steps: range, first_step: int, value: float) -> None:
        with open_log(tmp_path, "pretrain", (), first_step, 100) as log:
            for step in steps:
                log.write(step, "train", {"loss": value * step})
                log.write(step, "dev", {"loss": -value * step})

    write(range(1, 8), 0, 1.0)
    write(range(5, 7), 4, 10.0)
    write(range(7, 9), 6, 100.0)
    expected = [1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 700.0, 800.0]
    records = read_log(tmp_path)
    assert [(r["step"], r["loss"]) for r in records if r["split"] == "train"] == list(enumerate(expected, 1))
    assert [(r["step"], -r["loss"]) for r in records if r["split"] == "dev"] == list(enumerate(expected, 1))
    assert curve(tmp_path, "train/loss") == list(enumerate(expected, 1)), "TensorBoard shows what was undone"


def test_a_clock_that_jumps_back_changes_no_curve_and_no_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(2e9, -1e6)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    for first_step in (0, 1):
        with open_log(tmp_path, "pretrain", first_step=first_step) as log:
            for step in (1, 2):
                log.write(first_step + step, "train", {"loss": first_step + 0.5})
    assert curve(tmp_path, "train/loss") == [(1, 0.5), (2, 1.5), (3, 1.5)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert 0 <= events[2].wall_time - events[1].wall_time < 60


def test_samples_of_steps_that_were_undone_are_deleted(tmp_path: Path) -> None:
    def write(steps: range, first_step: int, text: str) -> None:
        with open_log(tmp_path, "finetune", first_step=first_step) as log:
            for step in steps:
                log.write(step, "dev", {"wer": 1.0}, [Sample(3, "a *b*", f"{text} {step}"), Sample(5, "é\t", "")])

    write(range(1, 4), 0, "old")
    write(range(3, 5), 2, "new")
    lines = read_samples(tmp_path)
    assert [line["hypothesis"] for line in lines[::2]] == ["old 1", "old 2", "new 3", "new 4"]
    assert lines[-1] == {"step": 4, "utterance": 5, "reference": "é\t", "hypothesis": ""}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (shown,) = [event for event in events.Tensors("transcripts/3/text_summary") if event.step == 4]
    assert shown.tensor_proto.string_val == [b"    a *b*\n    new 4"]


def test_what_a_guess_would_reach_is_shown_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"accuracy": 0.5, "loss": 2.0, "waiting_for_data": 0.099}
    with open_log(tmp_path, "pretrain", ("loss", "accuracy"), accuracy=1 / 101) as log:
        log.write(1, "train", metrics)
        log.write(2, "train", metrics | {"waiting_for_data": 0.25})
    first, second = capsys.readouterr().err.splitlines()
    assert "  loss 2  accuracy 0.5 (chance 9.90e-03)  left " in first
    assert "  25% of the time waiting for data  left " in second


def test_a_run_begun_anew_has_a_new_log(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with open_log(tmp_path, "pretrain", (), 0, 10) as log:
            log.write(1, "train", {"loss": value})
    assert [record["loss"] for record in read_log(tmp_path)] == [2.0]


@pytest.mark.parametrize("torn", ['{"step": 2, "spl', '{"step": 2, "split": "train", "loss": 0.5}', "\n"])
def test_a_line_that_a_kill_cut_short_is_no_line(tmp_path: Path, torn: str) -> None:
    whole = '{"step": 1, "split": "train", "loss": 1.0}\n'
    (tmp_path / "log.jsonl").write_text(whole + torn)
    assert read_log(tmp_path)[0] == {"step": 1, "split": "train", "loss": 1.0}
    with open_log(tmp_path, "pretrain", (), 1, 10) as log:
        log.write(2, "train", {"loss": 2.0})
    assert (tmp_path / "log.jsonl").read_text() == whole + '{"step": 2, "split": "train", "loss": 2.0}\n'


@pytest.mark.parametrize("line", ["5", "null", "{}", '{"step": "x"}'])
def test_what_is_no_line_ends_the_log(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1, "loss": 2}}\n{line}\n{{"step": 2}}\n')
    assert read_log(tmp_path) == [{"step": 1, "loss": 2}]


def test_a_folder_without_a_log_has_no_lines(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
