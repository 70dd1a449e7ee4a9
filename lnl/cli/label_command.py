"""`lnl label`: which labels are wrong, labels for all images from a few, and which images to label next."""

from __future__ import annotations

from lnl.cli import label_apply, label_errors, label_exchange, label_next, label_propagate, label_review
from lnl.cli.flags import Commands

JOBS = (label_errors, label_propagate, label_next, label_review, label_apply, label_exchange)


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "find wrong labels, label all images from a few, choose what to label next, and review all of it"
    jobs = commands.add_parser("label", help=text, description=text).add_subparsers(required=True, metavar="job")
    for job in JOBS:
        job.add_parser(jobs)
