"""Settings: frozen dataclasses built from mappings, TOML files and environment variables.

The only module that reads environment variables. Unknown keys and values of the wrong type are
refused with the nearest name and what is allowed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from sooner.core import ConfigError, UnknownName

Settings = TypeVar("Settings")


def build(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Return the settings dataclass `kind` from `values`; `where` names their origin in errors.

    A nested dataclass is built from a nested mapping. Raises UnknownName for a key that is not a
    field, ConfigError for a value of the wrong type; the dataclass's `__post_init__` checks ranges.
    """
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise UnknownName(f"setting in {where}:", key, hints)
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            arguments[key] = build(typing.cast(type[Any], hints[key]), value, f"{where}.{key}")
        else:
            arguments[key] = _checked(hints[key], value, f"{where}.{key}")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


def read_toml(kind: type[Settings], path: Path) -> Settings:
    """Return settings from a TOML file. Raises ConfigError when it cannot be read or parsed."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read settings {str(path)!r}: {error}") from error
    return build(kind, values, str(path))


def from_environment(kind: type[Any], prefix: str) -> dict[str, Any]:
    """Return the fields of `kind` set as `PREFIX_FIELD` in the environment, parsed but not yet checked.

    Text fields are taken as they are; others are read as JSON. Raises UnknownName for a variable
    with the prefix that names no field.
    """
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for variable, text in os.environ.items():
        if not variable.startswith(prefix + "_"):
            continue
        field = variable[len(prefix) + 1 :].lower()
        if field not in hints:
            known = [f"{prefix}_{name.upper()}" for name in hints]
            raise UnknownName("environment variable", variable, known)
        if hints[field] is str or hints[field] == str | None:
            found[field] = text
            continue
        try:
            found[field] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{variable}={text!r} is not JSON: {error}") from error
    return found


def _checked(hint: Any, value: Any, where: str) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in allowed:
        origin = typing.get_origin(kind) or kind
        if origin is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if origin is Path and isinstance(value, str):
            return Path(value)
        if origin is Mapping and isinstance(value, Mapping):
            return dict(value)
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(value)
        if isinstance(value, origin) and not (isinstance(value, bool) and origin is not bool):
            return value
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
    raise ConfigError(f"{where}={value!r}, allowed: {names}")


def otel_wanted() -> bool:
    """Return whether OpenTelemetry's standard variables name where traces go, and do not turn them off."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    named = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return not off and exporter == "otlp" and any(os.environ.get(name) for name in named)


def otel_protocol() -> str:
    """Return how traces are sent, "http/protobuf" unless `OTEL_EXPORTER_OTLP_PROTOCOL` says otherwise."""
    either = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    return (either or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf").strip().lower()


def cache_folder() -> Path:
    """Return where large files made once are kept: `SOONER_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("SOONER_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sooner"


def data_folder() -> Path:
    """Return where workloads that do not ship are: `SOONER_DATA`, else `data` in the cache folder."""
    chosen = os.environ.get("SOONER_DATA")
    return Path(chosen) if chosen else cache_folder() / "data"
