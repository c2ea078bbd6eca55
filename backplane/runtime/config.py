"""TOML and environment -> one frozen dataclass, with every mistake reported at once.

    config_version = 1            first, always
    listen = "tcp://0.0.0.0:7000"
    lease = "15s"                 durations and sizes as people write them

    [catalog]                     a nested dataclass
    cache = "64MiB"

Later beats earlier: defaults of the dataclass, the file, `conf.d/*.toml` beside it in the order of their names, the
environment (`PREFIX_LEASE`, `PREFIX_CATALOG_CACHE`; lists separated by commas).  An unknown key is a mistake; an
unknown environment variable is not, because container engines set many that begin with a service's name.

Fields may be str, int, float, bool, Path (relative to the file that names it), `Literal["a", "b"]`, `X | None`,
tuple[X, ...], dict[str, str] and other frozen dataclasses, also in tuples (arrays of tables).  `Bytes` and `Seconds`
(or `Annotated` with `Size`, `Duration`, `Between`) give units and limits.  A dataclass may refuse a combination
of values by raising `ValueError` in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

from backplane.errors import BackupError, ConfigError
from backplane.units import format_duration, format_size, parse_duration, parse_size

CONFIG_VERSION: Final = 1
CONFIG_BYTES_MAX: Final = 1024 * 1024
_SIZE_MAX: Final = 2**63 - 1
_VERSION_KEY: Final = "config_version"


@dataclass(frozen=True, slots=True)
class Size:
    """An int field in bytes, written as a size."""

    least: int = 0
    most: int = _SIZE_MAX


@dataclass(frozen=True, slots=True)
class Duration:
    """A float field in seconds, written as a duration."""

    least_s: float = 0.0
    most_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Between:
    """Limits of a number, both included."""

    least: float
    most: float


Bytes = Annotated[int, Size()]
Seconds = Annotated[float, Duration()]
Port = Annotated[int, Between(0, 65535)]

_Config = TypeVar("_Config")


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A value and where it came from."""

    value: Any
    origin: str
    folder: Path
    is_text: bool = False
    """From the environment: text that still has to become a number."""


_Tree = dict[str, "_Leaf | _Tree"]
_NOTHING: Final = object()


class _MistakeError(ValueError):
    """One value is wrong; becomes a finding."""


def load_config(
    cls: type[_Config],
    path: Path,
    *,
    env_prefix: str,
    environ: Mapping[str, str] | None = None,
) -> _Config:
    """Read the file, its drop-ins and the environment; raises `ConfigError` with all mistakes."""
    assert dataclasses.is_dataclass(cls)
    findings: list[str] = []
    tree: _Tree = {}
    for number, file in enumerate([path, *sorted((path.parent / "conf.d").glob("*.toml"))]):
        values = _read_file(file, findings, is_main=number == 0)
        _merge(tree, values, str(file), file.parent)
    _overlay(tree, cls, (env_prefix,), os.environ if environ is None else environ)
    config = _build(cls, tree, "", str(path), findings)
    if findings:
        raise ConfigError(findings, hint="docs/config.md describes every key")
    assert isinstance(config, cls)
    return config


