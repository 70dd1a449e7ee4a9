"""Where results are: folders and object stores, partitions, names of parts and attempts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lnl.storage import objects
from lnl.storage.filenames import file_name
from lnl.storage.objects import ObjectPath
from lnl.system import machine

Place = Path | ObjectPath


def place(text: str | Path | ObjectPath) -> Place:
    """Where results are: an absolute folder, or a prefix on S3-compatible storage.  Raises `ValueError`."""
    if isinstance(text, ObjectPath):
        return text
    if str(text).startswith(f"{objects.SCHEME}:/"):
        return objects.parse(str(text))
    if "://" in str(text):
        raise ValueError(
            "A storage is a folder or s3://bucket/prefix, and no other address: other clouds have an S3-compatible "
            "endpoint, too (AWS_ENDPOINT_URL)."
        )
    return machine.expanded(text).resolve()


STORAGE = "results"  # below the current folder, where neither a flag nor a variable says another place


def default_storage() -> str:
    """Where commands without `--storage` look for results."""
    return os.environ.get("LNL_STORAGE", STORAGE)


def storage_flag(root: Place) -> str:
    """What a command needs to look there, too, whoever gives it later: the variable need not be set for them."""
    here = "LNL_STORAGE" not in os.environ and root == place(STORAGE)
    return "" if here else f" --storage {shlex.quote(str(root))}"


def now() -> datetime:
    """With its time zone, UTC, as the tables store it."""
    return datetime.now(UTC)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def partition(study: str) -> str:
    """The folder of a study's rows, below that of their table."""
    return f"study={file_name(study)}"


def attempt_name(trial: str, attempt: int) -> str:
    """Of an attempt's files, without their ending."""
    return f"{trial}-{attempt}"


def parse_attempt(name: str) -> tuple[str, int] | None:
    """Trial and attempt of a name that `attempt_name` made; None for any other."""
    trial, _, attempt = name.rpartition("-")
    return (trial, int(attempt)) if re.fullmatch("[1-9][0-9]*", attempt) and trial else None


def part_name(table: str, *key: Any) -> str:
    """How a part with rows of this key (see `PART_KEYS`) is called, without its ending; of events how that begins."""
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


def _is_named(table: str, stem: str, *key: Any) -> bool:
    """Whether rows of this key belong into a part of this name: copies of parts and foreign parts are told so."""
    if holds_many(stem):
        return True
    if None in key:
        return False
    name = part_name(table, *key)
    if table == "events":
        return stem.startswith(name) and re.fullmatch("[0-9a-f]{12}", stem.removeprefix(name)) is not None
    return stem == name or (table == "studies" and stem == "-".join(map(str, key)))  # as earlier versions named plans


def short_hash(text: str) -> str:
    """12 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
