"""The vocabulary of search spaces: what may be tried for one field of a trial.  Pure data.

A space maps dotted fields of `Trial`, spelled as in `--set`, to what may be tried for them:

    SEARCH = {
        "method.lambda_u": Uniform(1.0, 150.0, log=True),
        "method.truncated": Choice((False, True)),
        "method.k": Uniform(0.1, 0.9, when={"method.truncated": (True,)}),
        "probe": Integer(10, 500, log=True),
    }

`when` makes a field conditional: it is searched only where another field has one of these values, whether that field is
searched, too (then it must come earlier in the space), or is fixed by the arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lnl.declaring import declared

Condition = Mapping[str, tuple[Any, ...]]


@declared
@dataclass(frozen=True)
class Uniform:
    """A real number in [low, high]; `log`: uniform in its logarithm.  Raises `ValueError` for an empty range."""

    low: float
    high: float
    log: bool = False
    when: Condition = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log)
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


@declared
@dataclass(frozen=True)
class Integer:
    """An integer in [low, high], both included; `log`: uniform in its logarithm.

    Raises `ValueError` for an empty range.
    """

    low: int
    high: int
    log: bool = False
    when: Condition = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.log)
        if not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise ValueError(
                f"A range of integers must have integer ends, not {self.low} and {self.high}: use Uniform."
            )

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


@declared
@dataclass(frozen=True)
class Choice:
    """One of the values: numbers, strings, booleans or None.  Raises `ValueError` where the list is empty."""

    values: tuple[Any, ...]
    when: Condition = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("A choice needs at least one value.")
        if unsupported := [value for value in self.values if not isinstance(value, str | int | float | bool | None)]:
            raise ValueError(
                f"The values of a choice must be numbers, strings, booleans or None, not {unsupported[0]!r}."
            )
        if len({(type(value), value) for value in self.values}) < len(self.values):
            raise ValueError(f"The values of a choice must differ, not {self.values}.")

    def __contains__(self, value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in self.values)


Space = Uniform | Integer | Choice


def _check_range(low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"A range must have finite ends, not {low} and {high}.")
    if low >= high:
        raise ValueError(f"The range from {low} to {high} is empty: give a lower end below the upper one.")
    if log and low <= 0:
        raise ValueError(f"A log range must start above 0, not at {low}: raise its lower end, or leave `log` out.")


def as_json(space: Space) -> dict[str, Any]:
    """Plain data such as {"kind": "uniform", "low": 0.1, "high": 10.0, "log": true}, with `when` where there is one."""
    stored: dict[str, Any] = {"kind": type(space).__name__.lower(), **asdict(space)}
    stored["when"] = {key: list(values) for key, values in space.when.items()}
    if isinstance(space, Choice):
        stored["values"] = list(space.values)
    return {name: value for name, value in stored.items() if name != "when" or value}


def from_json(stored: Any) -> Space:
    """The space that `as_json` turned into plain data; a space is returned as it is.  Raises `ValueError` otherwise."""
    if isinstance(stored, Uniform | Integer | Choice):
        return stored
    kinds = {kind.__name__.lower(): kind for kind in (Uniform, Integer, Choice)}
    if not isinstance(stored, Mapping) or stored.get("kind") not in kinds:
        raise ValueError(f"a space is of one of the kinds {', '.join(kinds)}, not {stored!r}")
    fields = {name: value for name, value in stored.items() if name != "kind"}
    fields["when"] = {key: tuple(values) for key, values in fields.get("when", {}).items()}
    if "values" in fields:
        fields["values"] = tuple(fields["values"])
    return kinds[stored["kind"]](**fields)
