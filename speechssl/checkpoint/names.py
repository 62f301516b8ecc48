"""Weights of other toolkits by our names."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from speechssl.checkpoint.pickles import shortened
from speechssl.errors import CheckpointError


def rename(weights: Mapping[str, Tensor], names: Mapping[str, str], file: Path) -> dict[str, Tensor]:
    """Return weights by our names.

    Args:
        weights: By their names there.
        names: Patterns of these to patterns of ours; ``#`` stands for a number and ``*`` for the last part of a name.
        file: Where the weights come from.

    Raises:
        CheckpointError: a weight has no name here, or two have the same.
    """
    patterns = [(re.compile(_pattern(theirs)), ours) for theirs, ours in names.items()]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in weights.items():
        for pattern, ours in patterns:
            if found := pattern.fullmatch(name):
                for part in found.groups():
                    ours = re.sub(r"[#*]", part, ours, count=1)
                if ours in renamed:
                    unknown.append(name)
                renamed[ours] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        listed = ", ".join(shortened(name) for name in unknown[:10])
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise CheckpointError(f"{file}: expected only weights that this package knows, found {listed}{more}")
    return renamed


def _pattern(theirs: str) -> str:
    return re.escape(theirs).replace(r"\#", "([0-9]{1,4})").replace(r"\*", "([a-z_0-9]+)")


def unpack(weights: Mapping[str, Tensor], packed: str, parts: tuple[str, str, str]) -> dict[str, Tensor]:
    """Return weights of which those of queries, keys and values no longer lie in one tensor.

    Args:
        weights: By their names there.
        packed: Pattern of the packed tensor's names, with a group for what stands before and after its own.
        parts: What the parts are called in its place.
    """
    unpacked = {}
    for name, tensor in weights.items():
        found = re.fullmatch(packed, name)
        if found and tensor.dim() > 0 and tensor.shape[0] % 3 == 0:
            for part, values in zip(parts, tensor.chunk(3), strict=True):
                unpacked[f"{found[1]}{part}{found[2]}"] = values
        else:
            unpacked[name] = tensor
    return unpacked