def _read_file(file: Path, findings: list[str], *, is_main: bool) -> dict[str, Any]:
    try:
        values = tomllib.loads(_bounded(file).decode("utf-8"))
    except OSError as error:
        findings.append(f"{file}: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, _MistakeError) as error:
        findings.append(f"{file}: {error}")
        return {}
    version = values.pop(_VERSION_KEY, None if is_main else CONFIG_VERSION)
    if type(version) is not int or version != CONFIG_VERSION:
        told = "missing" if version is None else f"{version!r} is not known"
        findings.append(f"{file}: {_VERSION_KEY}: {told}; this program reads {CONFIG_VERSION}")
        return {}
    return values


def _bounded(file: Path) -> bytes:
    with file.open("rb") as stream:
        data = stream.read(CONFIG_BYTES_MAX + 1)
    if len(data) > CONFIG_BYTES_MAX:
        raise _MistakeError(f"larger than {format_size(CONFIG_BYTES_MAX)}")
    return data


def _merge(tree: _Tree, values: Mapping[str, Any], origin: str, folder: Path) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            below = tree.get(key)
            if not isinstance(below, dict):
                below = tree[key] = {}
            _merge(below, value, origin, folder)
        else:
            tree[key] = _Leaf(value, origin, folder)


def _overlay(
    tree: _Tree, cls: type[Any], prefix: tuple[str, ...], environ: Mapping[str, str]
) -> None:
    for name, annotation in _hints(cls).items():
        where = (*prefix, name)
        nested = _dataclass_of(annotation)
        variable = "_".join(where).upper()
        if nested is not None:
            below = tree.get(name)
            found: _Tree = below if isinstance(below, dict) else {}
            _overlay(found, nested, where, environ)
            if found:
                tree[name] = found
        elif variable in environ:
            tree[name] = _Leaf(
                environ[variable], f"environment variable {variable}", Path.cwd(), is_text=True
            )


def _build(cls: type[Any], tree: _Tree, prefix: str, origin: str, findings: list[str]) -> Any:
    """Return an instance, or `_NOTHING` after adding findings."""
    hints = _hints(cls)
    findings.extend(
        f"{_origin(tree[key], origin)}: {prefix}{key}: unknown key"
        for key in sorted(tree.keys() - hints.keys())
    )
    before, values = len(findings), {}
    for field in dataclasses.fields(cls):
        key = f"{prefix}{field.name}"
        if field.name not in tree:
            nested = _dataclass_of(hints[field.name])
            if not _has_default(field) and nested is not None:
                values[field.name] = _build(nested, {}, f"{key}.", origin, findings)
            elif not _has_default(field):
                findings.append(f"{origin}: {key}: missing")
            continue
        node = tree[field.name]
        try:
            values[field.name] = _value(hints[field.name], node, key, origin, findings)
        except _MistakeError as error:
            findings.append(f"{_origin(node, origin)}: {key}: {error}")
    if len(findings) > before:
        return _NOTHING
    try:
        return cls(**values)
    except ValueError as error:
        findings.append(f"{origin}: {prefix or 'the whole'}: {error}")
        return _NOTHING


def _value(annotation: Any, node: _Leaf | _Tree, key: str, origin: str, findings: list[str]) -> Any:
    nested = _dataclass_of(annotation)
    if nested is not None:
        if isinstance(node, _Leaf):
            raise _MistakeError("must be a table")
        return _build(nested, node, f"{key}.", origin, findings)
    if get_origin(annotation) is dict:
        return _text_map(node)
    if isinstance(node, dict):
        raise _MistakeError("must not be a table")
    return _convert(annotation, node, key, findings)


def _text_map(node: _Leaf | _Tree) -> dict[str, str]:
    if isinstance(node, _Leaf):
        raise _MistakeError("must be a table")
    found = {}
    for name, leaf in node.items():
        if not isinstance(leaf, _Leaf) or type(leaf.value) is not str:
            raise _MistakeError(f"{name}: must be text")
        found[name] = leaf.value
    return found


def _convert(annotation: Any, leaf: _Leaf, key: str, findings: list[str]) -> Any:
    marker: Size | Duration | Between | None = None
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        marker = next((e for e in extras if isinstance(e, Size | Duration | Between)), None)
    if get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (a for a in get_args(annotation) if a is not type(None))
        return _convert(annotation, leaf, key, findings)
    if get_origin(annotation) is tuple:
        return _convert_list(get_args(annotation)[0], leaf, key, findings)
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if leaf.value not in choices:
            raise _MistakeError(f"must be one of {', '.join(map(str, choices))}")
        return leaf.value
    if annotation is Path:
        if type(leaf.value) is not str or not leaf.value or "\0" in leaf.value:
            raise _MistakeError("must be a path")
        return leaf.folder / Path(leaf.value).expanduser()
    match marker:
        case Size(least, most):
            size = _with_unit(leaf, parse_size, int)
            if not least <= size <= most:
                above = f" to {format_size(most)}" if most < _SIZE_MAX else " or more"
                raise _MistakeError(f"must be {format_size(least)}{above}")
            return int(size)
        case Duration(least_s, most_s):
            seconds = float(_with_unit(leaf, parse_duration, float))
            if not least_s <= seconds <= most_s:
                above = f" to {format_duration(most_s)}" if most_s < math.inf else " or more"
                raise _MistakeError(f"must be {format_duration(least_s)}{above}")
            return seconds
    value = _plain(annotation, leaf)
    if isinstance(marker, Between) and not marker.least <= value <= marker.most:
        raise _MistakeError(f"must be {marker.least:g} to {marker.most:g}")
    return value


def _convert_list(element: Any, leaf: _Leaf, key: str, findings: list[str]) -> tuple[Any, ...]:
    values = leaf.value
    if leaf.is_text:
        values = [part.strip() for part in leaf.value.split(",") if part.strip()]
    if type(values) is not list:
        raise _MistakeError("must be a list")
    nested = _dataclass_of(element)
    found = []
    for number, value in enumerate(values):
        where = f"{key}[{number}]"
        if nested is None:
            part = dataclasses.replace(leaf, value=value)
            try:
                found.append(_convert(element, part, where, findings))
            except _MistakeError as error:
                findings.append(f"{leaf.origin}: {where}: {error}")
        elif type(value) is not dict:
            findings.append(f"{leaf.origin}: {where}: must be a table")
        else:
            tree: _Tree = {}
            _merge(tree, value, leaf.origin, leaf.folder)
            found.append(_build(nested, tree, f"{where}.", leaf.origin, findings))
    return tuple(found)


def _with_unit(leaf: _Leaf, parse: Callable[[str], float], number: type[float]) -> float:
    """Return a size or duration; a bare TOML number is bytes (whole) or seconds."""
    value = leaf.value
    if type(value) is str:
        try:
            return parse(value)
        except BackupError as error:
            raise _MistakeError(str(error)) from error
    if type(value) is not int and type(value) is not number:
        raise _MistakeError("must be a number, or text with a unit")
    return number(value)


def _plain(annotation: Any, leaf: _Leaf) -> Any:
    value = leaf.value
    if leaf.is_text and annotation is not str:
        value = _from_text(annotation, value)
    if annotation is float and type(value) is int:
        value = float(value)
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    assert annotation in names, f"load_config knows no fields of type {annotation}"
    # Exact: true is no number.
    if type(value) is not annotation or (annotation is float and not math.isfinite(value)):
        raise _MistakeError(f"must be {names[annotation]}")
    return value


def _from_text(annotation: Any, text: str) -> Any:
    if annotation is bool:
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    try:
        return annotation(text)
    except ValueError:
        return text  # the type check that follows tells what is wanted


def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _dataclass_of(annotation: Any) -> type[Any] | None:
    """The dataclass that a table stands for: `X` or `X | None`."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next((a for a in get_args(annotation) if a is not type(None)), None)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return annotation
    return None


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return (
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )


def _origin(node: _Leaf | _Tree, fallback: str) -> str:
    if isinstance(node, _Leaf):
        return node.origin
    for below in node.values():
        return _origin(below, fallback)
    return fallback
