"""`lnl label`: which labels are wrong, labels for all images from a few, and which images to label next."""

from __future__ import annotations

from lnl.cli import label_apply, label_errors, label_exchange, label_review
from lnl.cli.flags import Commands

JOBS = (label_errors, label_review, label_apply, label_exchange)


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "find wrong labels, review them, and write the corrected ones"
    jobs = commands.add_parser("label", help=text, description=text).add_subparsers(required=True, metavar="job")
    for job in JOBS:
        job.add_parser(jobs)
