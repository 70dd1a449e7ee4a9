"""The commands `lnl methods` and `lnl doctor`."""

from __future__ import annotations

import json

from rich.markup import escape
from rich.table import Column, Table

from lnl import methods
from lnl.cli import catalogue, doctor
from lnl.cli.analysis_commands import _show
from lnl.cli.flags import COMPLETE, ERROR
from lnl.storage.places import Place
from lnl.storage.store import Store


def _methods(name: str | None) -> int:
    """All methods in a table, or what the file of one says of itself and of its switches."""
    if name is None:
        measured = catalogue.costs()
        table = Table("method", "what it is", "uses", Column("cost", justify="right"), box=None)
        for one in map(catalogue.entry, methods.names()):
            cost = f"{measured[one.name]:.1f}" if one.name in measured else ""
            table.add_row(one.name, escape(one.title), ", ".join(one.uses), cost)
    else:
        one = catalogue.entry(name)
        columns = ("switch", "default", "search", "meaning")
        table = Table(*columns, box=None, title=escape(one.title), title_justify="left")
        for switch in one.switches:
            texts = (catalogue.default_text(switch.default), switch.search, switch.meaning)
            table.add_row(f"method.{switch.name}", *map(escape, texts))
        table.caption = f"A search tries, of the trial's own fields: {one.search}." if one.search else None
    _show(table)
    return COMPLETE


def _doctor(storage: Place, as_json: bool) -> int:
    facts, problems = doctor.examine(Store(storage))
    if as_json:
        print(json.dumps({"facts": facts, "problems": problems}, indent=1))
    else:
        print("  ".join(f"{name} {value}" for name, value in facts.items()))
        print("\n".join(problems) or "No problem found.")
    return ERROR if problems else COMPLETE
