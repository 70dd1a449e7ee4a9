"""How a study stands: its trials, searches and contrasts, for a terminal and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from statistics import fmean
from typing import Any

from lnl.cli.progress import Row, arm_row, duration
from lnl.storage.currency import BY_CODE
from lnl.storage.store import Store
from lnl.study.plan import Plan, sources_of
from lnl.study.status import Status, by_state
from lnl.trial.provenance import Current

PILOT = 3  # replicates whose spread is better than a guess


def is_complete(plan: Plan, arms: Collection[str] | None, statuses: Sequence[Status]) -> bool:
    """Whether all of these trials are done, and the searches (of these arms, if given) have spent their budgets."""
    found = all(cell["finished"] == plan.search.suggestions for cell in searches(plan, arms) if plan.search)
    return found and all(status.state in ("done", "stale") for status in statuses)


def as_json(plan: Plan, statuses: Sequence[Status], store: Store, current: Current) -> dict[str, Any]:
    """What `--json` prints of a plan: JSON-able."""
    return {
        "study": plan.study,
        "preset": plan.preset,
        "night": plan.record["night"],
        "plan": plan.hash,
        "counts": by_state(statuses),
        "search": plan.record["search"],
        "trials": [
            {
                "trial": s.planned.id,
                "arm": s.planned.arm,
                "setting": json.loads(s.planned.setting),
                "replicate": s.planned.trial.replicate,
                "state": s.state,
                "changed": s.changed or None,
                "diverged": s.diverged,
                "accuracy": s.accuracy,
                "seconds": s.seconds,
            }
            for s in statuses
        ],
        "contrasts": contrasts(plan, store, current),
    }


def print_plan(plan: Plan, statuses: Sequence[Status]) -> None:
    """A line for each trial with its state and its measured or expected cost, then their sum."""
    width = max((len(status.planned.arm) for status in statuses), default=0)
    for status in statuses:
        planned = status.planned
        setting = " ".join(f"{key}={value}" for key, value in json.loads(planned.setting).items())
        cost = f"{status.seconds:7.1f} s" if status.seconds is not None else "        ?"
        name = f"{planned.id}  {planned.arm:{width}}  replicate {planned.trial.replicate}"
        why = f"(stale: the {status.changed} changed)" if status.changed else ""
        print(f"{status.state:8}{cost}  {name}  {setting}  {why}".rstrip())
    night = f", night {plan.record['night']}" if plan.record["night"] else ""
    print(f"{plan.study}, preset {plan.preset}{night}, plan {plan.hash}: {totals(statuses)}")


def print_summary(plan: Plan, statuses: Sequence[Status], store: Store, current: Current) -> None:
    """How many trials are in which state, and the verdicts."""
    print(totals(statuses))
    print_verdicts(contrasts(plan, store, current), plan.record["looks"])


def contrasts(plan: Plan, store: Store, current: Current) -> list[dict[str, Any]]:
    """The declared contrasts as they stand, JSON-able."""
    from analysis import statistics
    from analysis.results import results_of_plan

    if not plan.record["contrasts"]:
        return []
    frame = results_of_plan(store, dict(plan.record), plan.hash, sources_of(plan, current)).contrasts()
    return [{name: _plain(value) for name, value in row.items()} for row in statistics.records(frame)]


def _plain(value: Any) -> Any:
    """As JSON has it: null for what is not known, ISO's text for a time."""
    if isinstance(value, datetime):  # that of pandas has one that is none
        return value.isoformat() if value == value else None
    return value if isinstance(value, str) or math.isfinite(value) else None


def print_verdicts(contrasts: Sequence[dict[str, Any]], looks: Sequence[int]) -> None:
    """A line for each declared contrast."""
    from analysis.verdicts import (
        declared_late,
    )

    last = looks[-1] if looks else None  # after which none gets more
    width = max((len(f"{row['arm']} against {row['against']}") for row in contrasts), default=0)
    for row in contrasts:
        more = f"about {row['more']:g} more replicates" if row["more"] else ""
        text = row["why"] or (more if last is None or row["looked"] != last else "")
        if row["difference"] is not None:
            n = f"n = {row['n']}" + ("" if row["paired"] else f" and {row['n_against']}, unpaired")
            between = "" if row["low"] is None else f" [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
            text = f"{100 * row['difference']:+.2f}{between} points, {n}" + (f"; {text}" if text else "")
        text = "; ".join(part for part in (text, declared_late(row)) if part)
        print(f"{row['verdict']:10} {row['arm'] + ' against ' + row['against']:{width}}  {text}")


