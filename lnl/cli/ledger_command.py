"""`lnl ledger`: what a study cost, arm by arm."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lnl.cli.flags import COMPLETE, Commands, add_night_flag, add_storage_flag
from lnl.cli.output import check_figure, print_numbers, tell_unreadable, write_figure, write_text
from lnl.cli.studies import add_study_argument, study_name

if TYPE_CHECKING:
    from analysis.cost import Ledger


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "what a study cost: GPU-hours per arm (CPU-hours where trials had no GPU), of use, wasted and idle"
    parser = commands.add_parser("ledger", help=text, description=text)
    add_study_argument(parser)
    parser.add_argument("--preset", help="default: all of them")
    add_night_flag(parser, "only what that night asked for")
    add_storage_flag(parser)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw it there: .png or .pdf")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print a line per arm: its attempts and device-hours, by what became of them."""
    from analysis.cost import read_ledger

    study = study_name(options.study)
    check_figure(options.figure)
    ledger = read_ledger(options.storage, study, options.preset, options.night)
    if options.csv:
        frame = ledger.table().frame
        write_text(options.csv, frame.to_csv(index=False, float_format="%.10g", lineterminator="\n"))
    if options.figure:
        from analysis.figures.cost import cost_figure

        write_figure(options.figure, cost_figure(ledger))
    if options.json:
        print(_as_json(ledger, study, options.preset))
    else:
        _print(ledger)
    return COMPLETE


def _as_json(ledger: Ledger, study: str, preset: str | None) -> str:
    frame = ledger.table().frame
    record = {
        "study": study,
        "preset": preset,
        "hours": frame.astype(object).where(frame.notna(), None).to_dict("records"),
        "notes": list(ledger.sentences()),
        "unreadable": [str(path) for path in ledger.unreadable],
    }
    return json.dumps(record, indent=1)


def _print(ledger: Ledger) -> None:
    drawn = ledger.table()
    for unit in ledger.units():
        rows = [[arm, *cells] for arm, unit_of_arm, *cells in drawn.rows if unit_of_arm == unit]
        print_numbers([unit, *drawn.header[2:]], rows)
    print("\n".join(ledger.sentences()))
    tell_unreadable(ledger.unreadable)
