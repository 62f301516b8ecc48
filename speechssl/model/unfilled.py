"""Models without values, which come from a file."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = {
    *(Tensor.normal_, Tensor.uniform_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
    *(nn.init.xavier_normal_, nn.init.xavier_uniform_),
}


class Unfilled(TorchFunctionMode):
    """A context in which modules are built, but draw no weights; those that they have mean nothing.

    Draws take a while for a large model, and on the device "meta" they and the norms of weights import a compiler.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, unless it is one of those."""
        values = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else values["tensor"]
        if func is torch.norm_except_dim:
            weight, _, dim = args
            return weight.new_empty([size if number == dim else 1 for number, size in enumerate(weight.shape)])
        return func(*args, **values)
