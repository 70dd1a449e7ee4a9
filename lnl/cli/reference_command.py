"""`lnl reference`: every field of a study and of a trial, and the networks, as Markdown."""

from __future__ import annotations

import argparse

from lnl.cli.flags import COMPLETE, Commands


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "print all fields of a study and of a trial, and the networks with their sizes, as Markdown"
    parser = commands.add_parser("reference", help=text, description=text)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print the page of reference."""
    from lnl.cli import reference

    print(reference.page(), end="")
    return COMPLETE
