"""Names of the files and folders that a table consists of.

A table is a folder of *parts*, each with rows of one key (see `schema.PART_KEYS`): `part_name` makes a part's name from
the key, and `names_rows` tells whether a name belongs to a key, so that copies of parts and foreign parts are found.
Parts of attempts lie in a partition for each study (`partition`, `study_of`).
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from lnl.storage.filenames import file_name
from lnl.storage.places import Place, short_hash

PREFIX = "study="
Kept = Literal["predictions", "beliefs", "weights"]  # what trials keep on request, each in a folder of its name
KEPT: tuple[Kept, ...] = get_args(Kept)


def partition(study: str) -> str:
    """The name of the folder of a study, below that of a table."""
    return f"{PREFIX}{file_name(study)}"


def study_of(path: Place) -> str | None:
    """The study (as `file_name` has it) whose partition a file lies in; None where it lies in none."""
    name = path.parent.name
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


def attempt_name(trial: str, attempt: int) -> str:
    """The name of an attempt's files, without their ending."""
    return f"{trial}-{attempt}"


def parse_attempt(name: str) -> tuple[str, int] | None:
    """Trial and attempt of a name that `attempt_name` made; None for any other."""
    trial, _, attempt = name.rpartition("-")
    return (trial, int(attempt)) if re.fullmatch("[1-9][0-9]*", attempt) and trial else None


def part_name(table: str, *key: Any) -> str:
    """The name of the part with rows of this key, without its ending; of a part of `events` how that begins."""
    if table == "suggestions":
        search, number = key
        return f"{short_hash(search)}-{number}"
    if table == "events":
        at, kind = key
        return f"{at:%Y%m%dT%H%M%S}-{kind}-"
    if table == "studies":
        study, preset, plan_hash = key
        return f"{file_name(f'{study}-{preset}')}-{plan_hash}"
    return attempt_name(*key)


def holds_many(stem: str) -> bool:
    """Whether a part of this name, which has no dash, may hold rows of any key."""
    return "-" not in stem


def names_rows(table: str, stem: str, *key: Any) -> bool:
    """Whether rows of this key belong into a part of this name."""
    if holds_many(stem):
        return True
    if None in key:
        return False
    name = part_name(table, *key)
    if table == "events":
        return stem.startswith(name) and re.fullmatch("[0-9a-f]{12}", stem.removeprefix(name)) is not None
    return stem == name or (table == "studies" and stem == "-".join(map(str, key)))  # as earlier versions named plans
