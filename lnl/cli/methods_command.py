"""`lnl methods`: the methods, or the switches of one."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from lnl.cli.flags import COMPLETE, Commands, add_completed_argument
from lnl.cli.output import print_table

if TYPE_CHECKING:
    from rich.table import Column, Table

    from lnl.cli.catalogue import MethodPage


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    parser = commands.add_parser("methods", help="list the methods, or one method's switches")
    add_completed_argument(parser, "name", _names, nargs="?")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(command=run)


def _names() -> list[str]:
    """The names of the methods, those of installed packages among them, without importing one."""
    from lnl import methods

    return [*methods.names(), *methods.installed()]


def run(options: argparse.Namespace) -> int:
    """Print all methods, or what the file of one says of itself and of its switches."""
    from lnl.cli import catalogue

    names = [options.name] if options.name else _names()
    pages = [catalogue.entry(name) for name in names]
    if options.json:
        plain = [_as_json(page, options.name is not None) for page in pages]
        print(json.dumps(plain[0] if options.name else plain))
    else:
        print_table(_switches(pages[0]) if options.name else _methods(pages))
    return COMPLETE


def _as_json(page: MethodPage, with_switches: bool) -> dict[str, object]:
    """Plain data of a method."""
    from pydantic_core import to_jsonable_python

    from lnl.cli import catalogue

    plain: dict[str, object] = {"name": page.name, "title": page.title, "uses": page.uses}
    plain["cost"] = catalogue.costs().get(page.name)
    if with_switches:
        switches = [{**vars(switch), "name": f"method.{switch.name}"} for switch in page.leaves()]
        plain |= {"switches": to_jsonable_python(switches), "search": page.search}
    return plain


def _methods(pages: list[MethodPage]) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    from lnl.cli import catalogue

    costs = catalogue.costs()
    table = Table(_name("method"), "what it is", "uses", Column("cost", justify="right"), box=None)
    for page in pages:
        cost = f"{costs[page.name]:.1f}" if page.name in costs else ""
        table.add_row(page.name, escape(page.title), ", ".join(page.uses), cost)
    return table


def _switches(page: MethodPage) -> Table:
    """A row for each switch: what it may be and what it means beside its default, so that names are never cut."""
    from rich.markup import escape
    from rich.table import Table

    from lnl.cli.fields import default_text

    table = Table(_name("switch"), "default", "meaning", box=None, title=escape(page.title), title_justify="left")
    for switch in page.leaves():
        search = f" (search: {switch.search})" if switch.search else ""
        meaning = f"{switch.allowed}{search}" + (f": {switch.meaning}" if switch.meaning else "")
        table.add_row(f"method.{switch.name}", escape(default_text(switch.default)), escape(meaning))
    table.caption = f"A search tries, of the trial's own fields: {page.search}." if page.search else None
    return table


def _name(header: str) -> Column:
    """A column of names, which a narrow terminal does not cut."""
    from rich.table import Column

    return Column(header, no_wrap=True, overflow="ignore")
