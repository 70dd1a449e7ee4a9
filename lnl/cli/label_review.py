"""`lnl label review`: the page on which people decide, with a small local server that saves every decision."""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path

from lnl.cli.flags import COMPLETE, Commands, UsageError


def add_parser(jobs: Commands) -> None:
    """Add the job to `lnl label`."""
    text = "look at what `lnl label errors` or `next` has found, and decide; every decision is saved"
    parser = jobs.add_parser("review", help=text, description=text)
    parser.add_argument("out", type=Path, help="the folder that it has written")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of this machine alone; default: a free one")
    parser.add_argument("--reviewer", metavar="NAME", help="who decides (default: the user's name on this machine)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    from lnl.review import decisions, errors, items, outputs, server, tables

    about, table = outputs.read_table(options.out)
    if about.kind == "propagate":
        raise UsageError(f"{options.out} has labels for all images: review what `lnl label errors` or `next` finds.")
    decided = decisions.read(options.out).decisions
    facts = errors.facts(about, table, decided)
    review = tables.review_of(about, table, items.reopened(about), facts)
    server.serve(review, options.out, options.port, options.reviewer or getpass.getuser())
    return COMPLETE
