"""`lnl diff`: a night against the nights before it, or one study against another."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lnl.cli.flags import (
    COMPLETE,
    INCOMPLETE,
    SELECTION_RULES,
    Commands,
    UsageError,
    add_night_flag,
    add_storage_flag,
    storage_place,
)
from lnl.cli.output import check_figure, write_figure, write_text
from lnl.cli.studies import add_study_argument, study_name

if TYPE_CHECKING:
    from analysis.nights.difference import Difference


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "tonight against the last nights, or study against study: exit code 3 where something moved"
    parser = commands.add_parser("diff", help=text, description=text)
    add_study_argument(parser)
    parser.add_argument("--preset")
    add_night_flag(parser, "that night instead of the latest")
    parser.add_argument("--nights", type=int, metavar="K", help="quiet nights that are the reference (default: 14)")
    parser.add_argument(
        "--against", metavar="OTHER", help="another study, preset, night or plan, instead of the nights before"
    )
    parser.add_argument("--against-storage", type=storage_place, metavar="PLACE", help="where that one's results live")
    add_storage_flag(parser)
    parser.add_argument("--selection", choices=SELECTION_RULES)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write it for a message or an issue, too")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the nights of what moved (.png, .pdf)")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print what moved; exit code 3 where a cell moved or crashed, or nothing finished."""
    from analysis.nights.text import json_record, markdown, terminal_lines

    study = study_name(options.study)
    check_figure(options.figure)
    difference = _difference(study, options)
    print(json.dumps(json_record(difference), indent=1) if options.json else "\n".join(terminal_lines(difference)))
    if options.markdown:
        write_text(options.markdown, markdown(difference))
    if options.figure:
        _draw(options.figure, difference)
    return COMPLETE if difference.quiet else INCOMPLETE


def _difference(study: str, options: argparse.Namespace) -> Difference:
    from analysis.nights.difference import against, tonight
    from analysis.nights.rule import REFERENCE_NIGHTS

    night = options.night and options.night.isoformat()
    if not options.against and not options.against_storage:
        nights = REFERENCE_NIGHTS if options.nights is None else options.nights
        return tonight(options.storage, study, options.preset, night, nights, options.selection)
    if options.nights is not None or options.figure is not None:
        raise UsageError("--nights and --figure belong to nights: leave them out, or --against.")
    other = options.against and study_name(options.against)
    return against(options.storage, study, options.preset, night, other, options.against_storage, options.selection)


def _draw(path: Path, difference: Difference) -> None:
    if difference.moved.empty:
        print("Nothing moved: there is no figure to draw.", file=sys.stderr)
        return
    from analysis.figures.nights import night_strips

    write_figure(path, night_strips(difference))
