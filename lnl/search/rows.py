"""The rows of table `suggestions`: read, chosen by cell, and turned into Optuna's trials."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from lnl.search.optuna_objects import distribution
from lnl.storage.currency import BY_CODE, why_stale
from lnl.storage.store import Store
from lnl.storage.tables import tell_left_out
from lnl.study.plan import Cell
from lnl.trial.provenance import Current

SUGGESTION_COLUMNS = ["search", "number", "state", "params", "values", "trials", "curve", "message", "refused", "space"]
SUGGESTION_COLUMNS += ["code_hash", "sources_hash"]


def on_current_data(rows: pd.DataFrame, cell: Cell, current: Current) -> pd.DataFrame:
    """A cell's suggestions that were scored on the data that are there now, as far as that is known."""
    stale = why_stale(rows.assign(trial=cell.name), {cell.name: current.sources(cell.trial)})
    return rows[stale.isin(["", *BY_CODE])].reset_index(drop=True)


def all_rows(store: Store, study: str) -> pd.DataFrame:
    """The readable suggestions of a study's searches."""
    rows, broken = store.read("suggestions", study, SUGGESTION_COLUMNS)
    tell_left_out(broken)
    return rows


def rows_of(rows: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """Those of one cell, by number."""
    return rows[rows["search"] == cell.name].sort_values("number", ignore_index=True)


def winner(rows: pd.DataFrame) -> pd.Series | None:
    """The most accurate complete suggestion, of equals the first; None where there is none."""
    complete = rows[rows["state"] == "complete"]
    if complete.empty:
        return None
    return complete.iloc[int(np.argmax([values[0] for values in complete["values"]]))]


def frozen_trials(rows: pd.DataFrame, cell: Cell) -> list[FrozenTrial]:
    """A cell's rows as Optuna's trials; a number without a row (its driver was lost) is one that failed."""
    distributions = {key: distribution(space) for key, space in cell.space.items()}
    by_number: dict[int, Any] = {int(row["number"]): row for _, row in rows.iterrows()}
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    trials = []
    for number in range(max(by_number, default=-1) + 1):
        row = by_number.get(number)
        if row is None:
            trials.append(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"failure": "no row"}))
            continue
        params = json.loads(row["params"])
        curve = json.loads(row["curve"]) if isinstance(row["curve"], str) else {}
        trials.append(
            optuna.trial.create_trial(
                state=states[row["state"]],
                params=params,
                distributions={key: distributions[key] for key in params},
                values=list(row["values"]) if row["state"] == "complete" else None,
                intermediate_values={int(epoch): value for epoch, value in curve.items()},
                user_attrs={"trials": list(row["trials"])},
            )
        )
    return trials
