"""`lnl status`: one line per arm of a study, its verdicts and its searches."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lnl.cli.flags import COMPLETE, INCOMPLETE, Commands, add_study_flags
from lnl.cli.output import print_table
from lnl.cli.studies import add_study_argument, find_study

if TYPE_CHECKING:
    from lnl.cli.planning import Request


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "one line per arm"
    parser = commands.add_parser("status", help=text, description=text)
    add_study_argument(parser)
    add_study_flags(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print how the study stands; exit code 3 while something is missing."""
    from lnl.cli import remembered, status
    from lnl.cli.progress import arm_table
    from lnl.trial.provenance import Current

    request, current = remembered.recall(options) or _planned(options), Current(options.data)
    plan = request.plan_so_far(current)
    statuses = request.statuses(plan, current)
    if options.json:
        status.print_json(plan, statuses, request.store, current)
    else:
        print_table(arm_table(status.arm_rows(statuses), plan.record.selection))
        status.print_summary(plan, statuses, request.store, current)
    status.tell_missing_data(statuses, current)
    if not options.json:
        status.print_searches(plan, request.all_arms, statuses)
    return COMPLETE if status.is_complete(plan, request.all_arms, statuses) else INCOMPLETE


def _planned(options: argparse.Namespace) -> Request:
    """What the flags ask of the study, whose file is run for it."""
    study = find_study(options.study)

    from lnl.cli import remembered
    from lnl.cli.planning import read_request

    request = read_request(study, options)
    remembered.remember(request, options)
    return request
