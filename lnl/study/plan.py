"""The plan of a study: its trials, their prerequisites, and the row that records it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lnl.space import Space
from lnl.storage.currency import Sources, sources_text
from lnl.storage.places import canonical, now, short_hash
from lnl.storage.plan_record import PlanRecord
from lnl.study.parts import Search
from lnl.trial.provenance import Current

if TYPE_CHECKING:  # imports torch
    from lnl.trial.config import Trial


@dataclass(frozen=True)
class Planned:
    """A trial and its place in a plan."""

    trial: Trial
    arm: str
    setting: str  # canonical JSON of the factor values that differ from the base
    prerequisite: bool = False  # other trials of the plan start from what it has learnt
    search: str | None = None  # name of the search that asks for it, and the number of the suggestion
    suggestion: int | None = None

    @property
    def id(self) -> str:
        return self.trial.id


@dataclass(frozen=True)
class Cell:
    """The unit of a search: one arm in one setting with one sampler."""

    name: str  # study/preset/arm_sampler, the setting, and a hash of all that makes two suggestions comparable
    arm: str
    setting: str
    sampler: str
    trial: Trial  # the arm in that setting, replicate 0
    space: Mapping[str, Space]

    @property
    def searched_arm(self) -> str:
        """The arm with the values that the search finds."""
        return f"{self.arm}_{self.sampler}"

    @property
    def place(self) -> str:
        """The name without the hash: what stays when the declaration of the search changes."""
        return self.name.rpartition("/")[0]

    def holds(self, key: str, params: Mapping[str, Any]) -> bool:
        """Whether the field is searched beside these values, the others being the arm's own."""
        conditions = self.space[key].when.items()
        values = {other: params[other] if other in params else self.trial.value(other) for other, _ in conditions}
        return all(values[other] in allowed for other, allowed in conditions)

    @property
    def default(self) -> dict[str, Any]:
        """The arm's own values of the fields that are searched there."""
        return {key: self.trial.value(key) for key in self.space if self.holds(key, {})}


@dataclass(frozen=True)
class Plan:
    """The trials to run, and the record that is stored with their results."""

    trials: tuple[Planned, ...]  # prerequisites before what starts from them
    record: PlanRecord
    search: Search | None = None
    cells: tuple[Cell, ...] = ()
    # Field of the method that is set for all arms -> the arms whose method does not have it.
    without: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def study(self) -> str:
        """The name of its study."""
        return self.record.study

    @property
    def preset(self) -> str:
        """The name of its preset; "base" for the study as declared."""
        return self.record.preset

    def of_arms(self, arms: Sequence[str] | None) -> set[str]:
        """Ids of these arms' trials (None: of all), with those that they start from."""
        by_id = {planned.id: planned.trial for planned in self.trials}
        entries = self.record.trials  # where two arms are the same, under both
        waiting = [entry.trial for entry in entries if arms is None or entry.arm in arms]
        ids = set()
        while waiting:
            ids.add(trial := waiting.pop())
            waiting += [before.id for before in by_id[trial].prerequisites.values()]
        return ids

    @cached_property
    def hash(self) -> str:
        """Names the plan: equal for equal records."""
        return short_hash(canonical(self.record.as_json()))


def with_prerequisites(declared: Sequence[Planned]) -> tuple[Planned, ...]:
    """The declared trials with their prerequisites, each once and before the trials that start from it.

    A prerequisite that is also an arm of the study keeps that arm; the others are named after their role.
    """
    arms = {planned.id: planned for planned in reversed(declared)}
    ordered: dict[str, Planned] = {}

    def add(planned: Planned) -> None:
        for role, trial in planned.trial.prerequisites.items():
            add(replace(arms.get(trial.id, Planned(trial, f"{role}: {trial.method_name}", "{}")), prerequisite=True))
        if planned.id not in ordered or planned.prerequisite:
            ordered[planned.id] = planned

    for planned in declared:
        add(planned)
    return tuple(ordered.values())


def sources_of(plan: Plan, current: Current) -> dict[str, Sources]:
    """The code and data that the plan's trials, by id, and its searches, by name, would use now."""
    trials = {planned.id: current.sources(planned.trial) for planned in plan.trials}
    return trials | {cell.name: current.sources(cell.trial) for cell in plan.cells}


def plan_row(plan: Plan, git_commit: str | None, current: Current | None = None) -> dict[str, Any]:
    """The row of table `studies`."""
    current = current or Current()
    return {
        "study": plan.study,
        "preset": plan.preset,
        "plan_hash": plan.hash,
        "plan": json.dumps(plan.record.as_json()),  # in declared order: figures and tables keep it
        "current": sources_text(sources_of(plan, current)),
        "data_remarks": json.dumps(current.remarks(planned.trial for planned in plan.trials)),
        "submitted_at": now(),
        "git_commit": git_commit,
    }
