"""Commands of a study: plan, run, status, verdicts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lnl.cli import status as cli_status
from lnl.cli.analysis_commands import _draw_report, _relative, _show
from lnl.cli.flags import COMPLETE, ERROR, INCOMPLETE, UsageError
from lnl.cli.logs_command import _logs_command
from lnl.cli.progress import Progress, SearchProgress, arm_table
from lnl.execution import trackers
from lnl.execution.interfaces import Track
from lnl.execution.job import Settings
from lnl.execution.packing import Budget
from lnl.storage.store import Store
from lnl.study import checks
from lnl.study.plan import Plan, Planned
from lnl.study.status import reconcile
from lnl.study.study import Study
from lnl.system import machine
from lnl.trial.provenance import Current


def _arms(given: Sequence[str] | None, study: Study) -> list[str] | None:
    """The arms that --arms A,B names, each time it is given: the longest names first, as these may have commas."""
    if given is None:
        return None
    chosen = []
    for text in given:
        parts = text.split(",")
        while parts:
            count = next((n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in study.arms), 1)
            chosen.append(",".join(parts[:count]))
            del parts[:count]
    return chosen


def _study_command(study: Study, options: argparse.Namespace, command: str) -> int:
    store = Store(options.storage)
    options.arms = _arms(options.arms, study)
    looks = _looks(study, options, store, searches=command == "search" or study.search is not None)
    asked = {
        "changes": _changes(options.set),
        "replicates": options.seeds,
        "looks": looks,
        "night": options.night,
        "arms": options.arms,
        "method": options.method,
    }
    plan = study.plan(options.preset, **asked)
    if options.until_decided and not plan.record["contrasts"]:
        raise UsageError("--until-decided has nothing to decide: declare contrasts of arms that this preset has.")
    if unknown := set(options.arms or ()) - set(plan.record["arms"]):
        raise UsageError(f"The plan has no arm '{min(unknown)}': choose from {', '.join(plan.record['arms'])}.")
    if options.method is not None:
        mine = {planned.arm for planned in plan.trials if planned.trial.method_name == options.method}
        options.arms = [arm for arm in plan.record["arms"] if arm in mine & set(options.arms or mine)]
        if not options.arms:
            there = sorted({planned.trial.method_name for planned in plan.trials})
            raise UsageError(f"The plan has no arm of method '{options.method}': there are {', '.join(there)}.")
    wishes = _search_wishes(study, options, command)

    def make(reached: Mapping[str, int] | None = None) -> Plan:
        """The plan, where arms that go on to later looks have these replicates."""
        if wishes is None and not reached:
            return plan
        return study.plan(options.preset, **asked, reached=reached, search=wishes)

    if command in ("run", "search"):
        copies = {"tensorboard": options.tensorboard, "wandb": options.wandb, "mlflow": options.mlflow}
        with trackers.following(store.root, partial(print, file=sys.stderr), **copies) as track:
            return _run(make, store, options, track)
    current = Current(options.data)
    plan = _as_it_stands(make, store, current, options)
    chosen = plan.of_arms(options.arms)
    statuses = [status for status in reconcile(plan, store, current) if status.planned.id in chosen]
    if command == "plan":
        todo = [status.planned for status in statuses if status.state not in ("done", "stale")]
        checks.check(todo, options.data, read=False)
    if options.json:
        print(json.dumps(cli_status.as_json(plan, statuses, store, current), indent=1))
    elif command == "plan":
        cli_status.print_plan(plan, statuses)
        cli_status.print_detectable(plan, store, current)
    else:
        _show(arm_table(cli_status.arm_rows(statuses), plan.record["selection"]))
        cli_status.print_summary(plan, statuses, store, current)
    for name in current.missing_data(status.planned.trial for status in statuses if status.state == "done"):
        print(f"The data set {name} is not on this machine: its results are not checked against it.", file=sys.stderr)
    if not options.json:
        cli_status.print_searches(plan, options.arms, statuses)
    return COMPLETE if command == "plan" or cli_status.is_complete(plan, options.arms, statuses) else INCOMPLETE


def _search_wishes(study: Study, options: argparse.Namespace, command: str) -> dict[str, Any] | None:
    """The fields of a search that the flags ask for; None where the study's own plan is what they ask for."""
    given = {
        "suggestions": options.trials,
        "parameters": options.parameters,
        "samplers": options.sampler,
        "pruner": options.pruner,
        "seed": options.search_seed,
    }
    wishes = {name: value for name, value in given.items() if value is not None}
    if study.search is not None:
        return wishes or None
    if command == "search":
        return {**wishes, "arms": options.arms} if options.arms else wishes
    if wishes:
        raise UsageError(f"Study {study.name} declares no search: use `lnl search {study.name} …`.")
    return None


def _looks(study: Study, options: argparse.Namespace, store: Store, searches: bool) -> tuple[int, ...] | None:
    """The looks that the flags ask for, else the study's own, else those that an earlier run declared."""
    from lnl.execution import sequential

    if options.max_seeds is not None and not options.until_decided:
        raise UsageError("--max-seeds N belongs to --until-decided: give both, or --seeds N for a fixed number.")
    if options.night is not None:
        if options.until_decided:
            raise UsageError("A night has a fixed number of replicates: leave out --until-decided, or --night.")
        return ()
    if options.until_decided and searches:
        raise UsageError("A search compares arms at a fixed number of replicates: leave out --until-decided.")
    if options.max_seeds is not None:
        asked = {"changes": _changes(options.set), "arms": options.arms, "method": options.method}
        fixed = study.plan(options.preset, **asked, replicates=options.seeds, looks=())
        return sequential.schedule(fixed.record["replicates"], options.max_seeds)
    looks = None
    if options.seeds is None and not searches:
        looks = study.looks_of(options.preset) or sequential.declared_before(
            store, study.name, options.preset or "base"
        )
    if options.until_decided and looks is None:
        raise UsageError("--until-decided needs --max-seeds N: the most replicates that a contrast may get.")
    return looks


