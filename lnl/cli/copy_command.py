"""`lnl copy`: a study that comes with lnl, put here to be edited."""

from __future__ import annotations

import argparse
from pathlib import Path

from lnl.cli.flags import COMPLETE, Commands
from lnl.cli.output import write_new
from lnl.cli.studies import SHIPPED, add_study_argument, study_file


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "put a study that comes with lnl into studies/ here, to edit it"
    parser = commands.add_parser("copy", help=text, description=text)
    add_study_argument(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Copy the study's file, unless there is one; from then on its name means the copy."""
    shipped = SHIPPED / f"{options.study}.py"
    source = shipped if shipped.is_file() else study_file(options.study)
    path = Path("studies") / source.name
    write_new(path, source.read_text(encoding="utf-8"))
    print(f"Wrote {path}: `lnl run {path.stem}` here runs this copy.")
    return COMPLETE
