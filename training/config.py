"""Typed YAML configuration: a file and `key=value` overrides into a frozen dataclass.

Unknown keys are refused with the nearest known name; types are checked; nothing is coerced
silently except a whole number, or one like 1e-5, where a float is asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

ConfigT = TypeVar("ConfigT")

# Characters of what was given, in a message.
_MOST_SHOWN: Final = 80
_EXPONENT: Final = re.compile(r"[+-]?\d{1,15}(\.\d{0,15})?[eE][+-]?\d{1,2}")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and what to do."""


@typing.runtime_checkable
class HasPresets(typing.Protocol):
    """A section that may also be given as the name of one of its presets."""

    @classmethod
    def presets(cls) -> Mapping[str, object]:
        """What the names stand for."""


def load_config(cls: type[ConfigT], path: Path, overrides: list[str]) -> ConfigT:
    """Reads a YAML file, applies `section.key=value` overrides, and builds `cls`.

    Raises:
        ConfigError: file missing or not YAML, unknown key, wrong type, bad value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot read the configuration {path.name}: {error.strerror}."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not text in UTF-8.") from error
    try:
        raw = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date that there is not
        raise ConfigError(f"{path.name} is not valid YAML.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name} must hold keys and values.")
    for override in overrides:
        _apply(raw, override)
    return build(cls, raw)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override!r} is not of the form key=value.")
    *sections, last = key.split(".")
    target = raw
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{section!r} in {key!r} is a value, not a section.")
    try:
        target[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"The value of {key!r} is not valid YAML.") from error


def build(cls: type[ConfigT], raw: dict[str, Any], prefix: str = "") -> ConfigT:
    """Builds a dataclass from plain data, section by section.

    Raises:
        ConfigError: unknown key, missing key, wrong type, bad value.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in raw:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            # Without a neighbour it may be a file of another command.
            known = f" Known here: {', '.join(names)}."
            hint = f" Did you mean {prefix + near[0]!r}?" if near else known
            raise ConfigError(f"Unknown key {shown(prefix + str(key))}.{hint}")
    values = {key: _checked(hints[key], value, prefix + key) for key, value in raw.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(
            f"The configuration {prefix or cls.__name__!r} lacks a key: {error}."
        ) from error
    except ValueError as error:
        # Most say first which key is wrong.
        is_named = str(error).partition(" ")[0] in names
        raise ConfigError(_cut(f"{prefix if is_named else ''}{error}", 3 * _MOST_SHOWN)) from error


def section(cls: type[ConfigT], value: object, name: str) -> ConfigT:
    """Builds a dataclass from its section, or takes one of its presets by name.

    Args:
        cls: has presets where it has a class method `presets`.
        value: plain data: keys and values, or the name of a preset.
        name: of the section, for messages.

    Raises:
        ConfigError: neither of both, an unknown preset, or as `build`.
    """
    if isinstance(value, dict):
        return build(cls, value, f"{name}.")
    if not issubclass(cls, HasPresets):
        raise ConfigError(f"{name!r} must be a section with keys.")
    presets = cls.presets()
    if not isinstance(value, str):
        raise ConfigError(f"{name!r} must be a section with keys or one of {', '.join(presets)}.")
    if value not in presets:
        raise ConfigError(f"{name!r} must be one of {', '.join(presets)}, not {shown(value)}.")
    return typing.cast("ConfigT", presets[value])


def shown(value: object) -> str:
    """What was given, for a message: control characters escaped, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:
        # A whole number of more digits than Python writes out.
        return "a number of thousands of digits"
    return _cut(text, _MOST_SHOWN)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _checked(hint: Any, value: Any, name: str) -> Any:  # noqa: ANN401
    """`value` as the type hint asks; type hints and YAML values have no type in common."""
    if dataclasses.is_dataclass(hint):
        return section(typing.cast("type[Any]", hint), value, name)
    if typing.get_origin(hint) is not None:
        return _checked_generic(hint, value, name)
    return _checked_plain(hint, value, name)


def _checked_generic(hint: Any, value: Any, name: str) -> Any:  # noqa: ANN401
    """Tuples (from lists), optional values and literals."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name!r} must be a list.")
        return tuple(_checked(arguments[0], item, name) for item in value)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{name!r} must be one of {', '.join(map(str, arguments))}.")
        return value
    if value is None and type(None) in arguments:
        return None
    return _checked(next(a for a in arguments if a is not type(None)), value, name)


def _checked_plain(hint: Any, value: Any, name: str) -> Any:  # noqa: ANN401
    """Numbers, text, switches and paths."""
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{name!r} is too large.") from error
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        # YAML 1.1 takes 1e-5 for a text, for want of a point.
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{name!r} must be of type {hint.__name__}, not {shown(value)}.")
    return value
