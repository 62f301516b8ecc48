"""Strict, frozen configuration from TOML files and ``--set section.key=value`` overrides."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from speechssl.errors import ConfigError


class Config(BaseModel):
    """A section of the configuration: immutable, with no conversions between types and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def load(cls, files: Sequence[Path] = (), overrides: Sequence[str] = ()) -> Self:
        """Build the configuration from TOML files, the later winning over the earlier, then from overrides.

        Args:
            files: TOML files that state only what differs from the defaults. Relative paths count from the file.
            overrides: ``section.key=value`` strings, the value in TOML syntax; a value that is no TOML is a string.
                Relative paths count from the working folder.

        Raises:
            ConfigError: a file is missing or malformed, a key is unknown, a value has the wrong type or range.
        """
        merged: dict[str, Any] = {}
        for file in files:
            _merge(merged, _anchored(_read_toml(file), cls, file.parent))
        for override in overrides:
            _merge(merged, _parse_override(override))
        sources = ", ".join([*map(str, files), *(f"--set {override}" for override in overrides)])
        return cls.from_dict(merged, sources or "defaults")

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> Self:
        """Validate plain values; ``source`` is named in errors."""
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        complete = _complete_sections(dict(values), defaults, cls)
        try:
            # JSON mode, because strict Python mode refuses lists for tuples and strings for paths.
            return cls.model_validate_json(json.dumps(complete, default=str))
        except ValidationError as error:
            raise ConfigError(f"{source}: {_describe(error, complete)}") from None

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


def default_values(config: Config, chosen: Config | None = None) -> dict[str, Any]:
    """The plain values that a configuration would have if nothing had been set but which kinds of sections it has.

    ``chosen`` is what the owner of a section has in its place. A section that is off by default is None.
    """
    plain = chosen if type(chosen) is type(config) else type(config).model_construct()
    values = plain.to_dict()
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, Config) and values.get(name, {}) is not None:
            values[name] = default_values(section, getattr(plain, name, None))
    if chosen is not None and "kind" in type(chosen).model_fields:
        values["kind"] = chosen.to_dict()["kind"]
    return values


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
    """Put ``update`` over ``base``; a section of another kind takes the place of the one there."""
    for key, value in update.items():
        before = base.get(key)
        if (
            isinstance(value, dict)
            and isinstance(before, dict)
            and value.get("kind", before.get("kind")) == before.get("kind")
        ):
            _merge(before, value)
        else:
            base[key] = value


def _anchored(values: dict[str, Any], owner: type[Config], folder: Path) -> dict[str, Any]:
    """Make the relative paths among the settings of a file count from its folder."""
    anchored = dict(values)
    for name, field in owner.model_fields.items():
        value = values.get(name)
        options = (field.annotation, *get_args(field.annotation))
        is_word = any(value in get_args(option) for option in options)  # of a Literal beside Path
        is_path = Path in options and not is_word
        if isinstance(value, str) and is_path and (str not in options or (folder / value).exists()):
            anchored[name] = str(folder / value)
        elif isinstance(value, dict):
            for option in options:
                if isinstance(option, type(Config)):
                    anchored[name] = _anchored(anchored[name], option, folder)
    return anchored


def _complete_sections(values: dict[str, Any], defaults: Mapping[str, Any], owner: type[Config]) -> dict[str, Any]:
    """Give sections stated in part the defaults that their owner chose, or those of the kind they name."""
    for name, field in owner.model_fields.items():
        given = values.get(name, {})
        sections = [
            option for option in (field.annotation, *get_args(field.annotation)) if isinstance(option, type(Config))
        ]
        if not sections or not isinstance(given, dict):
            continue
        default = defaults[name]
        if default is None and name in values:
            default = sections[0].model_construct()  # it is off unless it is given; some settings may be required
        if "kind" in given and given["kind"] != getattr(default, "kind", None):
            default = next(
                (option() for option in sections if getattr(option(), "kind", None) == given["kind"]), default
            )
        if isinstance(default, Config):
            values[name] = _complete_sections(default.to_dict() | given, dict(default), type(default))
    return values


def _describe(error: ValidationError, values: dict[str, Any]) -> str:
    # A mistyped name first: it is often why another setting is missing.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where = ".".join(_setting(first["loc"], values)) or "configuration"
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


def _setting(location: Sequence[int | str], values: Any) -> list[str]:
    """The keys that lead to a setting: pydantic names the kind of a section among them."""
    keys = []
    for part in location:
        inside = isinstance(values, dict) and part in values
        if not inside and isinstance(values, dict) and part == values.get("kind"):
            continue
        keys.append(str(part))
        values = values[part] if inside else None
    return keys
