"""`lnl doctor`: what is wrong with the environment, the results or the cluster."""

from __future__ import annotations

import argparse
import json

from lnl.cli.flags import COMPLETE, ERROR, Commands, add_storage_flag


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    parser = commands.add_parser("doctor", help="check the environment, unreadable files and abandoned leases")
    add_storage_flag(parser)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print facts of the environment and every problem; exit code 1 where there is one."""
    from lnl.cli import doctor
    from lnl.storage.store import Store

    facts, problems = doctor.examine(Store(options.storage))
    if options.json:
        print(json.dumps({"facts": facts, "problems": problems}, indent=1))
    else:
        print("  ".join(f"{name} {value}" for name, value in facts.items()))
        print("\n".join(problems) or "No problem found.")
    return ERROR if problems else COMPLETE
