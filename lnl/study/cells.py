"""Where a search is nested: a cell for each combination of levels that it does not search over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lnl import methods
from lnl.space import Space, as_json
from lnl.storage.places import canonical, short_hash
from lnl.study.parts import Search
from lnl.study.plan import Cell, Planned, _get
from lnl.trial.config import Trial

_THE_QUESTION = ("replicate", "dataset", "noise", "validation")  # what stays the same for all suggestions


def _cells(
    search: Search, study: str, preset: str, planned: Iterable[Planned], crossed: set[str], selection: str
) -> tuple[Cell, ...]:
    """One cell for each arm, sampler and setting to search in.  Raises `ValueError` for a space that cannot be."""
    places: dict[tuple[str, str], Trial] = {}
    planned = list(planned)
    arms = {one.arm: one.trial for one in planned}
    known = dict.fromkeys(key for trial in arms.values() for key in _declared_space(search, trial))
    if unknown := [key for key in search.parameters or () if key not in known]:
        raise ValueError(f"The search has no parameter '{unknown[0]}': there are {', '.join(known)}.")
    if strange := [arm for arm in search.arms or () if arm not in arms]:
        raise ValueError(f"The search names arm '{strange[0]}', which is not planned: there are {', '.join(arms)}.")
    planned = [one for one in planned if search.arms is None or one.arm in search.arms]
    for one in planned:
        if one.trial.replicate == 0 and (search.settings == "each" or one.setting == "{}"):
            places[one.arm, one.setting] = one.trial
    if absent := sorted({one.arm for one in planned} - {arm for arm, _ in places}):
        raise ValueError(
            f"Arm '{absent[0]}' is not planned in the base setting, where the search would be: add the base's levels "
            "to the factors, or search with settings='each'."
        )
    cells = []
    for (arm, setting), trial in places.items():
        if not trial.validation.images:
            raise ValueError(
                f"A search chooses by validation images, and arm '{arm}' has none: give the base some, such as "
                "validation.images=200."
            )
        if not (space := _space(search, arm, trial, crossed)):
            continue
        for sampler in search.samplers:
            comparable = {
                "trial": trial.identity(),
                "space": {key: as_json(one) for key, one in space.items()},
                "selection": search.selection or selection,
                **{name: getattr(search, name) for name in ("objectives", "replicates", "pruner", "seed")},
            }
            if f"{arm}_{sampler}" in arms:
                raise ValueError(f"The searched arm '{arm}_{sampler}' has the name of another arm: rename that one.")
            digest = short_hash(canonical(comparable))[:8]
            words = [study, preset, f"{arm}_{sampler}", *([setting] if setting != "{}" else []), digest]
            cells.append(Cell("/".join(words), arm, setting, sampler, trial, space))
    if not cells:
        raise ValueError("There is nothing to search: no parameter matters in any of the arms.")
    return tuple(cells)


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


def _declared_space(search: Search, trial: Trial) -> dict[str, Space]:
    return dict(search.space or methods.load(trial.method_name).SEARCH)


def _space(search: Search, arm: str, trial: Trial, crossed: set[str]) -> dict[str, Space]:
    """What is searched in an arm: the fields that can matter there, but for those that the study crosses itself.

    Nothing where none does.

    Raises `ValueError` where a field does not exist or is no question for a search, a condition cannot be asked, or the
    arm's own value lies outside.
    """
    space = _declared_space(search, trial)
    of = f"The search of arm '{arm}'"
    asked = (*(search.space or {}), *(search.parameters or ()))
    if both := [key for key in asked if any(_within(key, factor) or _within(factor, key) for factor in crossed)]:
        raise ValueError(f"'{both[0]}' is a factor of the study and cannot be searched: leave one of the two out.")
    wanted = set(space if search.parameters is None else search.parameters) - crossed
    space = {key: one for key, one in space.items() if key in wanted}
    if outside := [key for key in space if key.partition(".")[0] in _THE_QUESTION]:
        raise ValueError(
            f"{of} cannot search the field '{outside[0]}': suggestions would be scored on different images or labels."
        )
    if trial.noise.teacher is not None and (taught := sorted({"probe", "epochs", "steps", "labels"} & set(space))):
        raise ValueError(
            f"{of} cannot search the field '{taught[0]}', which changes the teacher of its noise, too: leave it out."
        )
    own = {}
    for place, (key, one) in enumerate(space.items()):
        for other in (key, *one.when):
            try:
                own[other] = _get(trial, other)
            except ValueError:
                raise ValueError(f"{of} names '{other}', which is no field of its trials.") from None
        if late := [other for other in one.when if other in list(space)[place:]]:
            raise ValueError(f"{of} asks for '{late[0]}' too late: it comes before '{key}', which depends on it.")
    mattering: dict[str, Space] = {}
    for key, one in space.items():
        fixed = {other: values for other, values in one.when.items() if other not in mattering}
        if all(own[other] in values for other, values in fixed.items()):
            mattering[key] = one
    for key, one in mattering.items():
        if all(own[other] in values for other, values in one.when.items()) and own[key] not in one:
            raise ValueError(
                f"{of} does not hold the arm's own value of '{key}', {own[key]!r}, which is always tried first: widen "
                "its range, or search other parameters."
            )
    return mattering


def _search_record(search: Search, cells: Sequence[Cell], selection: str) -> dict[str, Any]:
    """The search as it stands in a plan's record."""
    validation = {cell.trial.validation.labels for cell in cells}
    return {
        **{name: getattr(search, name) for name in ("suggestions", "pruner", "replicates", "settings", "seed")},
        "objectives": list(search.objectives),
        "selection": search.selection or selection,
        "validation_labels": " or ".join(sorted(validation)),
        "cells": [
            {
                "search": cell.name,
                "arm": cell.arm,
                "searched_arm": cell.searched_arm,
                "sampler": cell.sampler,
                "setting": json.loads(cell.setting),
                "space": {key: as_json(one) for key, one in cell.space.items()},
                "default": cell.default,
                "paper": {key: value for key, value in _papers_values(cell).items() if value is not None},
                "finished": 0,
                "winner": None,
                "importance": {},
            }
            for cell in cells
        ],
    }


def _papers_values(cell: Cell) -> dict[str, Any]:
    """Defaults of the method's own fields, which are its paper's."""
    paper = Trial(method=methods.configure(cell.trial.method_name))
    return {key: _get(paper, key) for key in cell.space if key.startswith("method.")}
