"""From flags to a plan: which trials of a study are asked for, and what the results so far add to them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lnl.cli.flags import UsageError
from lnl.storage.part_names import KEPT, Kept
from lnl.storage.store import Store
from lnl.study.plan import Plan
from lnl.study.status import Status, reconcile
from lnl.trial.provenance import Current

if TYPE_CHECKING:  # imports torch
    from lnl.study.study import Study


@dataclass(frozen=True)
class Request:
    """What the flags ask of a study."""

    store: Store
    plan: Plan  # without what the results so far add to it
    arms: list[str] | None  # those to be run; None: all
    make_plan: Callable[..., Plan]  # `Study.plan` with the flags filled in
    keep: tuple[Kept, ...]  # what trials keep at their end: as study and flags ask
    rerun_unkept: bool

    def build_plan(self, *, reached: Mapping[str, int]) -> Plan:
        """Return the plan with these replicate counts for arms that continue after a look."""
        return self.make_plan(reached=reached) if reached else self.plan

    def plan_so_far(self, current: Current, record: bool = False) -> Plan:
        """Return the plan with what results so far ask for: replicates of undecided contrasts, or searched arms.

        `record`: store looks that a killed driver did not store.
        """
        if self.plan.record.looks:
            from lnl.execution import sequential

            return sequential.plan_so_far(self.build_plan, self.store, current, record)[0]
        if self.plan.search is not None:
            from lnl.search import confirm

            return confirm.confirmed(self.plan, self.store, current)
        return self.plan

    @property
    def all_arms(self) -> list[str] | None:
        """The chosen arms with those that their searches add to the plan; None: all."""
        if self.arms is None:
            return None
        return [*self.arms, *(cell.searched_arm for cell in self.plan.cells if cell.arm in self.arms)]

    def statuses(self, plan: Plan, current: Current) -> list[Status]:
        """Return how the plan's trials stand, of the chosen arms."""
        chosen = plan.of_arms(self.all_arms)
        statuses = reconcile(plan, self.store, current, keep=self.keep, rerun_unkept=self.rerun_unkept)
        return [status for status in statuses if status.planned.id in chosen]


def read_request(study: Study, options: argparse.Namespace, *, search: bool = False) -> Request:
    """Read the flags; `search`: the command searches, whether the study declares a search or not.

    Raises `UsageError` and `ValueError` where they ask for what the study does not have.
    """
    store, arms = Store(options.storage), _arms(options.arms, study)
    make = partial(
        study.plan,
        options.preset,
        changes=_changes(options.set),
        replicates=options.replicates,
        night=options.night,
        arms=arms,
        method=options.method,
    )
    looks = _looks(study, options, store, partial(make, looks=()), searches=search or study.search is not None)
    make = partial(make, looks=looks)
    plan = make()
    if options.until_decided and not plan.record.contrasts:
        raise UsageError("--until-decided has nothing to decide: declare contrasts of arms that this preset has.")
    if unknown := set(arms or ()) - set(plan.record.arms):
        raise UsageError(f"The plan has no arm '{min(unknown)}': choose from {', '.join(plan.record.arms)}.")
    if options.method is not None:
        arms = _arms_of_method(plan, arms, options.method)
    if (overrides := _search_overrides(study, arms, options, search)) is not None:
        make = partial(make, search=overrides)
        plan = make()
    keep = tuple(kind for kind in KEPT if kind in (*study.keep, *options.keep))
    if options.rerun_unkept and not keep:
        raise UsageError(f"--rerun-unkept has nothing to keep: say what with --keep, such as --keep {','.join(KEPT)}.")
    return Request(store, plan, arms, make, keep, options.rerun_unkept)


def _arms(given: Sequence[str] | None, study: Study) -> list[str] | None:
    """The arms that --arms A,B names, each time it is given: the longest names first, as these may have commas."""
    if given is None:
        return None
    arms = []
    for text in given:
        parts = text.split(",")
        while parts:
            count = next((n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in study.arms), 1)
            arms.append(",".join(parts[:count]))
            del parts[:count]
    return arms


def _arms_of_method(plan: Plan, arms: Sequence[str] | None, method: str) -> list[str]:
    """The arms of the plan, or those of `arms`, that are of this method."""
    of_method = {planned.arm for planned in plan.trials if planned.trial.method_name == method}
    chosen = [arm for arm in plan.record.arms if arm in of_method and (arms is None or arm in arms)]
    if not chosen:
        methods = sorted({planned.trial.method_name for planned in plan.trials})
        raise UsageError(f"The plan has no arm of method '{method}': there are {', '.join(methods)}.")
    return chosen


def _changes(pairs: Sequence[str]) -> dict[str, Any]:
    """--set KEY=VALUE; the value is JSON where it parses, else text."""
    changes = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise UsageError(f"--set takes KEY=VALUE, not '{pair}'.")
        try:
            changes[key] = json.loads(text)
        except json.JSONDecodeError:
            changes[key] = text
    return changes


def _looks(
    study: Study, options: argparse.Namespace, store: Store, make_fixed: Callable[[], Plan], *, searches: bool
) -> tuple[int, ...] | None:
    """The looks that the flags ask for, else the study's own, else those that an earlier run declared."""
    from lnl.execution import sequential

    _check_look_flags(options, searches)
    if options.night is not None:
        return ()
    if options.max_replicates is not None:
        return sequential.schedule(make_fixed().record.replicates, options.max_replicates)
    looks = None
    if options.replicates is None and not searches:
        preset = options.preset or "base"
        looks = study.looks_of(options.preset) or sequential.declared_before(store, study.name, preset)
    if options.until_decided and looks is None:
        raise UsageError("--until-decided needs --max-replicates N: the most replicates that a contrast may get.")
    return looks


def _check_look_flags(options: argparse.Namespace, searches: bool) -> None:
    """Raise `UsageError` for flags of looks that cannot stand together."""
    if options.max_replicates is not None and not options.until_decided:
        raise UsageError(
            "--max-replicates N belongs to --until-decided: give both, or --replicates N for a fixed number."
        )
    if options.until_decided and options.night is not None:
        raise UsageError("A night has a fixed number of replicates: leave out --until-decided, or --night.")
    if options.until_decided and searches:
        raise UsageError("A search compares arms at a fixed number of replicates: leave out --until-decided.")


def _search_overrides(
    study: Study, arms: list[str] | None, options: argparse.Namespace, search: bool
) -> dict[str, Any] | None:
    """The fields of a search that the flags ask for; None where the study's own plan is what they ask for."""
    given = {
        "suggestions": options.trials,
        "parameters": options.parameters,
        "samplers": options.sampler,
        "pruner": options.pruner,
        "seed": options.search_seed,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    if study.search is not None:
        return overrides or None
    if search:
        return {**overrides, "arms": arms} if arms else overrides
    if overrides:
        raise UsageError(f"Study {study.name} declares no search: use `lnl search {study.name} …`.")
    return None
