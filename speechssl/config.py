"""Strict, frozen configuration from TOML files and ``--set section.key=value`` overrides."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from speechssl.errors import ConfigError


class Config(BaseModel):
    """A section of the configuration: immutable, with no conversions between types and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def load(cls, files: Sequence[Path] = (), overrides: Sequence[str] = ()) -> Self:
        """Build the configuration from TOML files, the later winning over the earlier, then from overrides.

        Args:
            files: TOML files that state only what differs from the defaults.
            overrides: ``section.key=value`` strings, the value in TOML syntax; a value that is no TOML is a string.

        Raises:
            ConfigError: a file is missing or malformed, a key is unknown, a value has the wrong type or range.
        """
        merged: dict[str, Any] = {}
        for file in files:
            _merge(merged, _read_toml(file))
        for override in overrides:
            _merge(merged, _parse_override(override))
        sources = ", ".join([*map(str, files), *(f"--set {override}" for override in overrides)])
        return cls.from_dict(merged, sources or "defaults")

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> Self:
        """Validate plain values; ``source`` is named in errors."""
        # A section given in part keeps the defaults that its owner chose for the rest of it.
        complete = {
            name: field.default.to_dict()
            for name, field in cls.model_fields.items()
            if isinstance(field.default, Config)
        }
        _merge(complete, values)
        try:
            # JSON mode, because strict Python mode refuses lists for tuples and strings for paths.
            return cls.model_validate_json(json.dumps(complete, default=str))
        except ValidationError as error:
            raise ConfigError(f"{source}: {_describe(error)}") from None

    def to_dict(self) -> dict[str, Any]:
        """The values as plain JSON types; ``from_dict`` gives the configuration back."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The settings in which two resolved configurations differ, by dotted name, as (old, new)."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*old, *new}):
        name, before, after = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= differences(before, after, f"{name}.")
        elif before != after:
            found[name] = (before, after)
    return found


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected TOML: {error}") from None


def _parse_override(override: str) -> dict[str, Any]:
    name, separator, text = override.partition("=")
    keys = name.strip().split(".")
    if not separator or not all(key.isidentifier() for key in keys):
        raise ConfigError(f"--set {override}: expected section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    result: dict[str, Any] = nested
    return result


def _merge(base: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _describe(error: ValidationError) -> str:
    # A mistyped name first: it is often why another setting is missing.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"]) or "configuration"
    if first["type"] == "extra_forbidden":
        problem = "unknown setting"
    elif first["type"] == "missing":
        problem = "this setting is required"
    else:
        message = first["msg"].removeprefix("Value error, ")
        problem = f"{message[0].lower()}{message[1:]}"
        if not isinstance(first["input"], dict):  # a whole section would bury what is wrong with it
            problem += f", found {first['input']!r}"
    others = len(error.errors()) - 1
    return f"{where}: {problem}" + (f" (and {others} more)" if others else "")
