"""The second step of a plan: every arm of a panel in every combination of its factors' levels, each trial once."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lnl.storage.places import canonical
from lnl.study.arms import arms_without, check_held, own_method, trial_of_arm
from lnl.study.cells import nested_cells
from lnl.study.parts import Panel
from lnl.study.plan import Cell, Planned, with_prerequisites
from lnl.study.resolve import Resolved


@dataclass(frozen=True)
class Crossed:
    """The trials of a study at one size, and the cells of its search."""

    declared: tuple[Planned, ...]  # whole replicates first
    trials: tuple[Planned, ...]  # these and their prerequisites
    cells: tuple[Cell, ...]
    without: Mapping[str, tuple[str, ...]]  # field of the method that is set for all arms -> those that do not have it


def cross(resolved: Resolved) -> Crossed:
    """Cross arms, levels and replicates.

    Raises `ValueError` where two arms are the same configuration, which would count as evidence twice, where a field is
    set for all arms that no arm's method has, and where a search cannot be.
    """
    by_id: dict[str, Planned] = {}
    for panel in resolved.panels.values():
        for planned in _of_panel(resolved, panel):
            first = by_id.setdefault(planned.id, planned)
            _check_same(resolved, first, planned)
    _check_changes(resolved, by_id.values())
    declared = sorted(by_id.values(), key=lambda planned: planned.trial.replicate - resolved.shifts[planned.arm])
    without = arms_without(resolved.changes, {planned.arm: planned.trial.method_name for planned in declared})
    return Crossed(tuple(declared), with_prerequisites(declared), nested_cells(resolved, declared), without)


def _of_panel(resolved: Resolved, panel: Panel) -> Iterator[Planned]:
    for levels in itertools.product(*(resolved.factors[factor] for factor in panel.across)):
        asked = dict(zip(panel.across, levels, strict=True))
        there = resolved.base.override(asked)
        values = {factor: there.value(factor) for factor in panel.across}
        setting = {factor: value for factor, value in values.items() if value != resolved.base_levels[factor]}
        for arm in panel.arms:
            yield from _of_arm(resolved, arm, asked, setting)


def _of_arm(resolved: Resolved, arm: str, asked: Mapping[str, Any], setting: Mapping[str, Any]) -> Iterator[Planned]:
    """An arm's replicates at one combination of levels."""
    trial = trial_of_arm(arm, resolved.base, resolved.changes, {**asked, **resolved.arms[arm]})
    text = canonical(setting)
    for replicate in resolved.replicates_of(arm, setting):
        yield Planned(trial.model_copy(update={"replicate": replicate}), arm, text)


def _check_changes(resolved: Resolved, planned: Collection[Planned]) -> None:
    """Raise `ValueError` where a field of the method that is set for all arms would reach none.

    What the study and its preset set must be a field of some arm's method, what is asked for on top one of an arm that
    is to be run.
    """
    asked = resolved.request.changes or {}
    to_run = {one.trial.method_name for one in planned if resolved.request.is_to_run(one.arm, one.trial.method_name)}
    every = {own_method(own) or resolved.base.method_name for own in resolved.arms.values()}
    every |= {one.trial.method_name for one in planned}
    check_held([key for key in resolved.changes if key not in asked], every, every)
    check_held(asked, every, to_run or every)


def _check_same(resolved: Resolved, first: Planned, again: Planned) -> None:
    """Raise `ValueError` where one trial stands under two arms, or in two settings of one arm."""
    if first.arm != again.arm:
        place = again.setting if again.setting != "{}" else "the base"
        shifted = resolved.shifts[first.arm] != resolved.shifts[again.arm]
        remedy = f"shift one by {resolved.replicates} replicates" if shifted else "drop one"
        raise ValueError(f"Arms '{first.arm}' and '{again.arm}' are the same configuration at {place}: {remedy}.")
    if first.setting != again.setting:
        raise ValueError(
            f"Arm '{again.arm}' undoes the factor in {again.setting}: leave it out of panels that go across it."
        )
