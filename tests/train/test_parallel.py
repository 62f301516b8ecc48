"""Two processes train as one does."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from speechssl.checkpoint.reader import read_model
from speechssl.checkpoint.training_state import load_progress
from speechssl.data.manifest import Manifest, read_manifest
from speechssl.data.units import Letters
from speechssl.errors import CheckpointError, ConfigError, ManifestError
from speechssl.train import parallel, update
from speechssl.train.finetune import finetune
from speechssl.train.finetune import make_task as make_finetune_task
from speechssl.train.log import read_log
from speechssl.train.parallel import Ranks, joined_ranks
from speechssl.train.pretrain import make_task, pretrain
from speechssl.train.throughput import METRICS
from speechssl.train.unreadable import UNREADABLE_FILE

# AdamW divides by the gradient's size, so that with its usual epsilon it would turn the rounding errors of gradients
# that are 0 (such as those of biases of attention's keys) into whole steps.
SETTINGS = (
    "trainer.num_steps=3",
    "trainer.microbatches=4",
    "trainer.log_steps=1",
    "trainer.evaluate_steps=2",
    "optimizer.epsilon=1e-3",
    "optimizer.learning_rate=1e-2",
)
UNREADABLE = "trainer.max_unreadable=0.5"
HEAD_FIRST = ("head_only_steps=1", "feature_encoder_is_frozen=true")


@pytest.fixture(scope="module")
def of_two(corpus: Any, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs "pretrain" and "finetune" of two processes each, at the same time because most of it is start-up."""
    folder = tmp_path_factory.mktemp("two")
    dev = corpus.write(folder / "dev.tsv", ["ab cd"])
    damaged = corpus.write_damaged(folder / "damaged.tsv")
    settings = {
        "pretrain": (*SETTINGS, UNREADABLE, f"data.train={damaged}"),
        "finetune": (*SETTINGS, *HEAD_FIRST, f"init={pretrained}", f"data.dev={dev}"),
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    processes = {}
    for stage in settings:
        arguments = [stage, *corpus.arguments(stage, *settings[stage]), "--output", str(folder / stage)]
        with (folder / f"{stage}.stdout").open("w") as stdout, (folder / f"{stage}.stderr").open("w") as stderr:
            command = [*torchrun, "-m", "speechssl", *arguments]
            processes[stage] = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)
    for stage, process in processes.items():
        status, said = process.wait(), (folder / f"{stage}.stderr").read_text()
        assert status == 0, said
        assert (folder / f"{stage}.stdout").read_text() == ""
        assert said.count(f"{stage} train  step 3/3") == 1, "one process speaks for both"
        assert "on 2 x cpu" in said
    return folder


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    """The weights have moved the same way, relative to how far they moved."""
    assert found.keys() == expected.keys()
    moved = 0
    for name, tensor in expected.items():
        distance = (tensor - start[name]).norm()
        moved += int(distance > 1e-4)
        assert (found[name] - tensor).norm() <= 1e-3 * distance + 1e-5, name
    assert moved > len(expected) / 2


def assert_same_logs(found: Path, expected: Path) -> None:
    one, two = read_log(found), read_log(expected)
    assert [(record["step"], record["split"]) for record in one] == [
        (record["step"], record["split"]) for record in two
    ]
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() - METRICS == theirs.keys() - METRICS
        for name in mine.keys() - {*METRICS, "split"}:
            assert mine[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-4), (mine["step"], name)


