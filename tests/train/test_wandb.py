"""The log in Weights & Biases: with a stand-in for the package, and with the package itself, offline."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speechssl.errors import ConfigError
from speechssl.train.log import RunLog, read_log
from speechssl.train.task import Sample
from speechssl.train.writers import LogStart


def log_some(folder: Path, first_step: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"config": {"seed": 3}}), "utf-8")
    with RunLog(LogStart(folder, "pretrain", (), {}, first_step, 10), ["wandb"]) as log:
        log.advance()
        log.write(first_step + 1, "train", {"loss": 1.5})
        log.write(first_step + 2, "dev", {"wer": 0.5}, [Sample(7, "a", "b")])


class StandIn:
    """The package, as far as we use it; it notes all calls."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.num_finished = 0

    def init(self, **values: Any) -> Any:
        self.inits.append(values)

        def finish() -> None:
            self.num_finished += 1

        return SimpleNamespace(
            log=self.logged.append, finish=finish, define_metric=lambda name, step_metric: (name, step_metric)
        )

    def Table(self, columns: list[str], data: list[Any]) -> Any:  # noqa: N802
        return columns, data


def test_a_run_is_gone_on_with_and_a_new_one_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for first_step in (0, 2, 0):
        log_some(tmp_path / "run", first_step)
    first, resumed, anew = wandb.inits
    assert first["id"] == resumed["id"] != anew["id"]
    assert (first["name"], first["job_type"], first["config"]) == ("run", "pretrain", {"seed": 3})
    assert first["dir"] == tmp_path / "run"
    assert wandb.num_finished == 3
    assert wandb.logged[:3] == [
        {"step": 1, "train/loss": 1.5},
        {"step": 2, "dev/wer": 0.5},
        {"step": 2, "dev/transcripts": (["utterance", "reference", "hypothesis"], [[7, "a", "b"]])},
    ]
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2]
    assert not (tmp_path / "run" / "tensorboard").exists()  # nobody asked for it


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^trainer\.writers: wandb needs .*: pip install 'speechssl\[wandb\]'$"):
        log_some(tmp_path / "run", 0)


@pytest.mark.slow
def test_the_package_itself_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_some(tmp_path / "run", 0)
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert all(name in written.read_bytes() for name in (b"train/loss", b"dev/wer", b"dev/transcripts"))
