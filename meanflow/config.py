"""Frozen dataclasses <-> JSON. Unions are tagged by class name; unknown and missing fields raise."""

import hashlib
import json
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
TAG = "type"
LONGEST_SHOWN = 200


def to_plain(config: Any) -> Any:
    """A dataclass tree as JSON-ready values; every dataclass carries its class name under "type"."""
    if is_dataclass(config) and not isinstance(config, type):
        return {TAG: type(config).__name__} | {f.name: to_plain(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, tuple | list):
        return [to_plain(v) for v in config]
    if isinstance(config, dict):
        return {k: to_plain(v) for k, v in config.items()}
    return str(config) if isinstance(config, Path) else config


def from_plain(kind: Any, plain: Any, where: str = "config") -> Any:
    """Rebuild a value of type `kind`; errors name the field, the rule and the value."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _from_union(kind, plain, where)
    if origin is typing.Literal:
        if plain not in get_args(kind):
            raise ValueError(f"{where} must be one of {list(get_args(kind))}, got {_shown(plain)}")
        return plain
    if is_dataclass(kind):
        return _from_dataclass(kind, plain, where)
    if origin is tuple:
        if not isinstance(plain, list | tuple):
            raise ValueError(f"{where} must be a list, got {_shown(plain)}")
        args = get_args(kind)
        item = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        return tuple(
            from_plain(item or a, v, where) for a, v in zip(args if item is None else plain, plain, strict=True)
        )
    if kind is Path and isinstance(plain, str):
        return Path(plain)
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool):
        try:
            return float(plain)
        except OverflowError as error:
            raise ValueError(f"{where} must be a float, got {_shown(plain)}") from error
    if isinstance(kind, type) and (not isinstance(plain, kind) or (kind is int and isinstance(plain, bool))):
        raise ValueError(f"{where} must be a {kind.__name__}, got {_shown(plain)}")
    return plain


def _from_union(kind: Any, plain: Any, where: str) -> Any:
    members = get_args(kind)
    if plain is None and type(None) in members:
        return None
    tagged = [m for m in members if isinstance(m, type) and is_dataclass(m)]
    if isinstance(plain, dict) and tagged:
        for member in tagged:
            if member.__name__ == plain.get(TAG):
                return _from_dataclass(member, plain, where)
        raise ValueError(f"{where}.{TAG} must be one of {[m.__name__ for m in tagged]}, got {_shown(plain.get(TAG))}")
    return from_plain(next(m for m in members if m is not type(None)), plain, where)


def _from_dataclass(kind: Any, plain: Any, where: str) -> Any:
    if not isinstance(plain, dict) or plain.get(TAG, kind.__name__) != kind.__name__:
        raise ValueError(f"{where} must be a {kind.__name__}, got {_shown(plain)}")
    known = {f.name: f for f in fields(kind)}
    given = {k: v for k, v in plain.items() if k != TAG}
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{where} has unknown fields {_shown(unknown)}; {kind.__name__} knows {sorted(known)}")
    required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - set(given)):
        raise ValueError(f"{where} lacks {missing}, required by {kind.__name__}")
    hints = get_type_hints(kind)
    return kind(**{k: from_plain(hints[k], v, f"{where}.{k}") for k, v in given.items()})


def _shown(value: Any) -> str:
    """A value of untrusted input for a message: printable, at most 200 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or a deep nest
        text = f"a {type(value).__name__}"
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def dumps(config: Any) -> str:
    """Indented JSON of a dataclass tree."""
    return json.dumps(to_plain(config), indent=2)


def loads(kind: type[T], text: str) -> T:
    """Inverse of `dumps`."""
    value: T = from_plain(kind, json.loads(text))
    return value


def digest(config: Any) -> str:
    """First 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
    canonical = json.dumps(to_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
