"""Nested settings by dotted key, and back."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from lnl.dotted import assign, first_part, flatten, is_within, lookup

NESTED: dict[str, Any] = {
    "labels": 250,
    "noise": {"kind": "pair", "teacher": {}, "levels": {"rate": 0.4}},
    "method": {},
}
FLAT = {"labels": 250, "noise.kind": "pair", "noise.teacher": {}, "noise.levels.rate": 0.4, "method": {}}


def test_nested_settings_are_flattened_in_order_and_empty_ones_stay() -> None:
    assert flatten(NESTED) == FLAT and list(flatten(NESTED)) == list(FLAT)
    assert flatten({}) == {} and flatten(FLAT) == FLAT


def test_what_is_flattened_is_found_and_assigned_again() -> None:
    built: dict[str, Any] = {}
    for key, value in FLAT.items():
        assert lookup(NESTED, key) == value == reduce(lambda place, part: place[part], key.split("."), NESTED)
        assign(built, key, value)
    assert built == NESTED


@pytest.mark.parametrize("key", ["epochs", "noise.rate", "labels.rate", "noise.kind.first", "method.name"])
def test_a_key_that_is_not_there_is_an_error_or_the_default(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        lookup(NESTED, key)
    assert lookup(NESTED, key, None) is None


def test_a_value_of_none_is_there() -> None:
    assert lookup({"labels": None}, "labels") is None and lookup({"labels": None}, "labels", 3) is None


def test_assigning_replaces_what_stands_on_the_way() -> None:
    settings: dict[str, Any] = {"method": "gce", "noise": None}
    assign(settings, "method.optimizer.kind", "sgd")
    assign(settings, "noise.rate", 0.2)
    assert settings == {"method": {"optimizer": {"kind": "sgd"}}, "noise": {"rate": 0.2}}


@pytest.mark.parametrize(
    ("key", "other", "expected"),
    [
        ("noise.rate", "noise", True),
        ("noise", "noise", True),
        ("noise", "noise.rate", False),
        ("noisy", "noise", False),
    ],
)
def test_a_key_is_within_another_by_whole_parts(key: str, other: str, expected: bool) -> None:
    assert is_within(key, other) is expected


def test_the_first_part() -> None:
    assert first_part("method.optimizer.kind") == "method" and first_part("labels") == "labels"
