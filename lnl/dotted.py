"""Dotted keys, as in `--set method.optimizer.learning_rate=0.03`: nested settings by key, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MISSING = object()


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted key, in order; an empty mapping stays as it is: {"a": {"b": 1}} is {"a.b": 1}."""
    return dict(_leaves(settings, ""))


def _leaves(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def lookup(settings: Mapping[str, Any], key: str, default: Any = _MISSING) -> Any:
    """The value at a dotted key of nested settings.  Raises `KeyError` where there is none and no default is given."""
    place: Any = settings
    for part in key.split("."):
        if not isinstance(place, Mapping) or part not in place:
            if default is _MISSING:
                raise KeyError(key)
            return default
        place = place[part]
    return place


def assign(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key of nested settings; what stands on the way and is no dictionary is replaced."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = settings.get(parent)
        if not isinstance(inner, dict):
            inner = settings[parent] = {}
        settings = inner
    settings[last] = value


def is_within(key: str, other: str) -> bool:
    """Whether a dotted key is another one or a part of it: "noise.rate" is within "noise"."""
    return key == other or key.startswith(f"{other}.")


def first_part(key: str) -> str:
    """The outermost part of a dotted key: "method" of "method.optimizer.learning_rate"."""
    return key.partition(".")[0]
