"""`lnl run`, which is also `python studies/<name>.py`: run what a study lacks, then report it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lnl.cli import plan_command
from lnl.cli.flags import COMPLETE, ERROR, INCOMPLETE, Commands, UsageError, add_study_flags
from lnl.cli.output import draw_report, logs_command, relative_path
from lnl.cli.studies import add_study_argument, find_study

if TYPE_CHECKING:
    from lnl.cli.planning import Request
    from lnl.execution.interfaces import Track
    from lnl.execution.job import RunSettings
    from lnl.execution.packing import Budget
    from lnl.execution.runner import RunResult
    from lnl.storage.places import Place
    from lnl.study.plan import Plan
    from lnl.study.status import Status
    from lnl.study.study import Study
    from lnl.trial.provenance import Current


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "run what a study still lacks"
    parser = commands.add_parser("run", help=text, description=text)
    add_study_argument(parser)
    add_flags(parser)
    parser.set_defaults(command=run)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a run, which are those of a study's file."""
    add_study_flags(parser)
    parser.add_argument(
        "--plan", action="store_true", help="list every trial with done, missing or stale; start nothing"
    )
    parser.add_argument("--no-report", action="store_true", help="do not make the report at the end")


def run(options: argparse.Namespace) -> int:
    """Run the study that is named."""
    return run_study(find_study(options.study), options)


def run_study(study: Study, options: argparse.Namespace, *, search: bool = False) -> int:
    """Run what the study lacks and report it; `search`: after a search that the study need not declare.

    With --plan, list the trials instead.  The exit code is 3 while something is missing, and 1 where the run had to
    stop.
    """
    if options.plan:
        return plan_command.plan_study(study, options, search=search)

    from lnl.cli import remembered
    from lnl.cli.planning import read_request
    from lnl.execution import sequential, trackers

    request = read_request(study, options, search=search)
    remembered.remember(request, options)
    copies = {"tensorboard": options.tensorboard, "wandb": options.wandb, "mlflow": options.mlflow}
    with trackers.following(request.store.root, partial(print, file=sys.stderr), **copies) as track:
        sequential.check_looks(request.store, request.plan)
        driver = _driver(request, options, track)
        if stopped := driver.search():
            _print_stopped(request.plan, stopped, options.json)
            return _exit_code(stopped)
        return _report(request, driver.train(), options)


@dataclass(frozen=True)
class _Finished:
    """What a run came to."""

    plan: Plan  # the last one that was run: looks and searches make it longer
    outcome: RunResult
    current: Current


@dataclass(frozen=True)
class _Driver:
    """Runs what a request asks for, on Ray."""

    request: Request
    options: argparse.Namespace
    settings: RunSettings
    budget: Budget
    track: Track  # makes a display one that the trackers follow
    show_log: Callable[[str], str]  # trial -> the command that prints its log

    def search(self) -> str | None:
        """Run every search until its budget is spent; a sentence where one ended early, None without a search."""
        from lnl.cli.progress import SearchProgress
        from lnl.execution import runner
        from lnl.search.searches import Searches
        from lnl.study import checks
        from lnl.study.plan import Planned
        from lnl.trial.provenance import Current

        plan, arms, options = self.request.plan, self.request.arms, self.options
        if plan.search is None:
            return None
        cells = [cell for cell in plan.cells if arms is None or cell.arm in arms]
        checks.check([Planned(cell.trial, cell.arm, cell.setting) for cell in cells], self.settings.data, read=True)
        current = Current(self.settings.data)
        store = self.request.store
        searches = Searches(plan, store, url=options.optuna, arms=arms, new=options.new_search, current=current)
        if searches.spent():
            return None
        progress = self.track(SearchProgress(searches, options.json, self.show_log))
        stopped = runner.run_search(
            plan, searches, self.settings, progress, rerun_stale=options.rerun_stale, budget=self.budget
        )
        if stopped is None:
            for search in searches.searches:
                standing = search.in_words()
                if standing.finished < standing.budget:
                    reason = (search.last_failure or "another driver has not finished").splitlines()[0]
                    counts = f"{standing.finished} of {standing.budget} suggestions"
                    progress.say(f"{standing.name}: {counts}, the others failed: run again to go on.  {reason}")
        return stopped

    def train(self) -> _Finished:
        """Train the plan's trials, and at every look those that undecided contrasts still need."""
        from lnl.cli.progress import Progress
        from lnl.execution import runner, sequential
        from lnl.trial.provenance import Current

        current = Current(self.settings.data)
        plan = self.request.plan_so_far(current, record=True)
        while True:
            progress = self.track(Progress(plan, self.options.json, self.show_log))
            outcome = runner.run_plan(
                plan,
                self.settings,
                progress,
                arms=self.request.all_arms,
                rerun_stale=self.options.rerun_stale,
                budget=self.budget,
            )
            current = Current(self.settings.data)  # with data sets that were fetched for the run
            further = None
            if plan.record.looks and outcome.stopped is None:
                sentence, further = sequential.look(self.request.build_plan, plan, self.request.store, current)
                progress.say(sentence)
            if further is None:
                return _Finished(plan, outcome, current)
            plan = further


