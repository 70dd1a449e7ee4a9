"""The `lnl` command, and the command line that every study's file is: assembled here, and run.

Exit codes: 0 complete, 1 error, 2 bad usage, 3 incomplete; of `lnl diff` 3 where something moved or crashed, or nothing
finished.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lnl.cli import (
    check_command,
    copy_command,
    diff_command,
    doctor_command,
    embed_command,
    label_command,
    ledger_command,
    logs_command,
    methods_command,
    new_command,
    plan_command,
    profile_command,
    reference_command,
    report_command,
    run_command,
    search_command,
    status_command,
    studies_command,
)
from lnl.cli.flags import ERROR, INCOMPLETE, USAGE, Parser
from lnl.cli.studies import end_loading
from lnl.storage.objects import StorageError
from lnl.storage.secrets import mask
from lnl.system.own_analysis import use_own_analysis
from lnl.system.version import installed_version

if TYPE_CHECKING:
    from lnl.study.study import Study

COMMANDS = (  # in the order of `lnl --help`
    plan_command,
    run_command,
    search_command,
    status_command,
    report_command,
    ledger_command,
    profile_command,
    diff_command,
    logs_command,
    studies_command,
    copy_command,
    new_command,
    methods_command,
    check_command,
    embed_command,
    label_command,
    reference_command,
    doctor_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lnl COMMAND …` and return its exit code."""
    parser = Parser(prog="lnl", description="A laboratory for ablation studies of learning with noisy labels.")
    version = f"lnl {installed_version() or '(not installed, so without a version)'}"
    parser.add_argument("--version", action="version", version=version, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_parser(commands)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(arguments)
    use_own_analysis()
    return _guarded(partial(options.command, options))


def study_main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Run `python studies/<name>.py …`, which is `lnl run` of that file, and return its exit code."""
    end_loading(study)
    parser = Parser(description=study.question)
    run_command.add_flags(parser)
    parser.set_defaults(study=sys.argv[0])  # as `lnl run` has it
    options = parser.parse_args(arguments)
    use_own_analysis()
    return _guarded(partial(run_command.run_study, study, options))


def _guarded(command: Callable[[], int]) -> int:
    """Run a command; every expected error becomes one sentence on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a locale that lacks a character ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return command()
    except (ValueError, StorageError, OSError) as error:
        print(mask(f"error: {error}"), file=sys.stderr)
        return _exit_code(error)
    except KeyboardInterrupt:
        print("Interrupted: what is finished is stored; run again to go on.", file=sys.stderr)
        return INCOMPLETE


def _exit_code(error: Exception) -> int:
    """`USAGE` where the command asks for what cannot be, `ERROR` where data or results cannot be had."""
    from lnl.data import DataError  # imports numpy, which a command without an error may not need

    return USAGE if isinstance(error, ValueError) and not isinstance(error, DataError) else ERROR
