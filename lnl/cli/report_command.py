"""`lnl report`: the page, figures and tables of a study."""

from __future__ import annotations

import argparse
from pathlib import Path

from lnl.cli.flags import COMPLETE, SELECTION_RULES, Commands, add_night_flag, add_storage_flag
from lnl.cli.output import draw_report, relative_path
from lnl.cli.studies import add_study_argument, study_name


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    parser = commands.add_parser("report", help="make the HTML page, figures and tables of a study")
    add_study_argument(parser)
    parser.add_argument("--preset")
    add_night_flag(parser, "the newest plan of that night")
    add_storage_flag(parser)
    parser.add_argument("--selection", choices=SELECTION_RULES, help="selection rule; default: the study's")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write the page there, and nothing to the results (default: reports/ below the storage)",
    )
    parser.add_argument(
        "--figures", metavar="FILE", help="figures of your own: my_figures.py, whose functions take the loaded study"
    )
    parser.add_argument("--pdf", action="store_true", help="write every figure as PDF, too")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Write the report and print where its page is."""
    page = draw_report(
        options.storage,
        study_name(options.study),
        options.preset,
        selection=options.selection,
        output=options.output,
        night=options.night and options.night.isoformat(),
        figures=options.figures,
        pdf=options.pdf,
    )
    print(f"Report: {relative_path(page)}")
    return COMPLETE