def _driver(request: Request, options: argparse.Namespace, track: Track) -> _Driver:
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address

    from lnl.execution import packing, ray_environment
    from lnl.execution.job import RunSettings
    from lnl.system import machine

    address = ray_environment.address()
    if options.cpus and address != "local":
        raise UsageError(f"--cpus is of a Ray of our own, and the cluster '{address}' has its own: leave it out.")
    settings = RunSettings(
        address=address,
        cpus=options.cpus,
        storage=request.store.root,
        data=options.data and machine.expanded(options.data).resolve(),
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        checkpoint_s=options.checkpoint_seconds,
        keep=request.keep,
        rerun_unkept=request.rerun_unkept,
    )
    budget = packing.Budget(options.budget_hours, options.cpus_per_trial)
    show_log = partial(logs_command, request.plan.study, storage=options.storage)
    return _Driver(request, options, settings, budget, track, show_log)


def _print_stopped(plan: Plan, stopped: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"study": plan.study, "preset": plan.preset, "plan": plan.hash, "stopped": stopped}))
    else:
        print(stopped, file=sys.stderr)


def _report(request: Request, finished: _Finished, options: argparse.Namespace) -> int:
    """Print how the study stands, make its report, and return the exit code."""
    from lnl.cli import status

    plan, statuses, stopped = finished.plan, finished.outcome.statuses, finished.outcome.stopped
    draw: Callable[[], Place] | None = None
    if not options.no_report and any(s.state == "done" for s in statuses):
        draw = partial(draw_report, request.store.root, plan.study, plan.preset, night=plan.record.night)
    if options.json:
        page = draw() if draw else None
        more = {"report": str(page) if page else None, "stopped": stopped}
        status.print_json(plan, statuses, request.store, finished.current, more)
    else:
        status.print_summary(plan, statuses, request.store, finished.current)
        _print_failures(statuses, partial(logs_command, plan.study, storage=options.storage))
        if stopped:
            print(stopped)
        if draw:
            print(f"Report: {relative_path(draw())}")
    if stopped:
        return _exit_code(stopped)
    return COMPLETE if status.is_complete(plan, request.all_arms, statuses) else INCOMPLETE


def _print_failures(statuses: Sequence[Status], show_log: Callable[[str], str]) -> None:
    """Print a line for each arm and reason for which trials failed, with the command that shows the first one's log."""
    trials_by_failure: dict[str, list[str]] = defaultdict(list)
    for s in statuses:
        if s.state == "failed" and s.failure:
            trials_by_failure[f"{s.planned.arm}: {s.failure.splitlines()[0]}"].append(s.planned.id)
    for failure, trials in sorted(trials_by_failure.items()):
        count = f"{len(trials)} {'trial' if len(trials) == 1 else 'trials'}"
        print(f"failed  {failure} ({count}: {show_log(trials[0])})")


def _exit_code(stopped: str) -> int:
    """The exit code of a run that ended early for this reason."""
    from lnl.execution import queue

    return INCOMPLETE if stopped.startswith(queue.UNFINISHED) else ERROR
