"""The trial of an arm: the base with what is set for all arms and with the arm's own overrides."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lnl.declaring import fields_at, unknown_key
from lnl.dotted import is_within
from lnl.trial.config import METHOD_KEYS, Trial


def changed_base(base: Trial, changes: Mapping[str, Any]) -> Trial:
    """The base with what is set for all arms, but for fields that its method does not have.

    Raises `ValueError` where a change cannot be.
    """
    method = own_method(changes) or base.method_name
    return base.override({key: value for key, value in changes.items() if not _is_missing(method, key)})


def trial_of_arm(arm: str, base: Trial, changes: Mapping[str, Any], own: Mapping[str, Any]) -> Trial:
    """The arm's trial: the base, what is set for all arms where its method has the field, and its own overrides.

    `base` has the changes already; a method of the arm's own starts from its own defaults.

    Raises `ValueError` where an override of its own cannot be.
    """
    try:
        return base.override({**_kept(changes, own), **own})
    except ValueError as error:
        raise ValueError(f"Arm '{arm}': {error}") from None


def _kept(changes: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is set for all arms, what one with a method of its own has to be given anew."""
    method = own_method(own)
    return {
        key: value
        for key, value in changes.items()
        if method is not None and is_of_method(key) and not _sets(own, key) and not _is_missing(method, key)
    }


def check_held(keys: Iterable[str], every: Collection[str], to_run: Collection[str]) -> None:
    """Raise `ValueError` where a field that is set for all arms is one of no method that is to be run.

    `every`: the methods of all arms; `to_run`: those of the arms that are to be run.
    """
    for key in filter(is_of_method, keys):
        if not all(_is_missing(method, key) for method in to_run):
            continue
        *parents, field = key.split(".")
        if all(_is_missing(method, key) for method in every):
            known = {name for method in every for name in fields_at(Trial, parents, {"method": method})}
            raise ValueError(unknown_key(field, sorted(known), parents))
        raise ValueError(
            f"No arm that is to be run is of a method with the field '{key}': leave it out, or choose other arms."
        )


def arms_without(keys: Iterable[str], methods: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Field of the method -> the arms whose method does not have it; `methods`: the method of each arm, by name."""
    lacking = {key: tuple(arm for arm, method in methods.items() if _is_missing(method, key)) for key in keys}
    return {key: arms for key, arms in lacking.items() if arms}


def own_method(own: Mapping[str, Any]) -> str | None:
    """The name of the method that these overrides choose, if they do."""
    for key in METHOD_KEYS:
        if key in own:
            return own[key].get("name") if isinstance(own[key], Mapping) else own[key]
    return None


def is_of_method(key: str) -> bool:
    """Whether the dotted key is of one field of the method, and not of the whole method."""
    return key.startswith("method.") and key not in METHOD_KEYS


def _is_missing(method: str, key: str) -> bool:
    """Whether the key is of a field of the method that this method does not have."""
    *parents, field = key.split(".")
    return is_of_method(key) and field not in fields_at(Trial, parents, {"method": method})


def _sets(own: Mapping[str, Any], key: str) -> bool:
    """Whether these overrides hold the field: by itself, within a larger one, or in an object of the whole method."""
    whole = own.get("method")
    within_whole = isinstance(whole, Mapping) and key.split(".")[1] in whole
    return within_whole or any(is_within(key, other) for other in own if other not in METHOD_KEYS)
