"""The vocabulary of a method's `SEARCH`: what may be tried for one field.  Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Uniform:
    """A real number in [low, high]; `log`: uniform in its logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high], both included."""

    low: int
    high: int


@dataclass(frozen=True)
class Choice:
    """One of the values."""

    values: tuple[Any, ...]
