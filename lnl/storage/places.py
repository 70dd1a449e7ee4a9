"""Where results are: `place` makes a folder or a prefix on S3 of what a user gives.

Beside it the small things that everything stored has in common: `now`, `canonical` JSON, `short_hash`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lnl.storage import objects
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
    """The flag with which a command finds these results, also for somebody who has not set the variable."""
    is_default = "LNL_STORAGE" not in os.environ and root == place(STORAGE)
    return "" if is_default else f" --storage {shlex.quote(str(root))}"


def now() -> datetime:
    """With its time zone, UTC, as the tables store it."""
    return datetime.now(UTC)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def short_hash(text: str) -> str:
    """12 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
