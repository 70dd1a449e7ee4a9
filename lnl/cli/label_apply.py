"""`lnl label apply`: the corrected labels, every change with who and why."""

from __future__ import annotations

import argparse
from pathlib import Path

from lnl.cli.flags import COMPLETE, Commands, UsageError


def add_parser(jobs: Commands) -> None:
    """Add the job to `lnl label`."""
    text = "write the labels after review: what nobody has decided stays as it was given"
    parser = jobs.add_parser("apply", help=text, description=text)
    parser.add_argument("out", type=Path, help="the folder that `lnl label errors` or `next` has written")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the table to write, .csv or .parquet")
    parser.add_argument("--reviewer", metavar="NAME", help="whose decision counts where reviewers differ")
    parser.add_argument(
        "--accept-above",
        type=float,
        metavar="P",
        help="also change what nobody has decided, to the proposed label, where an error is at least so probable",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write the table and print how much was changed."""
    from lnl.review import decisions, exchange, outputs

    if options.to.suffix not in (".csv", ".parquet"):
        raise UsageError(f"--to {options.to} must end with .csv or .parquet.")
    above = options.accept_above
    if above is not None and not 0 < above <= 1:
        raise UsageError(f"--accept-above is {above:g}: give a probability, above 0 and at most 1.")
    about, table = outputs.read_table(options.out)
    if about.kind == "propagate":
        raise UsageError(f"{options.out} is of `lnl label propagate`: its labels.csv has the labels already.")
    if about.kind == "next" and above is not None:
        raise UsageError("--accept-above belongs to `lnl label errors`: what to label next has no label to be wrong.")
    reading = decisions.read(options.out)
    made = exchange.corrected(about, table, reading.decisions, options.reviewer, above)
    outputs.write_plain(options.to, made.table)
    for problem in reading.problems:
        print(problem)
    print(f"{made.changed:,} labels changed and {made.kept:,} confirmed in review, of {len(made.table):,}.")
    if above is not None:
        print(f"{made.accepted:,} more changed that nobody has decided on: an error is {above:.0%} probable or more.")
    print(f"Wrote {options.to}.")
    return COMPLETE