def print_detectable(plan: Plan, store: Store, current: Current) -> None:
    """What the planned replicates can show of each declared contrast, from the spread of results so far."""
    from analysis.verdicts import (
        ALPHA,
        ASSUMED_DEVIATION,
        FEWEST_REPLICATES,
        MOST_REPLICATES,
        POWER,
        detectable_effect,
        level_per_look,
        replicates_needed,
    )

    declared, looks = contrasts(plan, store, current), plan.record["looks"]
    if not declared:
        return
    count = (looks or [plan.record["replicates"]])[-1]
    asked, family = (f"{n} {word}{'s' * (n != 1)}" for n, word in ((count, "replicate"), (len(declared), "contrast")))
    if count < FEWEST_REPLICATES:
        least = f"{FEWEST_REPLICATES} (--seeds {FEWEST_REPLICATES})"
        print(f"No verdict on {family} comes of {asked}: ask for at least {least}.")
        return
    alpha = ALPHA / len(declared)
    alpha = level_per_look(alpha, looks) if looks else alpha
    at_most = "up to " if looks else ""
    print(f"Differences that {at_most}{asked} find with a chance of {POWER:.0%}, at 5 % over {family}:")
    width = max(len(f"{row['arm']} against {row['against']}") for row in declared)
    for row in declared:
        pilot = row["deviation"] is not None and row["n"] >= PILOT
        spread = row["deviation"] if pilot else ASSUMED_DEVIATION
        found = detectable_effect(spread, count, alpha)
        source = f"spread {100 * spread:.2f}, " + (f"of {row['n']} replicates" if pilot else "assumed: no pilot yet")
        text = f"{100 * found:.2f} points ({source})"
        if smallest := row["smallest_effect"]:
            needed = replicates_needed(smallest, spread, 0.0, alpha)
            finders = f"{needed:g}" if needed <= MOST_REPLICATES else f"more than {MOST_REPLICATES:,}"
            enough = "enough" if needed <= count else f"which {finders} replicates find"
            text += f"; declared to matter from {100 * smallest:g}: {enough}"
        print(f"  {row['arm'] + ' against ' + row['against']:{width}}  {text}")


def totals(statuses: Sequence[Status]) -> str:
    """How many trials are in which state, and how much work is left."""
    counts = {state: count for state, count in by_state(statuses).items() if count}
    waiting = [status.seconds for status in statuses if status.state in ("missing", "failed")]
    text = f"{len(statuses)} trials: " + (", ".join(f"{count} {state}" for state, count in counts.items()) or "none")
    if lost := sum(status.diverged for status in statuses):
        text += f"; {lost} diverged, counted as chance"
    if waiting and (known := [seconds for seconds in waiting if seconds is not None]):
        device = next((status.device for status in statuses if status.device), None)
        text += f"; about {duration(fmean(known) * len(waiting))} of work left, one trial at a time"
        text += f" on {device}" if device else ""
    if reasons := Counter(status.changed for status in statuses if status.changed):
        changed = ", ".join(f"the {what} of {count}" for what, count in sorted(reasons.items()))
        text += f" (stale: {changed} changed since; --rerun-stale runs them again"
        left_out = any(what not in BY_CODE for what in reasons)
        text += "; results on other data are left out until then)" if left_out else ")"
    return text + "."


def arm_rows(statuses: Sequence[Status]) -> list[Row]:
    """A line for each arm, see `lnl.cli.progress.arm_table`."""
    by_arm: dict[str, list[Status]] = defaultdict(list)
    for status in statuses:
        by_arm[status.planned.arm].append(status)
    rows = []
    for arm, mine in by_arm.items():
        counts = Counter(status.state for status in mine)
        scores = [s.accuracy for s in mine if s.planned.setting == "{}" and s.accuracy is not None]
        done, diverged = counts["done"] + counts["stale"], sum(status.diverged for status in mine)
        rows.append(arm_row(arm, done, len(mine), diverged, counts["running"], counts["failed"], scores))
    return rows


def searches(plan: Plan, arms: Collection[str] | None) -> list[dict[str, Any]]:
    """The plan's searches, of the chosen arms."""
    cells = plan.record["search"]["cells"] if plan.search else []
    return [cell for cell in cells if arms is None or cell["arm"] in arms]


def print_searches(plan: Plan, arms: Collection[str] | None, statuses: Sequence[Status]) -> None:
    """A line for each search, and what is left of all, estimated from the arms' own trials."""
    cost = {status.planned.arm: status.seconds for status in statuses if status.seconds is not None}
    left, unknown = 0.0, False
    for cell in searches(plan, arms):
        budget = plan.record["search"]["suggestions"]
        place = " ".join([cell["searched_arm"], *(f"{key}={value}" for key, value in cell["setting"].items())])
        found = f"over {', '.join(cell['space'])}"
        if cell["winner"] is not None:
            values = ", ".join(f"{key}={_short(value)}" for key, value in cell["winner"]["params"].items())
            found = f"best: suggestion {cell['winner']['number']}, {values}"
        print(f"search  {place}: {cell['finished']} of {budget} suggestions, {found}")
        trials = (budget - cell["finished"]) * plan.record["search"]["replicates"]
        unknown |= trials > 0 and cell["arm"] not in cost
        left += trials * cost.get(cell["arm"], 0.0)
    if left:
        rest = ", and that of arms without a timed trial" if unknown else ""
        print(f"Work left in the searches: about {duration(left)}, one trial at a time{rest}.")
    elif unknown:
        print("Work left in the searches: not known before a trial of their arms has been timed.")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