def initial_weights(run: Callable[[], None], monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Tensor]:
    """The weights after an update without effect."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda optimizer: None)
        run()
    return read_model(folder).weights


def test_two_processes_pretrain_as_one(
    of_two: Path, corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise and dropout are on: they belong to the microbatch, not to the process. Two recordings cannot be read.
    config = corpus.pretrain_config(*SETTINGS, UNREADABLE, f"data.train={of_two / 'damaged.tsv'}")
    pretrain(config, tmp_path / "one")
    start = initial_weights(lambda: pretrain(config, tmp_path / "start"), monkeypatch, tmp_path / "start")
    found, expected = (
        read_model(of_two / "pretrain" / "latest").weights,
        read_model(tmp_path / "one" / "latest").weights,
    )
    assert_close(found, expected, start)
    assert_same_logs(of_two / "pretrain", tmp_path / "one")
    named = [(run / UNREADABLE_FILE).read_text("utf-8") for run in (of_two / "pretrain", tmp_path / "one")]
    assert named[0] == named[1]
    assert named[0].count("\n") == 2


def test_two_processes_finetune_as_one(
    of_two: Path, corpus: Any, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The dev set is one batch, so that the second process has none.
    settings = [*SETTINGS, f"init={pretrained}", *HEAD_FIRST, f"data.dev={of_two / 'dev.tsv'}"]
    config = corpus.finetune_config(*settings)
    finetune(config, tmp_path / "one")
    start = initial_weights(lambda: finetune(config, tmp_path / "start"), monkeypatch, tmp_path / "start")
    two = of_two / "finetune"
    found, expected = read_model(two / "latest").weights, read_model(tmp_path / "one" / "latest").weights
    learned = {name for name in expected if not name.startswith("encoder.feature_encoder.")}
    assert all(torch.equal(found[name], start[name]) for name in expected.keys() - learned)
    assert_close(*({name: weights[name] for name in learned} for weights in (found, expected, start)))
    assert_same_logs(two, tmp_path / "one")
    states = [safetensors.torch.load_file(run / "latest" / "training.safetensors") for run in (tmp_path / "one", two)]
    assert states[0].keys() == states[1].keys()
    # What two processes began, one can go on with.
    finetune(corpus.finetune_config(*settings, "trainer.num_steps=4"), two)
    assert load_progress(two).step == 4


def test_alone_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_ranks("cpu") as ranks:
        assert ranks == Ranks(0, 1, torch.device("cpu"))
        assert ranks.is_first
        assert ranks.sum_named({"a": 1.0}) == {"a": 1.0}
        assert ranks.any(True)
        assert not ranks.any(False)
        assert ranks.first_decides(lambda: 3) == 3
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_one_gpu_for_several_processes_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = rf"^trainer\.device: expected cuda, found {device}: each process has a GPU of its own$"
    with pytest.raises(ConfigError, match=message), joined_ranks(device):
        pass


@pytest.mark.parametrize("device", [None, "cuda"])
def test_a_process_touches_no_gpu_but_its_own(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[Any] = []

    def resolve(name: Any) -> torch.device:
        touched.append(("resolve", name))
        raise CheckpointError("enough")

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: touched.append(("set", index)))
    monkeypatch.setattr(parallel, "resolve_device", resolve)
    with pytest.raises(CheckpointError, match="enough"), joined_ranks(device):
        pass
    assert touched == [("set", 3), ("resolve", "cuda:3")]


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(CheckpointError, match="device teapot: not available"), joined_ranks("teapot"):
        pass


def in_threads(monkeypatch: pytest.MonkeyPatch, count: int, run: Callable[[Ranks], Any]) -> list[Any]:
    """What each rank returns, or the error that ends it; they are threads that gather through a list."""
    barrier, values = threading.Barrier(count, timeout=30), [None] * count

    def gather(self: Ranks, value: Any) -> list[Any]:
        values[self.rank] = value
        barrier.wait()
        of_ranks = list(values)
        barrier.wait()
        return of_ranks

    def outcome(rank: int) -> Any:
        try:
            return run(Ranks(rank, count, torch.device("cpu")))
        except BaseException as error:
            return error

    monkeypatch.setattr(Ranks, "gather", gather)
    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(outcome, range(count)))


def test_one_process_of_a_machine_reads_the_manifest_for_all(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = {0: "one", 1: "one", 2: "two", 3: "two", 4: "one"}
    place, readers = threading.local(), []

    def run(ranks: Ranks) -> Manifest:
        place.rank = ranks.rank

        def read() -> Manifest:
            readers.append(ranks.rank)
            return read_manifest(corpus.train)

        return ranks.share(read)

    monkeypatch.setattr(parallel.socket, "gethostname", lambda: machines[place.rank])
    manifests = in_threads(monkeypatch, len(machines), run)
    assert sorted(readers) == [0, 2]
    for manifest in manifests:
        assert list(manifest) == list(manifests[0])
        assert manifest.digest == manifests[0].digest
    blocks = [os.fstat(manifest.columns._block).st_ino for manifest in manifests]
    assert blocks == [blocks[rank] for rank in (0, 0, 2, 2, 0)]


def test_a_manifest_that_cannot_be_read_ends_all_and_one_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.socket, "gethostname", lambda: "one")
    first, second = in_threads(monkeypatch, 2, lambda ranks: ranks.share(lambda: read_manifest("nowhere.tsv")))
    assert isinstance(first, ManifestError)
    assert isinstance(second, SystemExit)
    assert second.code == 1


def test_ranks_have_batches_of_one_length_in_each_update(corpus: Any, tmp_path: Path) -> None:
    texts = ["abcd"[: 1 + number % 4] * 2 for number in range(48)]
    settings = [
        f"data.train={corpus.write(tmp_path / 'train.tsv', texts, letter_samples=4_800)}",
        "trainer.microbatches=4",
        "trainer.num_steps=12",
        "batches={seconds=4, min_seconds=0.5, max_seconds=30, num_buckets=4}",
    ]
    task = make_task(corpus.pretrain_config(*settings), *map(read_manifest, (tmp_path / "train.tsv", corpus.dev)))
    assert task.dev.sampler.microbatches == 1
    config = corpus.pretrain_config(*settings).trainer
    own = []
    for rank in range(2):
        numbers = update._numbers(config, Ranks(rank, 2, torch.device("cpu")), 0)
        own.append([task.train.sampler[number].crop_samples for number in numbers])
    updates = [{*own[0][first : first + 2], *own[1][first : first + 2]} for first in range(0, len(own[0]), 2)]
    assert len(set.union(*updates)) > 2
    assert sum(len(lengths) == 1 for lengths in updates) >= 0.6 * len(updates)


def test_every_stream_knows_the_size_of_an_update(corpus: Any) -> None:
    for section in ("joint={labeled_too=true, batches={min_seconds=0.5}}", "pseudo_labels={start_step=1}"):
        config = corpus.finetune_config(
            f"data.unlabeled={corpus.train}", "trainer.microbatches=6", section, stage="scratch"
        )
        task = make_finetune_task(
            config, None, Letters.from_texts(["abcd"]), *map(read_manifest, (corpus.train, corpus.dev, corpus.train))
        )
        assert len(task.train.streams) > 1
        assert {stream.sampler.microbatches for stream in task.train.streams} == {6}
        assert task.dev.sampler.microbatches == 1
