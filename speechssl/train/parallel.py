"""One process or many: what ``torchrun`` says, sums over ranks, and what depends on how a model is spread over them.

Ranks agree on the host, over gloo, where nothing waits for a GPU and a long preparation by one of them runs into no
time-out; gradients go over NCCL.
"""

import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from speechssl.errors import CheckpointError, ConfigError, SpeechSSLError
from speechssl.model.device import resolve_device
from speechssl.objective.teacher import weights_beside
from speechssl.train.sharding import divided_as, is_sharded, local
from speechssl.train.start import fresh_store
from speechssl.train.watch import watched_processes

_HOST_TIMEOUT = timedelta(hours=24)  # while the first rank looks at a large corpus
_BESIDE = "teacher"  # of weights beside the saved model, the first of which were teachers'
_GPU_TIMEOUT = timedelta(minutes=10)  # NCCL's own default: between two updates nobody is that late

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int
    count: int
    device: torch.device
    gradients: dist.ProcessGroup | None = None  # over which gradients go, if not over the host's
    host: dist.ProcessGroup | None = None  # over which they agree, if not over all processes' first one

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum_named(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over ranks, by name; a rank with nothing to add may lack the names.

        Where all have the same names, as in every update, one tensor is reduced, whatever the number of ranks.
        """
        if self.count == 1:
            return dict(values)
        names = sorted(values)
        digest = int.from_bytes(sha256("\0".join(names).encode()).digest()[:7])
        extremes = torch.tensor([digest, -digest])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self.host)
        if extremes[0] == -extremes[1]:
            sums = torch.tensor([values[name] for name in names], dtype=torch.float64)
            dist.all_reduce(sums, group=self.host)
            return dict(zip(names, sums.tolist(), strict=True))
        totals: dict[str, float] = {}
        for of_rank in self.gather(values):
            for name, value in of_rank.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    def gather(self, value: Result) -> list[Result]:
        """Return what every rank has, in their order."""
        if self.count == 1:
            return [value]
        of_ranks: list[Any] = [None] * self.count
        dist.all_gather_object(of_ranks, value, group=self.host)
        return of_ranks

    def share(self, make: Callable[[], Result]) -> Result:
        """Return what the first rank of each machine makes; the others there get it by pickling, as manifests do best.

        An error is raised on the first rank that has one, and ends the others too.
        """
        if self.count == 1:
            return make()
        machine = socket.gethostname()
        maker = self.gather(machine).index(machine)
        content, failure = b"", None
        if maker == self.rank:
            try:
                made = make()
                content = pickle.dumps(made)
            except SpeechSSLError as error:
                failure = error
        of_ranks = self.gather((content, failure is not None))
        failed = [rank for rank, (_, has_failed) in enumerate(of_ranks) if has_failed]
        if failed:
            raise failure if failure is not None and failed[0] == self.rank else SystemExit(1)  # one process says why
        if maker != self.rank:
            made = pickle.loads(of_ranks[maker][0])
        self.gather(None)  # until nobody has to find it any more
        return made

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum a tensor over ranks, in place and on its device."""
        if self.count > 1:
            dist.all_reduce(tensor, group=self.gradients)

    def any(self, value: bool) -> bool:
        """Return whether it is true on any rank."""
        if self.count == 1:
            return value
        flag = torch.tensor(float(value))
        dist.all_reduce(flag, group=self.host)
        return bool(flag > 0)

    def first_decides(self, decide: Callable[[], Result]) -> Result:
        """Return on every rank what the first one finds out; its error is raised there, and ends the others too."""
        if self.count == 1:
            return decide()
        verdict: list[Any] = [None, None]
        if self.is_first:
            try:
                verdict[0] = decide()
            except (SpeechSSLError, OSError) as error:
                verdict[1] = error
        dist.broadcast_object_list(verdict, group=self.host)
        result, failure = verdict
        if failure is not None:
            raise failure if self.is_first else SystemExit(1)  # one process says why
        decided: Result = result
        return decided


@contextmanager
def joined_ranks(device: str | None) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` announces, if it does; if one of them dies, all end.

    Args:
        device: By name; None is this rank's GPU if there is one, else the CPU.

    Raises:
        ConfigError: one GPU is named for several processes.
        CheckpointError: there is no such device.
        TrainingError: another process is gone, or not there in half an hour.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if count > 1 and device is not None and device.startswith("cuda:"):
        raise ConfigError(f"trainer.device: expected cuda, found {device}: each process has a GPU of its own")
    if count > 1 and torch.cuda.is_available() and device in (None, "cuda"):
        torch.cuda.set_device(local)  # before anything else opens a context, which would be on the first GPU
        device = f"cuda:{local}"
    resolved = resolve_device(device)
    if count == 1:
        yield Ranks(0, 1, resolved)
        return
    store, rank, count = fresh_store()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=_HOST_TIMEOUT)
    try:
        gradients: Any = None
        if resolved.type == "cuda":
            gradients = dist.new_group(backend="nccl", timeout=_GPU_TIMEOUT)
        with watched_processes(rank, count):
            yield Ranks(rank, count, resolved, gradients)
    finally:
        dist.destroy_process_group()


def spread(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the model as it is called in training: itself, or a replica whose gradients are means over ranks."""
    if ranks.count == 1 or is_sharded(model):
        return model
    return DistributedDataParallel(model, process_group=ranks.gradients)


def without_exchange(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Keep gradients on their rank until the last microbatch of an update."""
    if is_sharded(model):
        model.set_requires_gradient_sync(is_last)  # type: ignore[operator]
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float | None, ranks: Ranks) -> Tensor:
    """Scale all gradients down to a norm; return the norm that they had, on the device."""
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    gradients = [local(gradient) for gradient in found]
    norm = torch.nn.utils.get_total_norm(gradients)
    if any(is_sharded(gradient) for gradient in found):
        square = norm.square()
        ranks.all_reduce(square)
        norm = square.sqrt()
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / norm).clamp(max=1.0))
    return norm


def training_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved_module: nn.Module | None = None
) -> dict[str, Tensor]:
    """Return the optimizer's state as KIND/PARAMETER and, as teacher/WEIGHT, the weights that are not the model's own.

    These are what `weights_beside` says of ``saved_module``: those of teachers, and what is trained beside it. They are
    no copies.
    """
    tensors = {f"{_BESIDE}/{name}": tensor for name, tensor in weights_beside(model, saved_module).items()}
    for name, parameter in model.named_parameters():
        for kind, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"{kind}/{name}"] = tensor
    return {name: tensor.detach() for name, tensor in tensors.items()}


def restore(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer and a model the tensors that `training_tensors` returned, whole or as the model is sharded."""
    parameters = dict(model.named_parameters())
    weights = model.state_dict()
    for key, tensor in tensors.items():
        kind, name = key.split("/", 1)
        if kind == _BESIDE and name in weights:
            weights[name].copy_(divided_as(tensor, weights[name]))
        elif kind != _BESIDE and name in parameters:
            optimizer.state[parameters[name]][kind] = divided_as(tensor, parameters[name])
        else:
            raise CheckpointError(f"training state: expected the state of this model, found that of {name}")
