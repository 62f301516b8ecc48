"""The parts of fairseq's files, and what the settings among them say.

Older files have their settings as an ``argparse.Namespace`` under ``args``, newer ones as dictionaries under ``cfg``,
those of S3PRL under ``model_cfg`` and ``task_cfg``.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from speechssl.checkpoint.foreign import shortened
from speechssl.checkpoint.pickles import plain_settings
from speechssl.config import Config
from speechssl.errors import CheckpointError, ConfigError

ENCODER = "w2v_encoder.w2v_model."
"""What precedes the names of an encoder's weights in a fine-tuned model."""


class TaskSettings(Config):
    """What fairseq's settings say of the data, by its names."""

    normalize: bool = False
    sample_rate: Literal[16_000] = 16_000
    labels: str | None = None


_Settings = TypeVar("_Settings", bound=Config)


@dataclass(frozen=True)
class Contents:
    """The parts of a file: its weights, settings and, if it has one, dictionary."""

    weights: Mapping[Any, Any]
    model: Mapping[str, Any]
    task: TaskSettings
    symbols: tuple[str, ...] | None
    num_updates: int
    is_fine_tuned: bool


def take_apart(contents: Any, file: Path) -> Contents | None:
    """Return the parts of what a file holds; None if that is another toolkit's.

    Raises:
        CheckpointError: the settings are damaged or incomplete.
    """
    if not isinstance(contents, Mapping):
        return None
    weights, model, task = (contents.get(name) for name in ("model_weight", "model_cfg", "task_cfg"))
    if weights is None:
        weights = contents.get("model")
        model = task = contents.get("cfg") or contents.get("args")
    if not isinstance(weights, Mapping) or model is None:
        return None
    model, task = _sections(plain_settings(model, file)), _sections(plain_settings(task, file), "task")
    pretrained = model.get("w2v_args")
    is_fine_tuned = any(str(name).startswith(ENCODER) for name in weights)
    if is_fine_tuned:
        if not isinstance(pretrained, dict):
            raise CheckpointError(f"{file}: expected the settings of the pretrained encoder, found no w2v_args")
        model = _sections(pretrained)
    state = plain_settings(contents.get("task_state"), file)
    own = state.get("target_dictionary") if isinstance(state, dict) else None
    symbols = own.get("symbols") if isinstance(own, dict) else contents.get("dictionaries_symbols")
    history = plain_settings(contents.get("optimizer_history"), file)
    last = history[-1] if isinstance(history, list) and history and isinstance(history[-1], dict) else {}
    num_updates = last.get("num_updates")
    return Contents(
        weights,
        model,
        checked(TaskSettings, task, file),
        _symbols(symbols),
        num_updates if isinstance(num_updates, int) else 0,
        is_fine_tuned,
    )


def _sections(settings: Any, section: str = "model") -> dict[str, Any]:
    """A section of the newer settings, or the older ones, which have none."""
    settings = settings if isinstance(settings, dict) else {}
    inner = settings.get(section)
    return inner if isinstance(inner, dict) else settings


def checked(kind: type[_Settings], settings: Mapping[str, Any], file: Path) -> _Settings:
    """Return those settings of a section that decide about the model.

    Raises:
        CheckpointError: one has a value that is not supported.
    """
    values = {name: settings[name] for name in kind.model_fields if settings.get(name) is not None}
    try:
        return kind.from_dict(values, str(file))
    except ConfigError as error:
        raise CheckpointError(shortened(str(error), 500)) from None


def _symbols(symbols: Any) -> tuple[str, ...] | None:
    """Of a dictionary, or of S3PRL's list of dictionaries."""
    if isinstance(symbols, list) and len(symbols) == 1 and isinstance(symbols[0], list):
        symbols = symbols[0]
    if isinstance(symbols, list) and symbols and all(isinstance(symbol, str) for symbol in symbols):
        return tuple(symbols)
    return None


def parse_layers(text: str | list[list[int]], file: Path) -> tuple[tuple[int, ...], ...]:
    """Read a Python expression of channels, kernel and stride a layer, like ``[(512, 10, 5)] + [(512, 3, 2)] * 4``."""

    def parse(node: ast.expr) -> Any:
        """Return the number or the list that an expression stands for; others raise a ValueError."""
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return [parse(item) for item in items]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return _list(parse(left)) + _list(parse(right))
            case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int(times))) if times <= 100:
                return _list(parse(left)) * times
        raise ValueError

    def _list(value: Any) -> list[Any]:
        if isinstance(value, list) and len(value) <= 100:
            return value
        raise ValueError

    try:
        layers = parse(ast.parse(text[:2000], mode="eval").body) if isinstance(text, str) else text
        if all(len(layer) == 3 and all(type(value) is int for value in layer) for layer in layers):
            return tuple(tuple(layer) for layer in layers)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass
    raise CheckpointError(f"{file}: expected (channels, kernel, stride) a layer, found {shortened(repr(text))}")
