"""`lnl plan`: every trial of a study with its state and cost; nothing is started."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lnl.cli.flags import COMPLETE, Commands, add_study_flags
from lnl.cli.studies import add_study_argument, find_study

if TYPE_CHECKING:
    from lnl.study.study import Study


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "list a study's trials: done, missing or stale; starts nothing"
    parser = commands.add_parser("plan", help=text, description=text)
    add_study_argument(parser)
    add_study_flags(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print the plan of the study that is named."""
    return plan_study(find_study(options.study), options)


def plan_study(study: Study, options: argparse.Namespace, *, search: bool = False) -> int:
    """Print a study's plan, after a check that its trials fit their data; `search`: as a search would plan it."""
    from lnl.cli import status
    from lnl.cli.planning import read_request
    from lnl.study import checks
    from lnl.trial.provenance import Current

    request, current = read_request(study, options, search=search), Current(options.data)
    plan = request.plan_so_far(current)
    statuses = request.statuses(plan, current)
    checks.check([s.planned for s in statuses if s.state not in ("done", "stale")], options.data, read=False)
    if options.json:
        status.print_json(plan, statuses, request.store, current)
    else:
        status.print_plan(plan, statuses)
        status.print_detectable(plan, request.store, current)
    status.tell_missing_data(statuses, current)
    status.tell_data_remarks(statuses, current)
    if not options.json:
        status.print_searches(plan, request.all_arms, statuses)
    return COMPLETE
