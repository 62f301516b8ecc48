"""Layers that are computed again in the backward pass: the same training bit for bit, in less memory."""

import weakref
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from objective_cases import Tones
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechssl.checkpoint.reader import read_model
from speechssl.errors import TrainingError
from speechssl.model.flops import FlopCounter
from speechssl.model.transformer import FeedForward, TransformerConfig
from speechssl.objective.objective import weighted_sum
from speechssl.train import compiled
from speechssl.train.compiled import compiled_calls
from speechssl.train.finetune import finetune
from speechssl.train.memory import recomputed_layers
from speechssl.train.pretrain import pretrain
from speechssl.train.task import Task

SMALL = (
    "encoder.feature_encoder={dims=[16, 16], kernels=[40, 40], strides=[20, 32], norm='layer'}",
    "batches={seconds=9.0, min_seconds=1.0, num_buckets=1, fixed_shapes=true}",
)


class Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that live at once, made since it began."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                self.add(storage.nbytes())
                weakref.finalize(storage, self.add, -storage.nbytes())
        return output

    def add(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.most = max(self.most, self.now)


def gradients_of(task: Task[Any]) -> dict[str, Tensor]:
    batch = next(iter(task.train.read([0])))
    torch.manual_seed(1)
    weighted_sum(task.model(batch, 0), batch.counts).backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}
    task.model.zero_grad(set_to_none=True)
    return found


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    calls: Counter[str] = Counter()
    forward = FeedForward.forward

    def counted(self: FeedForward, x: Tensor) -> Tensor:
        calls["with gradients" if torch.is_grad_enabled() else "without"] += 1
        return forward(self, x)

    monkeypatch.setattr(FeedForward, "forward", counted)
    return calls


def test_a_run_computes_layers_twice_and_stays_the_same_bit_for_bit(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every dropout and layer drop; a run may change to it, as one that runs out of memory does."""
    settings = ("encoder.context.num_layers=2", "encoder.context.activation_dropout=0.1", "trainer.microbatches=1")
    calls = count_calls(monkeypatch)

    def train(folder: str, num_steps: int, choice: str) -> Counter[str]:
        calls.clear()
        setting = f"trainer.checkpoint_activations={choice}"
        pretrain(corpus.pretrain_config(*settings, f"trainer.num_steps={num_steps}", setting), tmp_path / folder)
        return Counter(calls)

    plain = train("plain", 4, "false")
    assert plain["with gradients"] == 2 * 4
    assert train("again", 4, "true") == plain + Counter({"with gradients": 2 * 4})
    train("both", 4, "false")
    for other in ("again", "both"):
        found, expected = (read_model(tmp_path / name / "latest").weights for name in (other, "plain"))
        assert all(torch.equal(found[name], weight) for name, weight in expected.items()), other


def test_fine_tuning_stays_the_same_bit_for_bit(corpus: Any, record_gradients: Any, tmp_path: Path) -> None:
    """With padding, and what is hidden."""
    plain, found = (
        record_gradients(
            lambda: finetune(corpus.finetune_config("trainer.num_steps=2", choice, stage="scratch"), tmp_path / choice)  # noqa: B023
        )
        for choice in ("trainer.checkpoint_activations=false", "trainer.checkpoint_activations=true")
    )
    found.assert_close(plain, 0.0)


def test_memory_falls() -> None:
    """Of six layers little more is kept for the backward pass than their inputs."""
    config = TransformerConfig(num_layers=6, model_dim=32, num_heads=2, ffn_dim=64, position_kernel=4)
    network = config.build(16)
    kept, peaks = [], []
    for call in (nullcontext(), recomputed_layers(network)):
        with call, Memory() as memory:
            loss = network(torch.ones(4, 100, 16)).square().mean()
            kept.append(memory.now)
            loss.backward()
            del loss
        peaks.append(memory.most)
    assert kept[1] < 0.25 * kept[0], kept
    assert peaks[1] < 0.5 * peaks[0], peaks  # with the gradients, and one layer's activations


def test_flops_are_those_of_the_model(tones: Tones) -> None:
    task = tones.task("masked_prediction", *SMALL)
    with FlopCounter() as plain:
        gradients_of(task)
    with recomputed_layers(task.model), FlopCounter() as again:
        gradients_of(task)
    assert again.flops == plain.flops > 0


def test_it_can_be_compiled(tones: Tones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    task = tones.task("masked_prediction", *SMALL, "encoder.context.num_layers=1")
    expected = gradients_of(task)
    with recomputed_layers(task.model), compiled_calls(task.compiled, task.train):
        found = gradients_of(task)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name


def test_what_has_no_transformer_is_refused(tones: Tones, tmp_path: Path) -> None:
    message = r"^trainer\.checkpoint_activations: expected a model with transformer layers, found none$"
    config = tones.config("wav2vec", "trainer.checkpoint_activations=true")
    with pytest.raises(TrainingError, match=message):
        pretrain(config, tmp_path / "run")
