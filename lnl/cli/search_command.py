"""`lnl search`: a search in every arm of a study, then its winners beside the arms' own values."""

from __future__ import annotations

import argparse

from lnl.cli import run_command
from lnl.cli.flags import Commands
from lnl.cli.studies import add_study_argument, find_study


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "search every arm's parameters with Optuna, then confirm what it finds on fresh replicates"
    parser = commands.add_parser("search", help=text, description=text)
    add_study_argument(parser)
    run_command.add_flags(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Search, then run the study with the values that were found."""
    return run_command.run_study(find_study(options.study), options, search=True)
