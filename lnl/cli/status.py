"""The state of a study: its trials, searches and contrasts, for a terminal and as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from statistics import fmean
from typing import Any

from lnl.cli.progress import Row, arm_row, duration
from lnl.storage.currency import BY_CODE
from lnl.storage.plan_record import CellRecord
from lnl.storage.store import Store
from lnl.study.plan import Plan, sources_of
from lnl.study.status import Status, by_state
from lnl.trial.provenance import Current

MOST_NAMED_ARMS = 6  # in a sentence
PILOT = 3  # replicates from which a measured spread is used in place of an assumed one


def is_complete(plan: Plan, arms: Collection[str] | None, statuses: Sequence[Status]) -> bool:
    """Return whether these trials are done, and the searches (of these arms, if given) have spent their budgets."""
    searched = all(cell.finished == plan.search.suggestions for cell in searches(plan, arms) if plan.search)
    return searched and all(status.state in ("done", "stale") for status in statuses)


def as_json(plan: Plan, statuses: Sequence[Status], store: Store, current: Current) -> dict[str, Any]:
    """Return what `--json` prints of a plan."""
    return {
        "study": plan.study,
        "preset": plan.preset,
        "night": plan.record.night,
        "plan": plan.hash,
        "counts": by_state(statuses),
        "search": plan.record.search and plan.record.search.model_dump(mode="json"),
        "trials": [
            {
                "trial": status.planned.id,
                "arm": status.planned.arm,
                "setting": json.loads(status.planned.setting),
                "replicate": status.planned.trial.replicate,
                "state": status.state,
                "changed": status.changed or None,
                "lacks": list(status.lacks),
                "diverged": status.diverged,
                "accuracy": status.accuracy,
                "seconds": status.seconds,
            }
            for status in statuses
        ],
        "contrasts": contrasts(plan, store, current),
    }


def print_json(
    plan: Plan,
    statuses: Sequence[Status],
    store: Store,
    current: Current,
    more: Mapping[str, str | None] | None = None,
) -> None:
    """Print `as_json`; `more`: further fields, of a run."""
    print(json.dumps({**as_json(plan, statuses, store, current), **(more or {})}, indent=1))


def print_plan(plan: Plan, statuses: Sequence[Status]) -> None:
    """Print a line for each trial with its state and its measured or expected cost, then their sum."""
    from analysis.words import listed

    width = max((len(status.planned.arm) for status in statuses), default=0)
    for status in statuses:
        planned = status.planned
        setting = " ".join(f"{key}={value}" for key, value in json.loads(planned.setting).items())
        cost = f"{status.seconds:7.1f} s" if status.seconds is not None else "        ?"
        name = f"{planned.id}  {planned.arm:{width}}  replicate {planned.trial.replicate}"
        change = f"(stale: the {status.changed} changed)" if status.changed else ""
        lack = f"(without {listed(status.lacks)})" if status.lacks else ""
        print(f"{status.state:8}{cost}  {name}  {setting}  {change}{lack}".rstrip())
    night = f", night {plan.record.night}" if plan.record.night else ""
    print(f"{plan.study}, preset {plan.preset}{night}, plan {plan.hash}: {totals(statuses)}")
    for sentence in _without_sentences(plan, {status.planned.arm for status in statuses}):
        print(sentence)


def _without_sentences(plan: Plan, chosen: Collection[str]) -> Iterator[str]:
    """Yield which of the chosen arms lack what is set for all arms: a sentence for arms that lack the same."""
    from analysis.words import listed

    fields: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for field, arms in plan.without.items():
        fields[tuple(arm for arm in arms if arm in chosen)].append(field)
    for arms, lacking in fields.items():
        named = [*arms[:MOST_NAMED_ARMS], *([f"{more} more"] if (more := len(arms) - MOST_NAMED_ARMS) > 0 else [])]
        left = "the arm {} is left as it is" if len(arms) == 1 else "the arms {} are left as they are"
        if arms:
            yield f"Not every method has {listed(lacking)}: {left.format(listed(named))}."


def print_summary(plan: Plan, statuses: Sequence[Status], store: Store, current: Current) -> None:
    """Print how many trials are in which state, and the verdicts."""
    print(totals(statuses))
    print_verdicts(contrasts(plan, store, current), plan.record.looks)


def contrasts(plan: Plan, store: Store, current: Current) -> list[dict[str, Any]]:
    """Return the declared contrasts as results so far judge them, as plain data."""
    from analysis import statistics
    from analysis.results import results_of_plan

    if not plan.record.contrasts:
        return []
    frame = results_of_plan(store, plan.record, plan.hash, sources_of(plan, current)).contrasts()
    return [{name: _plain(value) for name, value in row.items()} for row in statistics.records(frame)]


def _plain(value: Any) -> Any:
    """The value as JSON has it: null where it is not known, ISO's text for a time."""
    if isinstance(value, datetime):  # pandas has a time that stands for none, and is not equal to itself
        return value.isoformat() if value == value else None
    return value if isinstance(value, str) or math.isfinite(value) else None


