"""`lnl logs`: the attempts that failed, or all that the attempts of one trial printed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnl.cli.flags import COMPLETE, Commands, UsageError, add_storage_flag
from lnl.cli.output import logs_command
from lnl.cli.studies import add_study_argument, study_name

if TYPE_CHECKING:
    from lnl.storage.places import Place
    from lnl.storage.store import Store

COLUMNS = ["trial", "attempt", "preset", "arm", "setting", "replicate", "status", "failure_class", "failure_message"]


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "what trials printed and their tracebacks; without a trial, the attempts that failed"
    parser = commands.add_parser("logs", help=text, description=text)
    add_study_argument(parser)
    parser.add_argument("trial", nargs="?", help="a trial's id, or how it begins")
    parser.add_argument("--arm", help="the attempts of this arm only")
    parser.add_argument("--preset")
    parser.add_argument("--all", action="store_true", help="list attempts that did not fail and printed something, too")
    add_storage_flag(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print a line for each attempt that failed, or the logs of one trial's attempts."""
    from lnl.storage.store import Store

    study, store = study_name(options.study), Store(options.storage)
    attempts = _attempts(store, study)
    if not attempts:
        raise UsageError(f"{store.root} has no attempt of study '{study}': is it another --storage?")
    if options.preset is not None:
        attempts = [attempt for attempt in attempts if attempt.preset in (options.preset, "")]
    if options.trial is not None:
        attempts = _of_trial(attempts, study, options.trial)
    if options.arm is not None:
        attempts = _of_arm(attempts, study, options.arm)
    if options.json:
        _print_json(attempts, study, options)
    elif options.trial is not None:
        _print_logs(attempts)
    else:
        _print_failures(attempts, study, options)
    return COMPLETE


@dataclass(frozen=True)
class _Attempt:
    """An attempt at a trial: its row, if it has one, and its log, if it printed anything."""

    trial: str
    number: int
    status: str  # "no row" where its worker did not live to write one, or has not ended yet
    log: Place | None
    preset: str = ""
    arm: str = ""
    setting: str = ""
    replicate: str = ""
    failure_class: str = ""
    failure_message: str = ""

    @property
    def failed(self) -> bool:
        return self.status not in ("ok", "pruned")

    def __str__(self) -> str:
        """Trial, attempt, arm, replicate, what became of it and the first line of why."""
        outcome = self.failure_class if self.status == "failed" and self.failure_class else self.status
        reason = f": {self.failure_message.splitlines()[0]}" if self.failure_message else ""
        setting = "" if self.setting in ("", "{}") else f" {self.setting}"
        place = f"  {self.arm}{setting}, replicate {self.replicate}" if self.arm else ""
        return f"{self.trial} attempt {self.number}{place}  {outcome}{reason}"


def _attempts(store: Store, study: str) -> list[_Attempt]:
    """All attempts of a study by arm, trial and number; files that cannot be read are named on standard error."""
    from lnl.storage.part_names import attempt_name
    from lnl.storage.schema import renamed

    rows, unreadable = store.read("trials", study, COLUMNS)
    logs, foreign = store.logs(study)
    for path, reason in {**unreadable, **dict.fromkeys(foreign, "its name is no attempt's")}.items():
        print(f"unreadable and left out: {store.within(path)} ({reason})", file=sys.stderr)
    rows = renamed(rows, store.plans(study))
    rows = rows.astype(object).where(rows.notna(), "")
    attempts = {}
    for row in rows.to_dict("records"):
        name = attempt_name(str(row["trial"]), row["attempt"])
        attempts[name] = _of_row(row, logs.get(name))
    for name in logs.keys() - attempts.keys():
        trial, _, number = name.rpartition("-")
        attempts[name] = _Attempt(trial, int(number), "no row", logs[name])
    return sorted(attempts.values(), key=lambda attempt: (attempt.arm, attempt.trial, attempt.number))


def _of_row(row: Mapping[Any, Any], log: Place | None) -> _Attempt:
    texts = {name: str(row[name]) for name in COLUMNS if name not in ("trial", "attempt", "status")}
    return _Attempt(row["trial"], row["attempt"], row["status"], log, **texts)


def _of_trial(attempts: Sequence[_Attempt], study: str, beginning: str) -> list[_Attempt]:
    """The attempts at the one trial whose id begins like that.  Raises `UsageError` for none and for several."""
    attempts = [attempt for attempt in attempts if attempt.trial.startswith(beginning)]
    trials = sorted({attempt.trial for attempt in attempts})
    if not trials:
        raise UsageError(
            f"No trial of study '{study}' begins with '{beginning}': `lnl logs {study} --all` "
            "lists those that have something to say."
        )
    if len(trials) > 1:
        raise UsageError(f"{len(trials)} trials begin with '{beginning}': give more of {', '.join(trials[:5])}.")
    return attempts


def _of_arm(attempts: Sequence[_Attempt], study: str, arm: str) -> list[_Attempt]:
    attempts = [attempt for attempt in attempts if attempt.arm == arm]
    if not attempts:
        raise UsageError(f"No attempt of study '{study}' is of arm '{arm}'.")
    return attempts


def _is_listed(attempt: _Attempt, everything: bool) -> bool:
    """Whether a list shows the attempt: those that failed, and where asked for those that printed something."""
    return attempt.failed or (everything and attempt.log is not None)


def _print_json(attempts: Sequence[_Attempt], study: str, options: argparse.Namespace) -> None:
    """Print what the text shows: the attempts that are listed, or all of one trial with what they printed."""
    of_trial = options.trial is not None
    shown = [attempt for attempt in attempts if of_trial or _is_listed(attempt, options.all)]
    entries = [
        {
            **vars(attempt),
            "log": str(attempt.log) if attempt.log else None,
            "failed": attempt.failed,
            **({"output": _log_text(attempt.log) if attempt.log else None} if of_trial else {}),
        }
        for attempt in shown
    ]
    print(json.dumps({"study": study, "attempts": entries}))


def _print_logs(attempts: Sequence[_Attempt]) -> None:
    """Print the logs of one trial's attempts."""
    for attempt in attempts:
        print(f"--- {attempt}")
        print(_log_text(attempt.log) if attempt.log else attempt.failure_message or "It printed nothing.")


def _print_failures(attempts: Sequence[_Attempt], study: str, options: argparse.Namespace) -> None:
    """Print a line for each attempt that failed; with --all also for those that printed something."""
    for attempt in attempts:
        if _is_listed(attempt, options.all):
            print(f"{attempt}  {logs_command(study, attempt.trial, options.storage) if attempt.log else 'no log'}")
    failed = sum(attempt.failed for attempt in attempts)
    quiet = 0 if options.all else sum(attempt.log is not None and not attempt.failed for attempt in attempts)
    more = f"; {quiet} more printed something (--all)" if quiet else ""
    print(f"{failed} of {len(attempts)} attempts failed{more}.")


def _log_text(path: Place) -> str:
    from lnl.storage.files import read_file, reason

    try:
        return read_file(path).decode(errors="backslashreplace")
    except OSError as error:
        return f"{path} cannot be read ({reason(error)})."
