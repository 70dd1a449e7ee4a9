"""The vocabulary of search spaces: what it holds, what it refuses, and how it is written down."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from lnl.space import Choice, Integer, Space, Uniform, as_json


@pytest.mark.parametrize(
    ("space", "inside", "outside"),
    [
        (Uniform(0.1, 10.0), (0.1, 1, 10.0), (0.0999, 10.1, math.nan, math.inf, True, "1", None)),
        (Uniform(-1.0, 1.0), (-1, 0, 0.5), (-1.5,)),
        (Integer(1, 8, log=True), (1, 8), (0, 9, 2.0, True, "2", None)),
        (Choice((None, 0.5, "beta", False)), (None, 0.5, "beta", False), (0, 0.25, "", True)),
        (Choice((1, 2)), (1, 2), (True, 1.0, "1", None)),
    ],
)
def test_what_a_space_holds(space: Space, inside: tuple[Any, ...], outside: tuple[Any, ...]) -> None:
    assert [value for value in inside if value not in space] == []
    assert [value for value in outside if value in space] == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Uniform(1.0, 1.0), "from 1.0 to 1.0 is empty"),
        (lambda: Uniform(2.0, 1.0), "give a lower end below the upper one"),
        (lambda: Integer(8, 1), "from 8 to 1 is empty"),
        (lambda: Uniform(0.0, 1.0, log=True), "must start above 0, not at 0.0"),
        (lambda: Integer(-1, 5, log=True), "must start above 0, not at -1"),
        (lambda: Uniform(0.0, math.inf), "finite ends"),
        (lambda: Uniform(math.nan, 1.0), "finite ends"),
        (lambda: Integer(0.5, 2), "use Uniform"),
        (lambda: Choice(()), "at least one value"),
        (lambda: Choice(((1, 2), (3, 4))), "numbers, strings, booleans or None"),
        (lambda: Choice((0.5, 0.5)), "must differ"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_sentence(make: Callable[[], Space], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        make()
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


def test_values_of_different_kinds_are_different_choices() -> None:
    assert Choice((1, True, 1.0)).values == (1, True, 1.0)


@pytest.mark.parametrize(
    ("space", "written"),
    [
        (Uniform(0.1, 10.0, log=True), {"kind": "uniform", "low": 0.1, "high": 10.0, "log": True}),
        (Integer(1, 30), {"kind": "integer", "low": 1, "high": 30, "log": False}),
        (
            Choice((None, 0.5), when={"method.truncated": (True,)}),
            {"kind": "choice", "values": [None, 0.5], "when": {"method.truncated": [True]}},
        ),
    ],
)
def test_as_json(space: Space, written: dict[str, Any]) -> None:
    assert as_json(space) == written
    assert json.loads(json.dumps(as_json(space))) == written
