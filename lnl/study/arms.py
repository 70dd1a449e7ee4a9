"""The trial of an arm: the base with what is set for all arms and with the arm's own overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lnl.declaring import fields_at
from lnl.dotted import is_within
from lnl.trial.config import METHOD_KEYS, Trial


def trial_of_arm(arm: str, base: Trial, changes: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[Trial, list[str]]:
    """The arm's trial, and which fields of `changes`, set for all arms, its method does not have.

    Raises `ValueError` where an override of its own cannot be.
    """
    try:
        kept, lost = _changes_that_hold(changes, own)
        return base.override({**kept, **own}), lost
    except ValueError as error:
        raise ValueError(f"Arm '{arm}': {error}") from None


def _changes_that_hold(changes: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Of what is set for all arms, what one with a method of its own keeps, and what its method does not have.

    A new method starts from its own defaults, so what the base has there by now is lost.
    """
    kept: dict[str, Any] = {}
    lost: list[str] = []
    if (name := _own_method(own)) is None:
        return kept, lost
    for key, value in changes.items():
        *parents, field = key.split(".")
        if not parents or parents[0] != "method" or key in METHOD_KEYS or _sets(own, key):
            continue
        if field in fields_at(Trial, parents, {"method": name}):
            kept[key] = value
        else:
            lost.append(key)
    return kept, lost


def _own_method(own: Mapping[str, Any]) -> str | None:
    """The name of the method that these overrides choose, if they do."""
    for key in METHOD_KEYS:
        if key in own:
            return own[key].get("name") if isinstance(own[key], Mapping) else own[key]
    return None


def _sets(own: Mapping[str, Any], key: str) -> bool:
    """Whether these overrides hold the field: by itself, within a larger one, or in an object of the whole method."""
    whole = own.get("method")
    within_whole = isinstance(whole, Mapping) and key.split(".")[1] in whole
    return within_whole or any(is_within(key, other) for other in own if other not in METHOD_KEYS)
