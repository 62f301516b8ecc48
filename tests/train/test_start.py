"""Processes that torchrun has started again do not take what dead ones left for that of living ones."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from speechssl.errors import TrainingError
from speechssl.train import start


@pytest.fixture(autouse=True)
def _fails_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_LONGEST_SECONDS", 20.0)


@pytest.mark.parametrize("last", [0, 2])
def test_every_start_has_a_name_of_its_own(last: int) -> None:
    store = dist.HashStore()

    def join(rank: int) -> str:
        time.sleep(0.2 * (rank == last))  # it finds the others there, or they what was left of it
        return start.agree_on_name(store, rank, 3)

    with ThreadPoolExecutor(3) as processes:
        names = [set(processes.map(join, range(3))) for _ in range(3)]
    assert [len(name) for name in names] == [1, 1, 1]
    assert len(set.union(*names)) == 3


def test_an_earlier_start_of_which_some_never_came_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as processes:
        patch.setattr(start, "_LONGEST_SECONDS", 0.1)
        alone = [processes.submit(start.agree_on_name, store, rank, 3) for rank in (0, 1)]
        for rank, process in enumerate(alone):
            with pytest.raises(TrainingError, match=f"^process {rank}: expected 3 processes to start"):
                process.result()
    with ThreadPoolExecutor(3) as processes:
        assert len(set(processes.map(lambda rank: start.agree_on_name(store, rank, 3), range(3)))) == 1
