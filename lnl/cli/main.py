"""The `lnl` command, and the flags that every study script has.

Exit codes: 0 complete, 1 error, 2 bad usage, 3 incomplete; of `lnl diff` 3 where something moved
or crashed, or nothing finished.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lnl.cli.analysis_commands import _diff, _ledger, _report
from lnl.cli.flags import ERROR, INCOMPLETE, USAGE, UsageError, _night_flag, _place, _storage_flag, _study_flags
from lnl.cli.logs_command import _logs
from lnl.cli.other_commands import _doctor, _methods
from lnl.cli.studies import A_STUDY, _Handed, _reading, _study_name, find_study
from lnl.cli.study_commands import _study_command
from lnl.data import DataError
from lnl.storage.objects import StorageError
from lnl.storage.secrets import mask
from lnl.study.study import Study


def main(arguments: Sequence[str] | None = None) -> int:
    """`lnl plan|run|status|report|methods|doctor …`"""
    parser = argparse.ArgumentParser(
        prog="lnl", description="A laboratory for ablation studies of learning with noisy labels."
    )
    parser.add_argument("--version", action="version", version=f"lnl {_version()}", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in {
        "plan": "list a study's trials: done, missing or stale; starts nothing",
        "run": "run what a study still lacks",
        "search": "search every arm's parameters with Optuna, then confirm what it finds on fresh replicates",
        "status": "one line per arm",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("study", help=A_STUDY)
        _study_flags(command)
    report = commands.add_parser("report", help="make the HTML page, figures and tables of a study")
    report.add_argument("study", help=A_STUDY)
    report.add_argument("--preset")
    _night_flag(report, "the newest plan of that night")
    _storage_flag(report)
    report.add_argument(
        "--selection",
        choices=("last", "last10", "val_selected", "best_test"),
        help="selection rule; default: the study's",
    )
    report.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write the page there, and nothing to the results (default: reports/ below the storage)",
    )
    text = "what a study cost: GPU-hours per arm (CPU-hours where trials had no GPU), of use, wasted and idle"
    ledger = commands.add_parser("ledger", help=text, description=text)
    ledger.add_argument("study", help=A_STUDY)
    ledger.add_argument("--preset", help="default: all of them")
    _night_flag(ledger, "only what that night asked for")
    _storage_flag(ledger)
    ledger.add_argument("--json", action="store_true")
    ledger.add_argument("--csv", type=Path, metavar="FILE", help="write the table there")
    ledger.add_argument("--figure", type=Path, metavar="FILE", help="draw it there: .png or .pdf")
    text = "tonight against the last nights, or study against study: exit code 3 where something moved"
    diff = commands.add_parser("diff", help=text, description=text)
    diff.add_argument("study", help=A_STUDY)
    diff.add_argument("--preset")
    _night_flag(diff, "that night instead of the latest")
    diff.add_argument("--nights", type=int, metavar="K", help="quiet nights that are the reference (default: 14)")
    diff.add_argument(
        "--against", metavar="OTHER", help="another study, preset, night or plan, instead of the nights before"
    )
    diff.add_argument("--against-storage", type=_place, metavar="PLACE", help="where that one's results live")
    _storage_flag(diff)
    diff.add_argument("--selection", choices=("last", "last10", "val_selected", "best_test"))
    diff.add_argument("--markdown", type=Path, metavar="FILE", help="write it for a message or an issue, too")
    diff.add_argument("--figure", type=Path, metavar="FILE", help="draw the nights of what moved (.png, .pdf)")
    diff.add_argument("--json", action="store_true")
    text = "what trials printed and their tracebacks; without a trial, the attempts that failed"
    logs = commands.add_parser("logs", help=text, description=text)
    logs.add_argument("study", help=A_STUDY)
    logs.add_argument("trial", nargs="?", help="a trial's id, or how it begins")
    logs.add_argument("--arm", help="list the attempts of this arm only")
    logs.add_argument("--preset")
    logs.add_argument("--all", action="store_true", help="list attempts that did not fail and printed something, too")
    _storage_flag(logs)
    listed = commands.add_parser("methods", help="list the methods, or one method's switches")
    listed.add_argument("name", nargs="?")
    doctor = commands.add_parser("doctor", help="check the environment, unreadable files and abandoned leases")
    _storage_flag(doctor)
    doctor.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    def act() -> int:
        if options.command in ("report", "ledger", "diff", "logs"):  # they read results, and need no declaration
            options.study = _study_name(options.study)
        if options.command == "report":
            return _report(options)
        if options.command == "diff":
            return _diff(options)
        if options.command == "doctor":
            return _doctor(options.storage, options.json)
        if options.command == "ledger":
            return _ledger(options)
        if options.command == "logs":
            return _logs(options)
        if options.command == "methods":
            return _methods(options.name)
        return _study_command(find_study(options.study), options, options.command)

    return _guarded(act)


def study_main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """`python studies/<name>.py …`: runs what is missing, then makes the report; with --plan lists only."""
    if _reading.get():
        raise _Handed(study)
    parser = argparse.ArgumentParser(description=study.question)
    _study_flags(parser)
    parser.add_argument(
        "--plan", action="store_true", help="list every trial with done, missing or stale; start nothing"
    )
    parser.add_argument("--no-report", action="store_true", help="do not make the report at the end")
    options = parser.parse_args(arguments)
    return _guarded(lambda: _study_command(study, options, "plan" if options.plan else "run"))


def _version() -> str:
    """The installed version; words where nothing is installed, as with a checkout on PYTHONPATH."""
    try:
        return metadata.version("lnl")
    except metadata.PackageNotFoundError:
        return "(not installed, so without a version)"


def _guarded(act: Any) -> int:
    """Every expected error becomes one sentence on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a locale that lacks a character ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code: int = act()
        return code
    except (UsageError, ValueError) as error:
        print(mask(f"error: {error}"), file=sys.stderr)
        return ERROR if isinstance(error, DataError) else USAGE
    except (StorageError, OSError) as error:
        print(mask(f"error: {error}"), file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("Interrupted: what is finished is stored; run again to go on.", file=sys.stderr)
        return INCOMPLETE
