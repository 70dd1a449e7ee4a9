"""The command `lnl logs`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from lnl.cli.flags import COMPLETE, UsageError
from lnl.storage.files import read_file, reason
from lnl.storage.places import Place, attempt_name, storage_flag
from lnl.storage.schema import renamed
from lnl.storage.store import Store


def _logs(options: argparse.Namespace) -> int:
    """A line for each attempt that failed, or all that one trial's attempts have said."""
    store = Store(options.storage)
    about = ["trial", "attempt", "preset", "arm", "setting", "replicate", "status", "failure_class", "failure_message"]
    rows, broken = store.read("trials", options.study, about)
    said, foreign = store.logs(options.study)
    for path, why in {**broken, **dict.fromkeys(foreign, "its name is no attempt's")}.items():
        print(f"unreadable and left out: {store.within(path)} ({why})", file=sys.stderr)
    rows = renamed(rows, store.plans(options.study))
    rows = rows.astype(object).where(rows.notna(), "")
    records: list[Any] = rows.to_dict("records")
    attempts = {attempt_name(row["trial"], row["attempt"]): row for row in records}
    for stem in said.keys() - attempts.keys():  # its worker did not live to write its row, or has not ended yet
        trial, _, attempt = stem.rpartition("-")
        attempts[stem] = {**dict.fromkeys(about, ""), "trial": trial, "attempt": int(attempt), "status": "no row"}
    if not attempts:
        raise UsageError(f"{store.root} has no attempt of study '{options.study}': is it another --storage?")
    if options.preset is not None:
        attempts = {stem: row for stem, row in attempts.items() if row["preset"] in (options.preset, "")}
    ordered = sorted(attempts.items(), key=lambda one: (one[1]["arm"], one[1]["trial"], one[1]["attempt"]))
    if options.trial is not None:
        ordered = [(stem, row) for stem, row in ordered if row["trial"].startswith(options.trial)]
        ids = sorted({row["trial"] for _, row in ordered})
        if not ids:
            raise UsageError(
                f"No trial of study '{options.study}' begins with '{options.trial}': `lnl logs {options.study} --all` "
                "lists those that have something to say."
            )
        if len(ids) > 1:
            raise UsageError(f"{len(ids)} trials begin with '{options.trial}': give more of {', '.join(ids[:5])}.")
        for stem, row in ordered:
            print(f"--- {_attempt_in_words(row)}")
            print(_log_text(said[stem]) if stem in said else row["failure_message"] or "It printed nothing.")
        return COMPLETE
    if options.arm is not None:
        ordered = [(stem, row) for stem, row in ordered if row["arm"] == options.arm]
        if not ordered:
            raise UsageError(f"No attempt of study '{options.study}' is of arm '{options.arm}'.")
    fine = [stem for stem, row in ordered if row["status"] in ("ok", "pruned")]
    for stem, row in ordered:
        if stem not in fine or (options.all and stem in said):
            shown = _logs_command(options.study, row["trial"], options.storage) if stem in said else "no log"
            print(f"{_attempt_in_words(row)}  {shown}")
    quiet = 0 if options.all else len(said.keys() & set(fine))
    print(f"{len(ordered) - len(fine)} of {len(ordered)} attempts failed", end="")
    print(f"; {quiet} more printed something (--all)." if quiet else ".")
    return COMPLETE


def _log_text(path: Place) -> str:
    try:
        return read_file(path).decode(errors="backslashreplace")
    except OSError as error:
        return f"{path} cannot be read ({reason(error)})."


def _attempt_in_words(row: Mapping[str, Any]) -> str:
    """Trial, attempt, arm, replicate, what became of it and the first line of why."""
    what = row["failure_class"] if row["status"] == "failed" and row["failure_class"] else row["status"]
    why = f": {row['failure_message'].splitlines()[0]}" if row["failure_message"] else ""
    setting = "" if row["setting"] in ("", "{}") else f" {row['setting']}"
    place = f"  {row['arm']}{setting}, replicate {row['replicate']}" if row["arm"] else ""
    return f"{row['trial']} attempt {row['attempt']}{place}  {what}{why}"


def _logs_command(study: str, trial: str, storage: Place) -> str:
    return f"lnl logs {study} {trial}{storage_flag(storage)}"
