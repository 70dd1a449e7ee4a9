"""`lnl studies`: the studies that can be named, each with its question."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

from lnl.cli.flags import COMPLETE, Commands
from lnl.cli.output import print_table
from lnl.cli.studies import SHIPPED, study_files


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "list the studies: those in studies/ here, and those that come with lnl"
    parser = commands.add_parser("studies", help=text, description=text)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print a line for each study."""
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("study", no_wrap=True, overflow="fold"), "question", Column("from", no_wrap=True), box=None)
    for name, path in sorted(study_files().items()):
        table.add_row(name, escape(question(path)), "lnl" if path.parent == SHIPPED else "here")
    print_table(table)
    return COMPLETE


def question(path: Path) -> str:
    """Return the first sentence of a study's docstring, without running its file; empty where there is none."""
    try:
        text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    except (SyntaxError, ValueError, OSError) as error:
        return f"(cannot be read: {error})"
    words = " ".join(text.split())
    sentence = re.match(r".*?[?.!](?=\s|$)", words)
    return sentence[0] if sentence else words