def print_verdicts(contrasts: Sequence[dict[str, Any]], looks: Sequence[int]) -> None:
    """Print a line for each declared contrast."""
    from analysis.verdicts import declared_late

    last_look = looks[-1] if looks else None
    width = max(map(len, map(_name, contrasts)), default=0)
    for contrast in contrasts:
        parts = (_difference_text(contrast, last_look), declared_late(contrast))
        text = "; ".join(part for part in parts if part)
        print(f"{contrast['verdict']:10} {_name(contrast):{width}}  {text}")


def _name(contrast: Mapping[str, Any]) -> str:
    from analysis.measures import ACCURACY
    from analysis.words import measure_name

    on = "" if contrast["metric"] == ACCURACY else f" in {measure_name(contrast['metric'])}"
    return f"{contrast['arm']} against {contrast['against']}{on}"


def _difference_text(contrast: Mapping[str, Any], last_look: int | None) -> str:
    """The difference with its interval and number of replicates, and what stands in the way of a verdict."""
    from analysis.statistics import is_too_wide
    from analysis.words import unit_name

    metric, reason = str(contrast["metric"]), str(contrast["why"] or "")
    at_last_look = last_look is not None and contrast["looked"] == last_look
    if not reason and contrast["more"] and not at_last_look:  # after the last look none gets more
        reason = f"about {contrast['more']:g} more replicates"
    if contrast["difference"] is None:
        return reason
    low, high = contrast["low"], contrast["high"]
    has_interval = low is not None and not is_too_wide(low, high, metric)
    interval = f" [{_number(low, metric, '+')}, {_number(high, metric, '+')}]" if has_interval else ""
    unpaired = "" if contrast["paired"] else f" and {contrast['n_against']}, unpaired"
    difference = _number(contrast["difference"], metric, "+")
    text = f"{difference}{interval}{unit_name(metric)}, n = {contrast['n']}{unpaired}"
    return f"{text}; {reason}" if reason else text


def _number(value: float, metric: str, sign: str = "") -> str:
    """A difference in a metric: of shares in percentage points."""
    from analysis import measures

    return f"{measures.scale(metric) * value:{sign}.{2 if measures.is_share(metric) else 4}f}"


def print_detectable(plan: Plan, store: Store, current: Current) -> None:
    """Print what the planned replicates can show of each declared contrast, from the spread of results so far."""
    from analysis.verdicts import ALPHA, FEWEST_REPLICATES, POWER, level_per_look

    declared, looks = contrasts(plan, store, current), plan.record.looks
    if not declared:
        return
    count = (looks or [plan.record.replicates])[-1]
    replicates, family = _count(count, "replicate"), _count(len(declared), "contrast")
    if count < FEWEST_REPLICATES:
        least = f"{FEWEST_REPLICATES} (--replicates {FEWEST_REPLICATES})"
        print(f"{replicates} cannot give a verdict on {family}: ask for at least {least}.")
        return
    alpha = ALPHA / len(declared)
    alpha = level_per_look(alpha, looks) if looks else alpha
    at_most = "up to " if looks else ""
    print(f"Differences that {at_most}{replicates} find with a chance of {POWER:.0%}, at 5 % over {family}:")
    names: dict[str, list[str]] = defaultdict(list)
    for contrast in declared:
        names[_detectable_text(contrast, count, alpha)].append(_name(contrast))
    lines = {_joined(of_text, len(declared)): text for text, of_text in names.items()}
    width = max(map(len, lines))
    for label, text in lines.items():
        print(f"  {label:{width}}  {text}")


def _joined(names: Sequence[str], declared: int) -> str:
    """A label of contrasts of which the same is to be said."""
    if len(names) == 1:
        return names[0]
    return f"{declared} contrasts" if len(names) == declared else f"{names[0]} and {len(names) - 1} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _detectable_text(contrast: Mapping[str, Any], count: int, alpha: float) -> str:
    """The smallest difference that this many replicates find, and whether that is enough for the declared one."""
    from analysis import measures
    from analysis.measures import ACCURACY
    from analysis.verdicts import ASSUMED_DEVIATION, MOST_REPLICATES, detectable_effect, replicates_needed
    from analysis.words import unit_name

    metric = contrast["metric"]
    is_measured = contrast["deviation"] is not None and contrast["n"] >= PILOT
    if not is_measured and metric != ACCURACY:
        return f"not known before {PILOT} replicates have been trained: no spread is assumed of this metric"
    spread = contrast["deviation"] if is_measured else ASSUMED_DEVIATION
    source = f"of {contrast['n']} replicates" if is_measured else "assumed: no pilot yet"
    detectable = detectable_effect(spread, count, alpha)
    text = f"{_number(detectable, metric)}{unit_name(metric)} (spread {_number(spread, metric)}, {source})"
    if smallest := contrast["smallest_effect"]:
        needed = replicates_needed(smallest, spread, 0.0, alpha)
        shown = f"{needed:g}" if needed <= MOST_REPLICATES else f"more than {MOST_REPLICATES:,}"
        enough = "enough" if needed <= count else f"which {shown} replicates find"
        text += f"; declared to matter from {measures.scale(metric) * smallest:g}: {enough}"
    return text


