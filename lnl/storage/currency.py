"""Which finished attempt of a trial is current: the newest of the present code and data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from lnl.storage.outcomes import is_outcome
from lnl.storage.places import canonical


class Sources(NamedTuple):
    """The code and the data that a trial would use now, as hashes; None: not known on this machine."""

    code_hash: str
    data_hash: str | None
    sources_hash: str | None


def sources_text(current: Mapping[str, Sources]) -> str:
    """What trials and searches would use, as JSON: each distinct triple of hashes once, and which of them each uses."""
    distinct = list(dict.fromkeys(current.values()))
    place = {sources: index for index, sources in enumerate(distinct)}
    return canonical({"sources": distinct, "of": {name: place[sources] for name, sources in current.items()}})


def sources_from(text: str | None) -> dict[str, Sources]:
    """What `sources_text` wrote; nothing where a plan of an earlier version has none."""
    if not isinstance(text, str):
        return {}
    record = json.loads(text)
    distinct = [Sources(*hashes) for hashes in record["sources"]]
    return {name: distinct[place] for name, place in record["of"].items()}


CHANGED_CODE, CHANGED_DATA, CHANGED_SOURCES = "code", "data set", "human labels or prerequisites' data"
CHANGED_RULE = "rule for comparing code"  # an earlier version hashed other parts of it: whether it changed is not known
BY_CODE = (CHANGED_CODE, CHANGED_RULE)  # reasons that leave the data as they are


def why_stale(trials: pd.DataFrame, current: Mapping[str, Sources]) -> pd.Series:
    """What has changed since each attempt ran, one of `CHANGED_…`; empty where nothing has that is known of.

    `current`: of trials, what they would use now.  An attempt whose row lacks a hash (it diverged in its first epoch,
    or was written by an earlier version) is judged by those that it has.  Rows of data come before code: numbers of
    other data never stand beside current ones, those of other code may.
    """
    sources = [current.get(trial) for trial in trials["trial"]]
    reason = pd.Series("", trials.index, dtype=object)
    for name, why in (
        ("code_hash", CHANGED_CODE),
        ("sources_hash", CHANGED_SOURCES),
        ("data_hash", CHANGED_DATA),
    ):
        present = pd.Series([each and getattr(each, name) for each in sources], trials.index, dtype=object)
        stored = trials[name] if name in trials else pd.Series(None, trials.index, dtype=object)
        changed = present.notna() & stored.notna() & (present != stored)
        reason[changed] = why
        if why == CHANGED_CODE:
            reason[changed & (present.map(_hash_rule) != stored.map(_hash_rule))] = CHANGED_RULE
    return reason


def latest(trials: pd.DataFrame, current: Mapping[str, Sources]) -> pd.DataFrame:
    """One row per trial, the attempt that counts, with the column `stale` (see `why_stale`).

    Among finished attempts (`ok`, or failed as an outcome) the newest of the current code and data, else the newest of
    the current data, else the newest; where none is finished the newest attempt.
    """
    trials = trials.assign(stale=why_stale(trials, current))
    if trials.empty:
        return trials
    rank = is_outcome(trials) * (1 + trials["stale"].isin(["", *BY_CODE]) + (trials["stale"] == ""))
    order = trials.assign(_rank=rank).sort_values(["_rank", "attempt"], kind="stable")
    return order.groupby("trial", sort=False).tail(1).drop(columns="_rank").sort_index()


def _hash_rule(code_hash: object) -> str:
    """The prefix of a code hash, see `lnl.trial.code_hash.RULE`; earlier versions wrote none."""
    match = re.match(r"\d+-", code_hash) if isinstance(code_hash, str) else None
    return match.group() if match else ""
