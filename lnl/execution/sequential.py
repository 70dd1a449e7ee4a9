"""Sequential replicates: contrasts are judged at declared looks, and only undecided ones get more replicates.

`plan_so_far` is the plan that the results so far ask for.  It is a function of the declaration and of the rows alone,
so that a driver that was killed, a second one and the report all find the same.  The error over looks and family is
controlled in `analysis.verdicts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pandas as pd

from analysis import statistics
from analysis.measures import ACCURACY
from analysis.results import looks_taken, results_of_plan
from analysis.verdicts import FEWEST_REPLICATES, OPEN_VERDICTS, VERDICTS, is_futile, next_level
from lnl.storage.plan_record import read_records
from lnl.storage.store import Store, by_submission
from lnl.storage.tables import tell_left_out
from lnl.study.plan import Plan, sources_of
from lnl.trial.provenance import Current

BLOCK = 2  # replicates from one look to the next
JUDGED = ("arm", "against", "metric", "looked", "p_holm", "p_equivalence_holm", "verdict")  # what makes a look another


def schedule(first: int, last: int) -> tuple[int, ...]:
    """Looks in blocks of `BLOCK` replicates, the last one included.  Raises `ValueError` where there is no room."""
    first = max(first, FEWEST_REPLICATES)
    if last <= first:
        raise ValueError(
            f"--max-replicates {last} leaves no room after the first look at {first} replicates: give more."
        )
    return (*range(first, last, BLOCK), last)


class BuildPlan(Protocol):
    """The plan where arms that continue after a look have these replicate counts in the base setting."""

    def __call__(self, *, reached: Mapping[str, int]) -> Plan: ...


def plan_so_far(
    build_plan: BuildPlan, store: Store, current: Current, record: bool = False
) -> tuple[Plan, pd.DataFrame]:
    """The plan with as many replicates as the results so far ask for, and the contrasts as they stand.

    `record`: store every look on the way as an event, unless it is stored already: an earlier driver may have been
    killed before it could.
    """
    reached: dict[str, int] = {}
    while True:
        plan = build_plan(reached=reached)
        contrasts = results_of_plan(store, plan.record, plan.hash, sources_of(plan, current)).contrasts()
        if record:
            _record(store, plan, contrasts)
        further = _further(contrasts, plan.record.looks, reached)
        if further == reached:
            return plan, contrasts
        reached = further


def _further(contrasts: pd.DataFrame, looks: Sequence[int], reached: Mapping[str, int]) -> dict[str, int]:
    """The replicate counts, with those of the arms of undecided contrasts raised to the next look."""
    further, level = dict(reached), next_level(contrasts, looks)
    for row in statistics.records(contrasts):
        later = [look for look in looks if look > row["looked"]]
        if row["verdict"] in OPEN_VERDICTS and later and not is_futile(row, looks[-1], level):
            for arm in (row["arm"], row["against"]):
                further[arm] = max(further.get(arm, looks[0]), later[0])
    return further


def look(build_plan: BuildPlan, plan: Plan, store: Store, current: Current) -> tuple[str, Plan | None]:
    """Judge the results of a plan that has run: what they show, in words, and the plan that goes on, if one does."""
    results = results_of_plan(store, plan.record, plan.hash, sources_of(plan, current))
    contrasts = results.contrasts()
    further, _ = plan_so_far(build_plan, store, current, record=True)
    sentence = "No look yet"
    if contrasts["looked"].notna().any():
        counts = contrasts["verdict"].value_counts()
        shown = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)
        sentence = f"Look at {contrasts['looked'].max():g} replicates: {shown}"
    if further.hash == plan.hash:
        waiting = sorted(set(results.missing.loc[results.missing["status"].isin(["not run", "stale"]), "arm"]))
        rest = f"trials of {', '.join(waiting)} have not run" if waiting else "no further look"
        return f"{sentence}; {rest}.", None
    more = sorted(_growing(plan, further))
    return f"{sentence}; more replicates for {', '.join(more)}.", further


def _growing(plan: Plan, further: Plan) -> set[str]:
    before = {entry.trial for entry in plan.record.trials}
    return {entry.arm for entry in further.record.trials if entry.trial not in before}


def _record(store: Store, plan: Plan, contrasts: pd.DataFrame) -> None:
    """Store what a look showed as an event, unless there was no look, or the same is stored already."""
    named = [
        "arm",
        "against",
        "metric",
        "n",
        "looked",
        "difference",
        "low",
        "high",
        "p_holm",
        "p_equivalence_holm",
        "verdict",
    ]
    rows: list[dict[str, Any]] = [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in statistics.records(contrasts[named])
    ]
    before = [_judgement(look["contrasts"]) for look in looks_taken(store, plan.study, plan.preset)]
    if contrasts["looked"].notna().any() and _judgement(rows) not in before:
        store.write_event(plan.study, "looked", preset=plan.preset, plan=plan.hash, **_declared(plan), contrasts=rows)


def _declared(plan: Plan) -> dict[str, Any]:
    """What must not change after the first look."""
    record = plan.record
    family = [contrast.model_dump(mode="json") for contrast in record.contrasts]
    return {"looks": list(record.looks), "selection": record.selection, "family": family}


def _judgement(contrasts: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """What distinguishes one look from another; earlier versions wrote "undecided" for "no verdict", and no metric."""
    rows = [{"metric": ACCURACY, **row} for row in contrasts]
    return [["undecided" if row[name] == "no verdict" else row[name] for name in JUDGED] for row in rows]


def check_looks(store: Store, plan: Plan) -> None:
    """Raise `ValueError` where results were judged at other looks, or contrasts: their error control would be void."""
    if plan.record.night:  # other replicates
        return
    for before in looks_taken(store, plan.study, plan.preset):
        looks = tuple(before["looks"])
        if looks != plan.record.looks:
            by_flags = len(looks) > 1 and schedule(looks[0], looks[-1]) == looks
            flags = f"--replicates {looks[0]} --until-decided --max-replicates {looks[-1]}"
            again = f"use {flags}" if by_flags else f"declare looks={looks}"
            raise ValueError(
                f"Results of {plan.study} (preset {plan.preset}) were already judged at the declared looks "
                f"{', '.join(map(str, looks))}, and another number of replicates would void their error control: "
                f"{again}, or use another --storage."
            )
        if any(before[name] != value for name, value in _declared(plan).items()):
            raise ValueError(
                f"Results of {plan.study} (preset {plan.preset}) were already judged under other contrasts or another "
                "selection rule, and a change would void their error control: declare what was declared, or use "
                "another --storage."
            )


def declared_before(store: Store, study: str, preset: str) -> tuple[int, ...] | None:
    """The looks of the plan that was submitted last, nights aside; None where it has none."""
    plans, broken = store.read("studies", filters=[("study", "==", study), ("preset", "==", preset)])
    tell_left_out(broken)
    own = [record for record in read_records(by_submission(plans)) if not record.night]
    return own[-1].looks or None if own else None
