"""Checkpoints are written beside the training, and nothing of that gets lost."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor
from toys import ALONE, Toys, train_toys

from speechssl.checkpoint.training_state import Progress, load_progress, load_training_tensors
from speechssl.errors import CheckpointError, StoppedError
from speechssl.train import saver
from speechssl.train.saver import Saver


def save(to: Saver, step: int, tensor: Tensor, write: Callable[[], object] = lambda: None) -> None:
    """Save it as the model, in which it has the name "x", and as a training's tensor."""

    def write_model(folder: Path, weights: Mapping[str, Tensor]) -> None:
        write()
        (folder / "config.json").write_text(str(weights["x"].tolist()))

    to.save(Progress(step), {"x": tensor}, {"exp_avg/x": tensor}, write_model)


def refuse() -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def of_run(tmp_path: Path) -> Saver:
    return Saver(tmp_path, 2, ALONE, is_sharded=False)


def test_training_goes_on_and_the_next_checkpoint_waits(of_run: Saver, tmp_path: Path) -> None:
    may_write, order, tensor = Event(), [], torch.zeros(2)

    def wait() -> None:
        assert may_write.wait(30)
        order.append("first")

    with of_run:
        save(of_run, 1, tensor, wait)
        tensor.add_(1)  # the next update, while the first checkpoint is not written
        assert load_progress(tmp_path).step == 0
        may_write.set()
        save(of_run, 2, tensor, lambda: order.append("second"))
        assert order[0] == "first"
        assert load_progress(tmp_path).step in (1, 2)
    assert order == ["first", "second"]
    assert load_progress(tmp_path).step == 2
    assert load_training_tensors(tmp_path)["exp_avg/x"].tolist() == [1, 1]
    first = tmp_path / "checkpoints" / "step_00000001" / "config.json"
    assert first.read_text() == "[0.0, 0.0]", "it is of its own step"


MESSAGE = r"step_00000001: cannot be written, the checkpoint before it is intact: .*No space left on device$"


def test_a_failed_write_ends_the_run_at_the_next_checkpoint(of_run: Saver, tmp_path: Path) -> None:
    with of_run:
        save(of_run, 1, torch.zeros(1), refuse)
        with pytest.raises(CheckpointError, match=MESSAGE):
            save(of_run, 2, torch.zeros(1))
    assert load_progress(tmp_path).step == 0
    assert not list(tmp_path.rglob(".*"))


def test_a_failed_last_write_ends_the_run(of_run: Saver) -> None:
    with pytest.raises(CheckpointError, match=MESSAGE), of_run:
        save(of_run, 1, torch.zeros(1), refuse)


def test_another_error_waits_for_the_write_and_hides_no_failure(
    of_run: Saver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_and_fail(step: int, write: Callable[[], object]) -> None:
        with of_run:
            save(of_run, step, torch.zeros(1), write)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_and_fail(1, lambda: Event().wait(0.1))
    assert load_progress(tmp_path).step == 1
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):
        save_and_fail(2, refuse)
    assert "step_00000002: cannot be written, the checkpoint before it is intact: " in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_a_stopped_run_says_what_is_saved_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    class Stopped(Toys):
        def write_model(self, step: int, folder: Path, weights: Mapping[str, Tensor]) -> None:
            super().write_model(step, folder, weights)
            Event().wait(0.1)
            if fails:
                refuse()

    monkeypatch.setattr("speechssl.train.parallel.Ranks.any", lambda ranks, value: True)
    with pytest.raises(CheckpointError if fails else StoppedError, match=MESSAGE if fails else "step 1 of 3, which is"):
        train_toys(Stopped(), tmp_path, num_steps=3)
    assert load_progress(tmp_path).step == (0 if fails else 1)


def test_a_run_is_not_over_before_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saver.new_checkpoint

    @contextmanager
    def slow(run: Path, progress: Progress, keep_last: int) -> Iterator[Path]:
        with whole(run, progress, keep_last) as folder:
            Event().wait(0.1)
            yield folder

    monkeypatch.setattr(saver, "new_checkpoint", slow)
    train_toys(Toys(), tmp_path, num_steps=2, checkpoint_steps=1)
    assert load_progress(tmp_path).step == 2
    assert (tmp_path / "best").resolve() == (tmp_path / "latest").resolve()