def totals(statuses: Sequence[Status]) -> str:
    """Return how many trials are in which state, and how much work is left."""
    counts = ", ".join(f"{count} {state}" for state, count in by_state(statuses).items() if count)
    text = f"{len(statuses)} trials: {counts or 'none'}"
    if diverged := sum(status.diverged for status in statuses):
        text += f"; {diverged} diverged, counted as chance"
    return f"{text}{_work_left(statuses)}{_stale_text(statuses)}.{_unkept_sentence(statuses)}"


def _work_left(statuses: Sequence[Status]) -> str:
    """The time that missing and failed trials will take, from those with an estimate."""
    waiting = [status.seconds for status in statuses if status.state in ("missing", "failed")]
    estimated = [seconds for seconds in waiting if seconds is not None]
    if not estimated:
        return ""
    device = next((status.device for status in statuses if status.device), None)
    on_device = f" on {device}" if device else ""
    return f"; about {duration(fmean(estimated) * len(waiting))} of work left, one trial at a time{on_device}"


def _stale_text(statuses: Sequence[Status]) -> str:
    """What has changed since stale trials ran, and what to do about it."""
    changes = Counter(status.changed for status in statuses if status.changed)
    if not changes:
        return ""
    changed = ", ".join(f"the {what} of {count}" for what, count in sorted(changes.items()))
    left_out = any(what not in BY_CODE for what in changes)
    more = "; results on other data are left out until then" if left_out else ""
    return f" (stale: {changed} changed since; --rerun-stale runs them again{more})"


def _unkept_sentence(statuses: Sequence[Status]) -> str:
    """Which trials are done without what they are to keep by now, and what to do about it."""
    from analysis.words import counted, listed, plural

    lacking = [status for status in statuses if status.lacks]
    if not lacking:
        return ""
    kinds = dict.fromkeys(kind for status in lacking for kind in status.lacks)
    arms = list(dict.fromkeys(status.planned.arm for status in lacking))
    return (
        f" {counted(len(lacking), 'trial')} ({plural('arm', len(arms))} {listed(arms)}) finished without keeping "
        f"{listed(kinds)}: --rerun-unkept trains them again."
    )


def tell_missing_data(statuses: Sequence[Status], current: Current) -> None:
    """Print, on standard error, which data sets are not here, so that results cannot be checked against them."""
    for name in current.missing_data(status.planned.trial for status in statuses if status.state == "done"):
        print(f"The data set {name} is not on this machine: its results are not checked against it.", file=sys.stderr)


def tell_data_remarks(statuses: Sequence[Status], current: Current) -> None:
    """Print, on standard error, what was odd about the images of the data sets when they were read."""
    for name, remarks in current.remarks(status.planned.trial for status in statuses).items():
        print(f"{name}: {' '.join(remarks)}", file=sys.stderr)


def arm_rows(statuses: Sequence[Status]) -> list[Row]:
    """Return a row for each arm, see `lnl.cli.progress.arm_table`."""
    by_arm: dict[str, list[Status]] = defaultdict(list)
    for status in statuses:
        by_arm[status.planned.arm].append(status)
    rows = []
    for arm, of_arm in by_arm.items():
        counts = Counter(status.state for status in of_arm)
        scores = [s.accuracy for s in of_arm if s.planned.setting == "{}" and s.accuracy is not None]
        done, diverged = counts["done"] + counts["stale"], sum(status.diverged for status in of_arm)
        rows.append(arm_row(arm, done, len(of_arm), diverged, counts["running"], counts["failed"], scores))
    return rows


def searches(plan: Plan, arms: Collection[str] | None) -> list[CellRecord]:
    """Return the plan's searches, of the chosen arms (None: of all)."""
    return [cell for cell in plan.record.cells if arms is None or cell.arm in arms]


def print_searches(plan: Plan, arms: Collection[str] | None, statuses: Sequence[Status]) -> None:
    """Print a line for each search, and the work left in all of them, estimated from the arms' own trials."""
    cost = {status.planned.arm: status.seconds for status in statuses if status.seconds is not None}
    left, unknown = 0.0, False
    for cell in searches(plan, arms):
        search = plan.record.require_search()
        print(f"search  {_search_text(cell, search.suggestions)}")
        trials = (search.suggestions - cell.finished) * search.replicates
        unknown |= trials > 0 and cell.arm not in cost
        left += trials * cost.get(cell.arm, 0.0)
    if left:
        rest = ", and that of arms without a timed trial" if unknown else ""
        print(f"Work left in the searches: about {duration(left)}, one trial at a time{rest}.")
    elif unknown:
        print("Work left in the searches: not known before a trial of their arms has been timed.")


def _search_text(cell: CellRecord, budget: int) -> str:
    name = " ".join([cell.searched_arm, *(f"{key}={value}" for key, value in cell.setting.items())])
    outcome = f"over {', '.join(cell.space)}"
    if cell.winner is not None:
        values = ", ".join(f"{key}={_short(value)}" for key, value in cell.winner.params.items())
        outcome = f"best: suggestion {cell.winner.number}, {values}"
    return f"{name}: {cell.finished} of {budget} suggestions, {outcome}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