def _as_it_stands(
    make: Callable[..., Plan], store: Store, current: Current, options: argparse.Namespace, record: bool = False
) -> Plan:
    """The plan with what results so far ask for: replicates of undecided contrasts, or searched arms.

    `record`: keep looks that no driver lived to keep.
    """
    plan = make()
    if not plan.record["looks"]:
        return _confirmed(plan, store, current, options)
    from lnl.execution import sequential

    return sequential.grown(make, store, current, record)[0]


def _confirmed(plan: Plan, store: Store, current: Current, options: argparse.Namespace) -> Plan:
    """The plan with the searched arms that stand by now; `--arms a` means these, too."""
    if plan.search is None:
        return plan
    from lnl.search import confirm

    if options.arms:
        asked = set(options.arms)
        options.arms = [*options.arms, *(cell.searched_arm for cell in plan.cells if cell.arm in asked)]
    return confirm.confirmed(plan, store, current)


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


def _run(make: Callable[..., Plan], store: Store, options: argparse.Namespace, track: Track) -> int:
    """`track`: makes a display one that trackers follow."""
    from lnl.execution import sequential

    plan = make()
    sequential.check_looks(store, plan)
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address
    from lnl.execution import job, packing, ray_environment, runner

    address = ray_environment.address()
    if options.cpus and address != "local":
        raise UsageError(f"--cpus is of a Ray of our own, and the cluster '{address}' has its own: leave it out.")
    settings = job.Settings(
        address=address,
        cpus=options.cpus,
        storage=store.root,
        data=options.data and machine.expanded(options.data).resolve(),
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        checkpoint_s=options.checkpoint_seconds,
    )
    budget = packing.Budget(options.budget_hours, options.cpus_per_trial)
    show = partial(_logs_command, plan.study, storage=options.storage)
    stopped = _search(plan, store, settings, options, track, budget) if plan.search else None
    if stopped:
        if options.json:
            print(json.dumps({"study": plan.study, "preset": plan.preset, "plan": plan.hash, "stopped": stopped}))
        else:
            print(stopped, file=sys.stderr)
        return _code_of(stopped)
    current = Current(settings.data)
    further: Plan | None = _as_it_stands(make, store, current, options, record=True)
    while further is not None:
        plan, progress = further, track(Progress(further, options.json, show))
        rerun = options.rerun_stale
        outcome = runner.run_plan(plan, settings, progress, arms=options.arms, rerun_stale=rerun, budget=budget)
        current = Current(settings.data)  # with data sets that were fetched for the run
        further = None
        if plan.record["looks"] and outcome.stopped is None:
            sentence, further = sequential.look(make, plan, store, current)
            progress.say(sentence)
    statuses = outcome.statuses
    wished = not getattr(options, "no_report", False) and any(status.state == "done" for status in statuses)
    draw = partial(_draw_report, store.root, plan.study, plan.preset, night=plan.record["night"])
    if options.json:
        page = draw() if wished else None
        about = {"report": str(page) if page else None, "stopped": outcome.stopped}
        print(json.dumps({**cli_status.as_json(plan, statuses, store, current), **about}, indent=1))
    else:
        cli_status.print_summary(plan, statuses, store, current)
        failures: dict[str, list[str]] = defaultdict(list)
        for status in statuses:
            if status.state == "failed" and status.failure:
                failures[f"{status.planned.arm}: {status.failure.splitlines()[0]}"].append(status.planned.id)
        for failure, trials in sorted(failures.items()):
            print(f"failed  {failure} ({len(trials)} {'trial' if len(trials) == 1 else 'trials'}: {show(trials[0])})")
        if outcome.stopped:
            print(outcome.stopped)
        if wished:
            print(f"Report: {_relative(draw())}")
    if outcome.stopped:
        return _code_of(outcome.stopped)
    return COMPLETE if cli_status.is_complete(plan, options.arms, statuses) else INCOMPLETE


def _code_of(stopped: str) -> int:
    """The exit code of a run that ended early for this reason."""
    from lnl.execution import queue

    return INCOMPLETE if stopped.startswith(queue.UNFINISHED) else ERROR


def _search(
    plan: Plan,
    store: Store,
    settings: Settings,
    options: argparse.Namespace,
    track: Track,
    budget: Budget,
) -> str | None:
    """Every search until its budget is spent; a sentence where it ended early."""
    from lnl.execution import runner
    from lnl.search import searches as search_searches

    cells = [cell for cell in plan.cells if options.arms is None or cell.arm in options.arms]
    checks.check([Planned(cell.trial, cell.arm, cell.setting) for cell in cells], settings.data, read=True)
    searches = search_searches.Searches(
        plan, store, url=options.optuna, arms=options.arms, new=options.new_search, current=Current(settings.data)
    )
    if searches.spent():
        return None
    show = partial(_logs_command, plan.study, storage=options.storage)
    progress = track(SearchProgress(searches, options.json, show))
    rerun = options.rerun_stale
    stopped = runner.run_search(plan, searches, settings, progress, rerun_stale=rerun, budget=budget)
    if stopped is None:
        for one in searches.searches:
            if (standing := one.in_words()).finished < standing.budget:
                reason = (one.last_failure or "another driver has not finished").splitlines()[0]
                counts = f"{standing.finished} of {standing.budget} suggestions"
                progress.say(f"{standing.name}: {counts}, the others failed: run again to go on.  {reason}")
    return stopped
