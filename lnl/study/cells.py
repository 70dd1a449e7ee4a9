"""Where a search is nested: a cell for each combination of levels that it does not search over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lnl import methods
from lnl.dotted import first_part, is_within
from lnl.space import Space, as_json
from lnl.storage.places import canonical, short_hash
from lnl.study.parts import Search
from lnl.study.plan import Cell, Planned
from lnl.study.resolve import Resolved
from lnl.trial.config import Trial

_FIXED_DURING_SEARCH = ("replicate", "dataset", "noise", "validation")  # else scores would not be comparable
_ALSO_OF_TEACHERS = {"probe", "epochs", "steps", "labels"}  # fields that a teacher takes over from its trial


def nested_cells(resolved: Resolved, declared: Sequence[Planned]) -> tuple[Cell, ...]:
    """One cell for each arm, sampler and setting to search in; none where the study does not search.

    Raises `ValueError` for a space that cannot be.
    """
    if (search := resolved.search) is None:
        return ()
    arms = {planned.arm: planned.trial for planned in declared}
    _check_names(search, arms)
    cells = []
    for planned in _places(search, declared):
        space = _space(search, planned.arm, planned.trial, resolved.crossed_factors)
        cells += [_cell(resolved, search, planned, sampler, space) for sampler in search.samplers if space]
    if not cells:
        raise ValueError("There is nothing to search: no parameter matters in any of the arms.")
    for cell in cells:
        if cell.searched_arm in arms:
            raise ValueError(f"The searched arm '{cell.searched_arm}' has the name of another arm: rename that one.")
        if (name := f"search_{cell.arm}") in resolved.panels:
            raise ValueError(f"The panel '{name}' has the name of the one that shows a search: rename it.")
    return tuple(cells)


def _check_names(search: Search, arms: Mapping[str, Trial]) -> None:
    """Raise `ValueError` where the search names a parameter or an arm that there is not."""
    known = dict.fromkeys(key for trial in arms.values() for key in _declared_space(search, trial))
    if unknown := [key for key in search.parameters or () if key not in known]:
        raise ValueError(f"The search has no parameter '{unknown[0]}': there are {', '.join(known)}.")
    if unplanned := [arm for arm in search.arms or () if arm not in arms]:
        raise ValueError(f"The search names arm '{unplanned[0]}', which is not planned: there are {', '.join(arms)}.")


def _places(search: Search, declared: Sequence[Planned]) -> list[Planned]:
    """The first replicate of each arm in each setting that is searched in.  Raises `ValueError` where one cannot be."""
    chosen = [planned for planned in declared if search.arms is None or planned.arm in search.arms]
    places = [
        planned
        for planned in chosen
        if planned.trial.replicate == 0 and (search.settings == "each" or planned.setting == "{}")
    ]
    if absent := sorted({planned.arm for planned in chosen} - {planned.arm for planned in places}):
        raise ValueError(
            f"Arm '{absent[0]}' is not planned in the base setting, where the search would be: add the base's levels "
            "to the factors, or search with settings='each'."
        )
    if blind := [planned.arm for planned in places if not planned.trial.validation.images]:
        raise ValueError(
            f"A search chooses by validation images, and arm '{blind[0]}' has none: give the base some, such as "
            "validation.images=200."
        )
    return places


def _cell(resolved: Resolved, search: Search, planned: Planned, sampler: str, space: Mapping[str, Space]) -> Cell:
    comparable = {
        "trial": planned.trial.identity(),
        "space": {key: as_json(searched) for key, searched in space.items()},
        "selection": search.selection or resolved.selection,
        **{name: getattr(search, name) for name in ("objectives", "replicates", "pruner", "seed")},
    }
    setting = [planned.setting] if planned.setting != "{}" else []
    digest = short_hash(canonical(comparable))[:8]
    name = "/".join([resolved.study, resolved.preset, f"{planned.arm}_{sampler}", *setting, digest])
    return Cell(name, planned.arm, planned.setting, sampler, planned.trial, space)


def _declared_space(search: Search, trial: Trial) -> dict[str, Space]:
    return dict(search.space or methods.load(trial.method_name).SEARCH)


def _space(search: Search, arm: str, trial: Trial, crossed: set[str]) -> dict[str, Space]:
    """What is searched in an arm: the fields that can matter there, but for those that the study crosses itself.

    Nothing where none does.

    Raises `ValueError` where a field does not exist or cannot be searched, a condition cannot be checked, or the arm's
    own value lies outside.
    """
    _check_not_crossed(search, crossed)
    space = _declared_space(search, trial)
    wanted = set(space if search.parameters is None else search.parameters) - crossed
    space = {key: searched for key, searched in space.items() if key in wanted}
    subject = f"The search of arm '{arm}'"
    _check_searchable(subject, space, trial)
    own = dict(_own_values(subject, space, trial))
    mattering: dict[str, Space] = {}
    for key, searched in space.items():
        fixed = {other: values for other, values in searched.when.items() if other not in mattering}
        if _holds(fixed, own):
            mattering[key] = searched
    for key, searched in mattering.items():
        if _holds(searched.when, own) and own[key] not in searched:
            raise ValueError(
                f"{subject} does not hold the arm's own value of '{key}', {own[key]!r}, which is always tried first: "
                "widen its range, or search other parameters."
            )
    return mattering


def _holds(condition: Mapping[str, Sequence[Any]], values: Mapping[str, Any]) -> bool:
    return all(values[key] in allowed for key, allowed in condition.items())


def _check_not_crossed(search: Search, crossed: set[str]) -> None:
    asked = (*(search.space or {}), *(search.parameters or ()))
    if both := [key for key in asked if any(is_within(key, factor) or is_within(factor, key) for factor in crossed)]:
        raise ValueError(f"'{both[0]}' is a factor of the study and cannot be searched: leave one of the two out.")


def _check_searchable(subject: str, space: Mapping[str, Space], trial: Trial) -> None:
    """Raise `ValueError` where suggestions would not be comparable."""
    if fixed := [key for key in space if first_part(key) in _FIXED_DURING_SEARCH]:
        raise ValueError(
            f"{subject} cannot search the field '{fixed[0]}': suggestions would be scored on different images or "
            "labels."
        )
    if trial.noise.teacher is not None and (shared := sorted(_ALSO_OF_TEACHERS & set(space))):
        raise ValueError(
            f"{subject} cannot search the field '{shared[0]}', which changes the teacher of its noise, too: leave it "
            "out."
        )


def _own_values(subject: str, space: Mapping[str, Space], trial: Trial) -> Iterator[tuple[str, Any]]:
    """The arm's own values of the fields that are searched, and of those on which their conditions depend."""
    keys = list(space)
    for place, (key, searched) in enumerate(space.items()):
        for other in (key, *searched.when):
            try:
                yield other, trial.value(other)
            except ValueError:
                raise ValueError(f"{subject} names '{other}', which is no field of its trials.") from None
        if late := [other for other in searched.when if other in keys[place:]]:
            raise ValueError(f"{subject} asks for '{late[0]}' too late: it comes before '{key}', which depends on it.")
