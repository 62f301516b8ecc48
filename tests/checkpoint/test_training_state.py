"""What a run needs to go on: the optimizer's state, links to checkpoints, and that no kill breaks them."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from speechssl.checkpoint.training_state import (
    Progress,
    find_progress,
    load_progress,
    load_training_tensors,
    new_checkpoint,
    repair_links,
    write_tensors,
)
from speechssl.errors import CheckpointError, SpeechSSLError
from speechssl.train.parallel import restore, training_tensors

KILLED = 9


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    model(inputs).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(run: Path, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, keep_last: int = 2) -> None:
    """Save a model whose file says which step it is of."""

    with new_checkpoint(run, progress, keep_last) as folder:
        write_tensors(folder, training_tensors(optimizer, model))
        (folder / "config.json").write_text(str(progress.step))
        safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")


def state_of(run: Path) -> dict[str, Any]:
    """Everything a reader can see: links and the content of the checkpoints they lead to."""
    links = {name: str((run / name).readlink()) for name in ("latest", "best") if (run / name).is_symlink()}
    steps = {name: int((run / name / "config.json").read_text()) for name in links}
    files = sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))
    return {"links": links, "steps": steps, "files": files}


def test_going_on_is_the_same_as_never_stopping(tmp_path: Path) -> None:
    through = make_model()
    optimizer = make_optimizer(through)
    for step in range(3):
        update(through, optimizer, step)
    save(tmp_path, Progress(3), through, optimizer)
    for step in range(3, 6):
        update(through, optimizer, step)

    resumed = make_model()
    resumed.load_state_dict(safetensors.torch.load_file(tmp_path / "latest" / "model.safetensors"))
    optimizer = make_optimizer(resumed)
    restore(optimizer, resumed, load_training_tensors(tmp_path))
    for step in range(3, 6):
        update(resumed, optimizer, step)
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, through.state_dict()[name]), name


def test_parameters_that_have_not_learnt_have_no_state(tmp_path: Path) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    update(model, optimizer, 0)
    save(tmp_path, Progress(1), model, optimizer)
    names = set(safetensors.torch.load_file(tmp_path / "latest" / "training.safetensors"))
    assert names == {
        f"{kind}/{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in ("0.weight", "1.weight", "1.bias")
    }
    model[0].bias.requires_grad_(True)
    fresh = make_optimizer(model)
    restore(fresh, model, load_training_tensors(tmp_path))
    update(model, fresh, 1)
    assert fresh.state[model[0].bias]["step"] == 1
    assert fresh.state[model[1].bias]["step"] == 2


def test_the_state_of_another_model_is_an_error(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(CheckpointError, match=r"expected the state of this model, found that of 7\.weight$"):
        restore(make_optimizer(model), model, {"exp_avg/7.weight": torch.zeros(1)})


def test_progress_comes_back(tmp_path: Path) -> None:
    assert load_progress(tmp_path) == Progress(0, None, None)
    model = make_model()
    progress = Progress(4, 2, 0.1 + 0.2)
    save(tmp_path, Progress(2, 2, 0.1 + 0.2), model, make_optimizer(model))
    save(tmp_path, progress, model, make_optimizer(model))
    assert load_progress(tmp_path) == progress


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_links_lead_to_the_latest_and_best_and_other_checkpoints_go(tmp_path: Path, keep_last: int) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    seen = []
    for progress in (
        Progress(1),
        Progress(2, 2, 0.5),
        Progress(3, 2, 0.5),
        Progress(4, 2, 0.5),
        Progress(5, 5, 0.4),
        Progress(6, 5, 0.4),
    ):
        save(tmp_path, progress, model, optimizer, keep_last)
        steps = [int(path.name.removeprefix("step_")) for path in sorted((tmp_path / "checkpoints").iterdir())]
        seen.append((state_of(tmp_path)["steps"], steps))
    links = [
        {"latest": 1},
        *({"latest": step, "best": best} for step, best in ((2, 2), (3, 2), (4, 2), (5, 5), (6, 5))),
    ]
    assert [found for found, _ in seen] == links
    # What was the best when a checkpoint was saved is kept as long as that is.
    kept = {
        1: [[1], [2], [2, 3], [2, 4], [5], [5, 6]],
        2: [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6]],
        3: [[1], [1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4, 5], [2, 4, 5, 6]],
    }
    assert [steps for _, steps in seen] == kept[keep_last]


def test_a_run_can_be_moved(tmp_path: Path) -> None:
    model = make_model()
    save(tmp_path / "here", Progress(2, 2, 0.5), model, make_optimizer(model))
    (tmp_path / "here").rename(tmp_path / "there")
    assert state_of(tmp_path / "there")["steps"] == {"latest": 2, "best": 2}


def test_repair_makes_best_agree_with_the_latest(tmp_path: Path) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    for progress in (Progress(1, 1, 0.5), Progress(2, 1, 0.5)):
        save(tmp_path, progress, model, optimizer)
    expected = state_of(tmp_path)
    (tmp_path / "best").unlink()
    (tmp_path / "best").symlink_to("checkpoints/step_00000002")
    (tmp_path / "checkpoints" / "step_00000009").mkdir()
    (tmp_path / "checkpoints" / ".step_00000003.partial").mkdir()
    (tmp_path / "checkpoints" / ".step_00000003.partial" / "half").write_text("")
    repair_links(tmp_path, load_progress(tmp_path), 2)
    assert state_of(tmp_path) == expected


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"steps": 3}', '{"step": "3"}', '{"step": 3, "best_step": "1"}', "\xff"]
)
def test_damaged_numbers_are_an_error(tmp_path: Path, content: str) -> None:
    model = make_model()
    save(tmp_path, Progress(1), model, make_optimizer(model))
    (tmp_path / "latest" / "training.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"training\.json: expected the numbers of a training state"):
        load_progress(tmp_path)


def test_a_checkpoint_that_is_gone_is_no_fresh_start(tmp_path: Path) -> None:
    model = make_model()
    save(tmp_path, Progress(1), model, make_optimizer(model))
    (tmp_path / "checkpoints" / "step_00000001").rename(tmp_path / "elsewhere")
    message = r"training\.json: expected the numbers of a training state, found no such file$"
    for find in (load_progress, find_progress):
        with pytest.raises(CheckpointError, match=message):
            find(tmp_path)


FILES = ("config.json", "model.safetensors", "training.safetensors", "training.json", "checksums.json")


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    before = Progress(2, 1, 0.5)
    for progress in (Progress(1, 1, 0.5), before, Progress(3, 3, 0.4)):
        save(tmp_path, progress, model, optimizer)
    damage(tmp_path / "latest" / name)
    if (name, damage) == ("checksums.json", Path.unlink):  # earlier versions wrote none
        assert find_progress(tmp_path) == (Progress(3, 3, 0.4), [])
        return
    progress, [problem] = find_progress(tmp_path)
    assert progress == before
    assert problem.startswith(f"{tmp_path / 'checkpoints' / 'step_00000003'}/")
    assert name in problem or damage is flip_a_bit, "a damaged checksum is that of another file"
    assert (tmp_path / "latest").readlink().name == "step_00000003", "nothing has changed yet"
    repair_links(tmp_path, progress, 2)
    assert load_progress(tmp_path) == before
    assert state_of(tmp_path)["steps"] == {"latest": 2, "best": 1}
    assert not (tmp_path / "checkpoints" / "step_00000003").exists()
    assert find_progress(tmp_path) == (before, [])


def test_of_several_damaged_checkpoints_each_is_named_and_if_all_are_that_is_an_error(tmp_path: Path) -> None:
    model = make_model()
    for step in (1, 2, 3):
        save(tmp_path, Progress(step), model, make_optimizer(model), 3)
    for number, step in enumerate((3, 2, 1), 1):
        truncate(tmp_path / "checkpoints" / f"step_0000000{step}" / "model.safetensors")
        if step > 1:
            progress, problems = find_progress(tmp_path)
            assert (progress.step, len(problems)) == (step - 1, number)
    with pytest.raises(CheckpointError, match=r"step_00000003/model\.safetensors: expected .* truncated or damaged$"):
        find_progress(tmp_path)


def test_a_checkpoint_that_cannot_be_read_now_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    for step in (1, 2):
        save(tmp_path, Progress(step), model, make_optimizer(model))
    open_file = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "model.safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SpeechSSLError, match=r"model\.safetensors: cannot be read: Permission denied$") as caught:
        find_progress(tmp_path)
    assert not isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("size", [None, 0, 100])
def test_damaged_tensors_are_an_error(tmp_path: Path, size: int | None) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    update(model, optimizer, 0)
    save(tmp_path, Progress(1), model, optimizer)
    file = tmp_path / "latest" / "training.safetensors"
    if size is None:
        file.unlink()
    else:
        os.truncate(file, size)
    with pytest.raises(CheckpointError, match=r"training\.safetensors: expected a complete safetensors file"):
        restore(make_optimizer(model), model, load_training_tensors(tmp_path))


def test_everything_is_on_the_disk_before_what_it_replaces_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    events: list[tuple[str, str]] = []

    def name(path: Any) -> str:
        return Path(path).relative_to(tmp_path).as_posix()

    def note(module: Any, attribute: str, path_of: Any = lambda path, *_, **__: path) -> None:
        original = getattr(module, attribute)

        def noting(*args: Any, **kwargs: Any) -> Any:
            if (path := Path(path_of(*args, **kwargs))).exists():
                events.append((attribute, name(path)))
            return original(*args, **kwargs)

        monkeypatch.setattr(module, attribute, noting)

    save(tmp_path, Progress(1), model, optimizer, 1)
    note(os, "fsync", lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink())
    note(Path, "rename")
    note(Path, "replace")
    note(shutil, "rmtree")
    save(tmp_path, Progress(2), model, optimizer, 1)

    new = "checkpoints/.step_00000002.partial"
    renamed, linked = events.index(("rename", new)), events.index(("replace", ".latest.partial"))
    removed = events.index(("rmtree", "checkpoints/step_00000001"))
    assert {("fsync", f"{new}/{file}") for file in FILES} | {("fsync", new)} <= set(events[:renamed])
    assert ("fsync", "checkpoints") in events[renamed:linked]
    assert ("fsync", ".") in events[linked:removed]


# Checkpoints of a run; the last one is being saved when the kill comes.
HISTORIES = {
    "first": [Progress(2, 2, 0.5)],
    "no better": [Progress(1, 1, 0.1), Progress(2, 1, 0.1)],
    "second after the best": [Progress(1, 1, 0.1), Progress(2, 1, 0.1), Progress(3, 1, 0.1)],
    "best after others": [Progress(1, 1, 0.9), Progress(2, 1, 0.9), Progress(3, 3, 0.1)],
}
FILE_EVENTS = {"open", "shutil.rmtree"} | {f"os.{name}" for name in ("mkdir", "remove", "rename", "rmdir", "symlink")}


def die_at(event_number: int, run: Path, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Save in a child process that dies before its n-th operation on files; the child's exit status."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event in FILE_EVENTS:
                if count == event_number:
                    os._exit(KILLED)  # as SIGKILL does: nothing is tidied up
                count += 1

        sys.addaudithook(hook)
        try:
            save(run, progress, model, optimizer)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
def test_a_kill_between_any_two_file_operations_leaves_a_whole_checkpoint(
    tmp_path: Path, history: list[Progress]
) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    update(model, optimizer, 0)
    *before, last = history
    unharmed = tmp_path / "unharmed"
    for progress in history:
        save(unharmed, progress, model, optimizer)
    expected = state_of(unharmed)

    event_number, status = 0, KILLED
    while status == KILLED:
        run = tmp_path / f"killed at {event_number}"
        run.mkdir()
        for progress in before:
            save(run, progress, model, optimizer)
        status = die_at(event_number, run, last, model, optimizer)
        assert status in (0, KILLED)

        found = load_progress(run)
        assert found in {before[-1] if before else Progress(), last}, event_number
        steps = state_of(run)["steps"]  # fails if a link leads nowhere
        if found.step:
            assert steps["latest"] == found.step
            restore(make_optimizer(model), model, load_training_tensors(run))
            safetensors.torch.load_file(run / "latest" / "model.safetensors")
        if before and before[-1].best_step:
            assert steps["best"] in {before[-1].best_step, last.best_step}
        if found.step:  # as a resumed run does
            repair_links(run, found, 2)
            assert state_of(run)["steps"].get("best") == found.best_step
        save(run, last, model, optimizer)
        assert state_of(run) == expected, event_number
        event_number += 1
    assert event_number > 10, "the hook saw too few operations to mean anything"


def test_the_numbers_are_json_that_others_can_read(tmp_path: Path) -> None:
    model = make_model()
    save(tmp_path, Progress(3, 2, 0.25), model, make_optimizer(model))
    assert json.loads((tmp_path / "latest" / "training.json").read_text()) == {
        "step": 3,
        "best_step": 2,
        "best_score": 0.25,
    }


def test_a_full_disk_is_an_error_and_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    save(tmp_path, Progress(1), model, optimizer)
    before = state_of(tmp_path)

    def fill_disk() -> None:
        with new_checkpoint(tmp_path, Progress(2), 2) as folder:
            (folder / "config.json").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"cannot be written, the checkpoint before it is intact.*No space left"):
        fill_disk()
    assert state_of(tmp_path) == before


def test_whoever_may_read_a_new_file_may_read_a_training_state(tmp_path: Path) -> None:
    model = make_model()
    save(tmp_path, Progress(1), model, make_optimizer(model))
    (tmp_path / "new").touch()
    state = tmp_path / "latest" / "training.safetensors"
    assert state.stat().st_mode == (tmp_path / "new").stat().st_mode
