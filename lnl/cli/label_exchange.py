"""`lnl label export` and `lnl label import`: suspect labels to other tools, and their decisions back."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lnl.cli.flags import COMPLETE, Commands, UsageError

FORMATS = ("label-studio", "csv", "json")
LOCAL_FILES = "/data/local-files/?d="  # where Label Studio serves files of its own machine


def add_parser(jobs: Commands) -> None:
    """Add both jobs to `lnl label`."""
    text = "write what was found for Label Studio, or as a plain .csv or .json to fill in"
    parser = jobs.add_parser("export", help=text, description=text)
    parser.add_argument("out", type=Path, help="the folder that `lnl label errors` or `next` has written")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--to", type=Path, metavar="FILE", help="default: in the folder itself")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N of the ranking (default: all)")
    parser.add_argument(
        "--prefix", default=LOCAL_FILES, metavar="URL", help=f"label-studio: before each file (default: {LOCAL_FILES})"
    )
    parser.set_defaults(command=run_export)
    text = "read decisions from Label Studio's JSON export, or from a plain .csv or .json with file and label"
    parser = jobs.add_parser("import", help=text, description=text)
    parser.add_argument("out", type=Path, help="the folder whose labels were decided on")
    parser.add_argument("file", type=Path, help="what the other tool has written")
    parser.add_argument("--reviewer", metavar="NAME", help="who has decided (default: what the file says)")
    parser.set_defaults(command=run_import)


def run_export(options: argparse.Namespace) -> int:
    """Write the file, and what Label Studio needs beside it."""
    from lnl.cli.output import write_text
    from lnl.review import exchange, outputs

    if options.first is not None and options.first < 1:
        raise UsageError(f"--first is {options.first}: give a whole number above zero.")
    about, table = outputs.read_table(options.out)
    table = exchange.to_decide(table).slice(0, options.first)
    suffix = ".csv" if options.format == "csv" else ".json"
    path = options.to or options.out / f"{options.format}{suffix}"
    if path.suffix != suffix:
        raise UsageError(f"--to {path} must end with {suffix}.")
    if options.format == "csv":
        outputs.write_plain(path, exchange.plain_table(table))
    elif options.format == "json":
        write_text(path, json.dumps(exchange.plain_json(table), ensure_ascii=False, indent=1))
    else:
        tasks = exchange.label_studio_tasks(about, table, options.prefix)
        write_text(path, json.dumps(tasks, ensure_ascii=False, indent=1))
        view = path.with_suffix(".xml")
        write_text(view, exchange.label_studio_view(about.class_names))
        print(f"Wrote {view}, the labelling interface: paste it into the project's settings.")
    print(f"Wrote {path}: {len(table):,} images.")
    return COMPLETE


def run_import(options: argparse.Namespace) -> int:
    """Add the decisions that are not there yet to those of the folder."""
    from lnl.review import decisions, exchange, outputs

    about, table = outputs.read_table(options.out)
    answers = exchange.imported(about, table, options.file, options.reviewer)
    new = exchange.not_yet_there(answers, decisions.read(options.out).decisions)
    for decision in new:
        decisions.append(options.out, decision)
    known = len(answers) - len(new)
    there = f"; {known:,} were there already" if known else ""
    print(f"{len(new):,} decisions added to {options.out}{there}.")
    return COMPLETE
