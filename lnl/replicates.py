"""Ranges of replicate indices: 0-999 of a study, 1000-1999 of its searches, then 1000 for each night.

So nights are independent draws of a study, share one results folder, and never share a trial.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

FIRST, LAST = date(2020, 1, 1), date(7000, 1, 1)  # replicates are stored as int32
REPLICATES_PER_NIGHT = 1000  # the most that a plan may ask for


def parse(text: str) -> date:
    """Read an ISO date, or `today` (in UTC).  Raises `ValueError` for anything else, and for dates out of range."""
    if text == "today":
        return datetime.now(UTC).date()
    try:
        night = date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a date: give one such as 2026-11-21, or today.") from None
    first_replicate(night)
    return night


def first_replicate(night: date | None) -> int:
    """The first replicate index of a night, or of the study itself (None).  Raises `ValueError` out of range."""
    if night is None:
        return 0
    if not FIRST <= night <= LAST:
        raise ValueError(f"A night must be between {FIRST} and {LAST}, not {night}.")
    return ((night - FIRST).days + 2) * REPLICATES_PER_NIGHT
