"""`lnl doctor`: what is wrong with the environment, the results or the cluster."""

from __future__ import annotations

import argparse
import json

from lnl.cli.flags import COMPLETE, ERROR, Commands, add_storage_flag


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "check the environment, data sets, unreadable files and abandoned leases"
    parser = commands.add_parser("doctor", help=text)
    add_storage_flag(parser)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print facts of the environment, remarks on the data sets, left-over folders, and every problem.

    The exit code is 1 where there is a problem.
    """
    from lnl import data
    from lnl.cli import doctor
    from lnl.storage.store import Store

    facts, problems = doctor.examine(Store(options.storage))
    remarks, left_over = data.remarks_of_cached(), doctor.left_over()
    if options.json:
        print(json.dumps({"facts": facts, "data": remarks, "left_over": left_over, "problems": problems}, indent=1))
    else:
        print("  ".join(f"{name} {value}" for name, value in facts.items()))
        for name, sentences in remarks.items():
            print(f"{name}: {' '.join(sentences)}")
        print("\n".join([*left_over, *(problems or ["No problem found."])]))
    return ERROR if problems else COMPLETE
