"""Updates ask for no number of the device, for which a GPU would be waited for; only logs and checkpoints do."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechssl.train import guard, run, trainer
from speechssl.train.finetune import finetune
from speechssl.train.guard import FiniteGuard
from speechssl.train.pretrain import pretrain

NUM_STEPS = 3
SETTINGS = (
    f"trainer.num_steps={NUM_STEPS}",
    "trainer.log_steps=100",
    "trainer.evaluate_steps=100",
    "trainer.checkpoint_steps=100",
    "data.num_workers=1",  # batches are made elsewhere, where the host may look at what it likes
)
OBJECTIVES = {
    "contrastive": (),
    "masked_prediction": ('objective={kind="masked_prediction", num_clusters=8, num_bands=10, mask={span_frames=4}}',),
    "silence": ("objective.silence.target_gradient=false",),
    "wav2vec": ('objective={kind="wav2vec"}', "batches.min_seconds=0.5"),
}


class Reads(TorchDispatchMode):
    """Counts the numbers that the host asks for: item(), tolist(), if, float()."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


class Never:
    """An event in the place of a GPU's, which has not happened until it is waited for."""

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass


@pytest.fixture
def reads_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[int]]:
    """Run a training, and give how many numbers were read from one update to the next."""

    def count(run_training: Callable[[], None]) -> list[int]:
        reads, counts = Reads(), []
        watch_update = FiniteGuard.watch_update

        def note(self: FiniteGuard, step: int, norm: torch.Tensor) -> None:
            watch_update(self, step, norm)
            counts.append(reads.count)

        def train_under_watch(*arguments: Any) -> None:
            with reads:
                trainer.train(*arguments)

        monkeypatch.setattr(FiniteGuard, "watch_update", note)
        monkeypatch.setattr(guard, "_copy_to_host", lambda values: (values, Never()))
        monkeypatch.setattr(run, "train", train_under_watch)
        run_training()
        assert reads.count > counts[-1], "the log at the end has numbers"
        return [later - earlier for earlier, later in pairwise(counts)]  # the start of the loader draws a seed

    return count


@pytest.mark.parametrize("settings", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_pretraining_reads_nothing(corpus: Any, tmp_path: Path, reads_of: Any, settings: tuple[str, ...]) -> None:
    config = corpus.pretrain_config(*SETTINGS, *settings)
    assert reads_of(lambda: pretrain(config, tmp_path / "run")) == [0] * (NUM_STEPS - 1)


def test_fine_tuning_reads_nothing(corpus: Any, tmp_path: Path, reads_of: Any) -> None:
    config = corpus.finetune_config(*SETTINGS, "regularization.consistency=0.2", stage="scratch")
    assert reads_of(lambda: finetune(config, tmp_path / "run")) == [0] * (NUM_STEPS - 1)
