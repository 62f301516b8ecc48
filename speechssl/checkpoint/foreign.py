"""What the readers of all other toolkits' files have in common: from their weights to ours."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import CheckpointError
from speechssl.model.encoder import EncoderConfig

_MOST_LISTED = 8
_POSITION = "encoder.context.position.conv."
_GAIN, _DIRECTION = (f"{_POSITION}parametrizations.weight.original{number}" for number in (0, 1))
_MASK_EMBEDDING = "encoder.context.mask_embedding"


@dataclass(frozen=True)
class Names:
    """How a toolkit calls the weights of a family.

    Attributes:
        modules: Our name of each module or weight, and theirs; ``#`` stands for a number.
        dropped: Their modules, or weights, that belong to heads that are not ours.
    """

    modules: Mapping[str, str]
    dropped: tuple[str, ...] = ()

    def theirs(self, name: str) -> str | None:
        """Return their name of one of our weights; None if it has none."""
        return _renamed(name, self.modules)

    def ours(self, name: str) -> str | None:
        """Return our name of one of their weights; None if it has none."""
        return _renamed(name, self._inverse)

    def is_dropped(self, name: str) -> bool:
        """Tell whether one of their weights belongs to a head that is not ours."""
        return any(name == module or name.startswith(f"{module}.") for module in self.dropped)

    @cached_property
    def _inverse(self) -> Mapping[str, str]:
        return {theirs: ours for ours, theirs in self.modules.items()}


def to_ours(weights: Mapping[str, Tensor], names: Names, config: EncoderConfig, where: object) -> dict[str, Tensor]:
    """Return weights of another toolkit by our names, in float32.

    All forms of the positional convolution's weight norm become ours. A mask embedding that is lacking is zero: only
    training uses it. What is missing otherwise, `SavedModel.fill` finds.

    Args:
        weights: By their names.
        names: Of their family.
        config: What they are the weights of.
        where: The file, for errors.

    Raises:
        CheckpointError: there are weights that the family does not have; all are listed.
    """
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{where}: {name!r}: expected a tensor, found {type(tensor).__name__}")
        ours = names.ours(name)
        if ours is not None:
            found[ours] = tensor.float() if tensor.is_floating_point() else tensor
        elif not names.is_dropped(name):
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{where}: expected weights of the family, found {listed(map(repr, unknown))} beside them"
        )
    _complete_weight_norm(found)
    if config.context.kind != "causal":
        found.setdefault(_MASK_EMBEDDING, torch.zeros(config.context.model_dim))
    return found


def unpack(weights: Mapping[str, Tensor], packed: str, parts: tuple[str, str, str]) -> dict[str, Tensor]:
    """Return weights of which those of queries, keys and values no longer lie in one tensor.

    Args:
        weights: By their names.
        packed: Pattern of the packed tensors' names, with groups for what stands before and behind their own.
        parts: What the parts are called in its place.
    """
    unpacked = {}
    for name, tensor in weights.items():
        found = re.fullmatch(packed, name)
        if found and tensor.dim() > 0 and tensor.shape[0] % 3 == 0:
            for part, values in zip(parts, tensor.tensor_split(3), strict=True):
                unpacked[f"{found[1]}{part}{found[2]}"] = values
        else:
            unpacked[name] = tensor
    return unpacked


def _complete_weight_norm(weights: dict[str, Tensor]) -> None:
    """Bring the positional convolution from its older names, or from a weight without a norm, into our form."""
    for old, new in ((f"{_POSITION}weight_g", _GAIN), (f"{_POSITION}weight_v", _DIRECTION)):
        if old in weights:
            weights[new] = weights.pop(old)
    folded = weights.pop(f"{_POSITION}weight", None)
    if folded is not None and folded.dim() == 3:
        weights[_DIRECTION] = folded
        weights[_GAIN] = folded.norm(dim=(0, 1), keepdim=True)


def shortened(text: str, length: int = 100) -> str:
    """Return text of a file, fit for a message of one line."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def listed(names: Iterable[str]) -> str:
    """Return names in one line, the first few of many."""
    names = [shortened(name) for name in names]
    rest = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + rest


def read_json(file: Path) -> Any:
    """Return the content of a JSON file; None if there is no such file.

    Raises:
        CheckpointError: it is no JSON, or cannot be read.
    """
    try:
        return json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: expected JSON: {error}") from None


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    for known in sorted(names, key=lambda known: known.count("."), reverse=True):
        pattern = re.escape(known).replace(r"\#", "([0-9]+)")
        if found := re.match(rf"{pattern}(?=\.|\Z)", name):
            renamed = names[known]
            for number in found.groups():
                renamed = renamed.replace("#", number, 1)
            return renamed + name[found.end() :]
    return None
