"""A model of which every rank holds a part: PyTorch's ``fully_shard`` (FSDP2).

Weights, their gradients and the optimizer's state are divided among the ranks. The weights of a part of the network are
put together when it computes, and divided again afterwards. What computes, and how precisely, is as without it.

PyTorch's packages for it take a second to import, so only what shards does import them.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechssl.model.causal import CausalLayer
from speechssl.model.feature_encoder import FeatureEncoder
from speechssl.model.transformer import TransformerLayer
from speechssl.objective.objective import Term

_PARTS = (FeatureEncoder, TransformerLayer, CausalLayer)  # called one after another; the rest is together in an update


def shard(model: nn.Module, device: torch.device, group: dist.ProcessGroup | None) -> None:
    """Divide the weights of a model, and of the teachers in it, among the processes of a group, in place.

    What a process has of them is the truth: where others began with other weights, these are gone.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    _show_losses_to_hooks()
    # Nothing changes what they return in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    mesh = DeviceMesh.from_group(group or dist.group.WORLD, device.type)  # type: ignore[arg-type]
    for module in [module for module in model.modules() if isinstance(module, _PARTS)]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if device.type == "cpu":
        model.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]  # gloo knows no means


@cache
def _show_losses_to_hooks() -> None:
    """Let the hooks of the backward pass find the losses in what a model returns."""
    torch.export.register_dataclass(Term)


def is_sharded(thing: Any) -> bool:
    """Whether it is a model that `shard` has divided, or a tensor of one."""
    return hasattr(thing, "set_requires_gradient_sync") or hasattr(thing, "full_tensor")


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Compute no gradients meanwhile.

    Every process has all weights of a sharded model meanwhile: they evaluate different numbers of batches, so that none
    can wait for the others before each layer.
    """
    if not is_sharded(model):
        with torch.inference_mode():
            yield
        return
    parts: list[Any] = [module for module in model.modules() if is_sharded(module)]
    set_whole_after_forward: Any = model.set_reshard_after_forward
    set_whole_after_forward(False)
    try:
        for part in parts:
            part.unshard()
        with torch.no_grad():  # in inference mode the buffers would become unfit for training
            yield
    finally:
        for part in parts:
            part.reshard()
        set_whole_after_forward(True)
        set_whole_after_forward(False, recurse=False)  # the model as a whole is needed in the backward pass at once


def local(tensor: Tensor) -> Tensor:
    """Return what of a tensor this process has: all of one that is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def divided_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, or a part of one, as another one is: on its device and, if that is sharded, this part."""
    if not is_sharded(like) or is_sharded(tensor) or tensor.shape != like.shape:
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    spec: Any = like
    return distribute_tensor(tensor.to(like.device), spec.device_mesh, spec.placements, src_data_rank=None)


def copy_whole(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return whole copies of tensors on the host, or nothing.

    All processes call it if the tensors are sharded: these are put together one at a time, so only who keeps them needs
    memory for all.
    """
    copies = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            tensor = tensor.full_tensor()  # type: ignore[attr-defined]
        if keep:
            copies[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return copies


def copy_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors on the host, of those that are sharded this process's part."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        copy = local(tensor).detach().to("cpu", copy=True).contiguous()
        if is_sharded(tensor):
            copy = DTensor.from_local(
                copy,
                mesh,
                tensor.placements,  # type: ignore[attr-defined]
                run_check=False,
                shape=tensor.shape,
                stride=tensor.stride(),
            )
        copies[name] = copy
    return copies
