"""Recordings that cannot be read: left out up to a share, counted and named, and resumed exactly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from speechssl.checkpoint.training_state import load_progress
from speechssl.data.manifest import read_manifest
from speechssl.errors import AudioError, TrainingError
from speechssl.train import reports
from speechssl.train.joint import JointBatches
from speechssl.train.pretrain import make_task, pretrain
from speechssl.train.unreadable import UNREADABLE_FILE, UnreadableCount

SETTINGS = ("trainer.num_steps=6", "trainer.log_steps=2", "trainer.evaluate_steps=6")


@pytest.fixture(scope="module")
def configure(corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A configuration for sixteen utterances, of which two cannot be read: one is missing, one has no numbers."""
    train = corpus.write_damaged(tmp_path_factory.mktemp("damaged") / "train.tsv")
    return lambda share: corpus.pretrain_config(*SETTINGS, f"data.train={train}", f"trainer.max_unreadable={share}")


@pytest.fixture(scope="module")
def whole(configure: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    pretrain(configure("0.13"), folder)
    return folder


def named_in(run: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in (run / UNREADABLE_FILE).read_text("utf-8").splitlines()]
    return [(line["step"], line["where"].rpartition("/")[2]) for line in lines]


def assert_same(run: Path, expected: Path) -> None:
    assert named_in(run) == named_in(expected)
    for name in ("model", "training"):
        tensors = [safetensors.torch.load_file(folder / "latest" / f"{name}.safetensors") for folder in (run, expected)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_up_to_a_share_they_are_left_out_counted_and_named(
    configure: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(configure("0.13"), tmp_path)
    found = named_in(tmp_path)
    assert sorted(where for _, where in found) == ["train.tsv:14", "train.tsv:7"]
    assert all(step in (2, 3, 4, 6) for step, _ in found), "the steps of lines of the log"
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert sum(line.count("train.tsv:") for line in warnings) == 2
    last = warnings[-1]
    assert f"step {max(found)[0]}: 2 of 16 utterances cannot be read, {tmp_path / UNREADABLE_FILE} names them" in last
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert all(line["loss"] > 0 for line in lines if line["split"] == "train")


def test_a_run_that_is_killed_leaves_out_and_counts_the_same(
    configure: Callable[[str], Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    class Killed(UnreadableCount):
        def count(self, step: int, found: Any) -> None:
            super().count(step, found)
            if step == 4:  # behind the checkpoint after step 3
                raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(reports, "UnreadableCount", Killed)
        with pytest.raises(KilledError):
            pretrain(configure("0.13"), tmp_path)
    assert load_progress(tmp_path).step == 3
    pretrain(configure("0.13"), tmp_path)
    assert_same(tmp_path, whole)


def test_above_it_the_run_ends_names_them_and_can_go_on_with_a_larger_one(
    configure: Callable[[str], Any], whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as caught:
        pretrain(configure("0.12"), tmp_path)
    message = str(caught.value)
    assert "2 of 16 utterances cannot be read" in message
    assert "trainer.max_unreadable allows a share of 0.12: " in message
    assert ": expected " in message
    assert "\n" not in message
    assert len(named_in(tmp_path)) == 2
    pretrain(configure("0.13"), tmp_path)
    assert_same(tmp_path, whole)


def test_unless_asked_the_first_one_ends_the_run(configure: Callable[[str], Any], corpus: Any, tmp_path: Path) -> None:
    config = configure("0")
    with pytest.raises(TrainingError, match="1 utterances are unfit for training"):
        pretrain(config, tmp_path / "missing")
    missing = Path(read_manifest(config.data.train)[11].path)
    missing.write_bytes(Path(read_manifest(corpus.train)[11].path).read_bytes())
    try:
        with pytest.raises(AudioError, match=r"4\.wav: expected finite samples, found nan at sample [0-9]+$"):
            pretrain(config, tmp_path / "damaged")
    finally:
        missing.unlink()


def test_a_dev_set_is_read_as_a_whole(configure: Callable[[str], Any], corpus: Any, tmp_path: Path) -> None:
    config = configure("0.5")
    data = config.data.model_copy(update={"dev": config.data.train, "train": corpus.train})
    with pytest.raises(TrainingError, match="unfit for training"):
        pretrain(config.model_copy(update={"data": data}), tmp_path)


def test_all_streams_of_a_joint_batch_do_without(corpus: Any) -> None:
    config = corpus.pretrain_config()
    train = make_task(config, read_manifest(corpus.train), read_manifest(corpus.dev)).train
    batches = JointBatches(**vars(train), others={"other": train})
    assert not any(stream.reader.skips_unreadable for stream in batches.streams)
    assert all(stream.reader.skips_unreadable for stream in batches.skipping_unreadable().streams)
    assert train.reader.min_samples == 4_800
