"""Commands that read results: report, diff, ledger."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from lnl.cli.flags import COMPLETE, INCOMPLETE, WIDE, UsageError
from lnl.cli.studies import _study_name
from lnl.storage.atomic import write_atomically
from lnl.storage.places import Place


def _report(options: argparse.Namespace) -> int:
    night = options.night and options.night.isoformat()
    about = {"selection": options.selection, "output": options.output, "night": night}
    page = _draw_report(options.storage, options.study, options.preset, **about)
    print(f"Report: {_relative(page)}")
    return COMPLETE


def _draw_report(*what: Any, **about: Any) -> Place:
    """Of dozens of arms it takes a minute, which a terminal is told meanwhile."""
    from analysis.report.build import build

    sys.stdout.flush()
    with Console(stderr=True).status("Drawing the report"):
        return build(*what, **about)


def _diff(options: argparse.Namespace) -> int:
    """Exit code 3 where a cell moved or crashed, or nothing finished."""
    from analysis.nights.difference import against, tonight
    from analysis.nights.rule import REFERENCE_NIGHTS
    from analysis.nights.text import json_record, markdown, terminal_lines

    _check_figure(options.figure)
    night = options.night and options.night.isoformat()
    options.against = options.against and _study_name(options.against)
    asked = (options.storage, options.study, options.preset, night)
    if options.against or options.against_storage:
        if options.nights is not None or options.figure is not None:
            raise UsageError("--nights and --figure belong to nights: leave them out, or --against.")
        found = against(*asked, options.against, options.against_storage, options.selection)
    else:
        found = tonight(*asked, REFERENCE_NIGHTS if options.nights is None else options.nights, options.selection)
    if options.json:
        print(json.dumps(json_record(found), indent=1))
    else:
        print("\n".join(terminal_lines(found)))
    if options.markdown:
        write_atomically(options.markdown, lambda temporary: temporary.write_text(markdown(found), encoding="utf-8"))
    if options.figure and found.moved.empty:
        print("Nothing moved: there is no figure to draw.", file=sys.stderr)
    elif options.figure:
        from analysis.figures.nights import night_strips

        _write_figure(options.figure, night_strips(found))
    return COMPLETE if found.quiet else INCOMPLETE


def _show(table: Table) -> None:
    """As wide as the terminal; in a file or a pipe as wide as it is."""
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def _check_figure(path: Path | None) -> None:
    """Before any work.  Raises `UsageError`."""
    if path is not None and path.suffix not in (".png", ".pdf"):
        raise UsageError(f"--figure takes a .png or a .pdf, not '{path}'.")


def _write_figure(path: Path, plot: Any) -> None:
    content = plot.pdf() if path.suffix == ".pdf" else plot.png()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _relative(path: Place) -> Place:
    here = Path.cwd()
    return path.relative_to(here) if isinstance(path, Path) and path.is_relative_to(here) else path


def _ledger(options: argparse.Namespace) -> int:
    """A line per arm: attempts and device-hours, by what became of them."""
    from analysis.cost import read_ledger

    _check_figure(options.figure)
    found = read_ledger(options.storage, options.study, options.preset, options.night)
    drawn = found.table()
    if options.csv:
        text = drawn.frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")
        write_atomically(options.csv, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if options.figure:
        from analysis.figures.cost import cost_figure

        _write_figure(options.figure, cost_figure(found))
    if options.json:
        rows = drawn.frame.astype(object).where(drawn.frame.notna(), None).to_dict("records")
        about = {"study": options.study, "preset": options.preset, "hours": rows, "notes": list(found.sentences())}
        about["unreadable"] = [str(path) for path in found.unreadable]
        print(json.dumps(about, indent=1))
        return COMPLETE
    for unit in found.units():
        table = Table(Column(unit, overflow="fold"), box=None, pad_edge=False)
        for name in drawn.header[2:]:
            table.add_column(name, justify="right", no_wrap=True)  # a number is shown whole
        for arm, of, *cells in drawn.rows:
            if of == unit:
                table.add_row(escape(arm), *cells)
        _show(table)
    print("\n".join(found.sentences()))
    for path, why in found.unreadable.items():
        print(f"unreadable and left out: {path} ({why})", file=sys.stderr)
    return COMPLETE
