"""`lnl profile`: where the time of a study's trials went, arm by arm."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lnl.cli.flags import COMPLETE, Commands, add_night_flag, add_storage_flag
from lnl.cli.output import check_figure, print_numbers, tell_unreadable, write_figure
from lnl.cli.studies import add_study_argument, study_name


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "where the time of a study's trials went: views, passes, evaluation, checkpoints, waiting"
    parser = commands.add_parser("profile", help=text, description=text)
    add_study_argument(parser)
    parser.add_argument("--preset", help="default: all of them")
    add_night_flag(parser, "only what that night asked for")
    add_storage_flag(parser)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw it there: .png or .pdf")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print a line per arm: the seconds of an attempt, and the share of each phase."""
    from analysis.cost import read_ledger
    from analysis.timings import read_timings

    study = study_name(options.study)
    check_figure(options.figure)
    timings = read_timings(options.storage, study, options.preset, options.night)
    ledger = read_ledger(options.storage, study, options.preset, options.night)
    sentences = [*timings.sentences(), *ledger.idle_sentences()]
    if options.figure:
        from analysis.figures.timings import timings_figure

        write_figure(options.figure, timings_figure(timings))
    if options.json:
        frame = timings.table().frame
        record = {"study": study, "preset": options.preset, "arms": frame.to_dict("records"), "notes": sentences}
        print(json.dumps(record, indent=1))
    else:
        shown = timings.table()
        print_numbers(shown.header, shown.rows)
        print("\n".join(sentences))
        tell_unreadable(timings.unreadable)
    return COMPLETE
