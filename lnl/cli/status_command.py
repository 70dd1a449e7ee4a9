"""`lnl status`: one line per arm of a study, its verdicts and its searches."""

from __future__ import annotations

import argparse

from lnl.cli.flags import COMPLETE, INCOMPLETE, Commands, add_study_flags
from lnl.cli.output import print_table
from lnl.cli.studies import add_study_argument, find_study


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "one line per arm"
    parser = commands.add_parser("status", help=text, description=text)
    add_study_argument(parser)
    add_study_flags(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print how the study stands; exit code 3 while something is missing."""
    study = find_study(options.study)

    from lnl.cli import status
    from lnl.cli.planning import read_request
    from lnl.cli.progress import arm_table
    from lnl.trial.provenance import Current

    request, current = read_request(study, options), Current(options.data)
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
