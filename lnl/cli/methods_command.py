"""`lnl methods`: the methods, or the switches of one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lnl.cli.flags import COMPLETE, Commands
from lnl.cli.output import print_table

if TYPE_CHECKING:
    from rich.table import Table


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    parser = commands.add_parser("methods", help="list the methods, or one method's switches")
    parser.add_argument("name", nargs="?")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print all methods, or what the file of one says of itself and of its switches."""
    print_table(_methods() if options.name is None else _switches(options.name))
    return COMPLETE


def _methods() -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    from lnl import methods
    from lnl.cli import catalogue

    costs = catalogue.costs()
    table = Table("method", "what it is", "uses", Column("cost", justify="right"), box=None)
    for method in map(catalogue.entry, [*methods.names(), *methods.installed()]):
        cost = f"{costs[method.name]:.1f}" if method.name in costs else ""
        table.add_row(method.name, escape(method.title), ", ".join(method.uses), cost)
    return table


def _switches(name: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from lnl.cli import catalogue

    method = catalogue.entry(name)
    columns = ("switch", "default", "search", "meaning")
    table = Table(*columns, box=None, title=escape(method.title), title_justify="left")
    for switch in method.switches:
        texts = (catalogue.default_text(switch.default), switch.search, switch.meaning)
        table.add_row(f"method.{switch.name}", *map(escape, texts))
    table.caption = f"A search tries, of the trial's own fields: {method.search}." if method.search else None
    return table
