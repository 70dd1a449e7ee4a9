"""Whose replicates are which: a study's own are those below 1,000, its searches' the next, then every night has 1,000.

So nights are independent draws of a study, live in one results folder, and never share a trial.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

FIRST, LAST = date(2020, 1, 1), date(7000, 1, 1)  # replicates are stored as int32
REPLICATES_PER_NIGHT = 1000  # the most that a plan may ask for


def parse(text: str) -> date:
    """An ISO date, or `today`, in UTC.  Raises `ValueError` for anything else, and for dates out of range."""
    if text == "today":
        return datetime.now(UTC).date()
    try:
        night = date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"'{text}' is no night: give a date such as 2026-11-21, or today.") from None
    first_replicate(night)
    return night


def first_replicate(night: date | None) -> int:
    """Of a night; of the study itself where there is none.  Raises `ValueError` for dates out of range."""
    if night is None:
        return 0
    if not FIRST <= night <= LAST:
        raise ValueError(f"Nights are counted from {FIRST} to {LAST}: {night} is none of them.")
    return ((night - FIRST).days + 2) * REPLICATES_PER_NIGHT
