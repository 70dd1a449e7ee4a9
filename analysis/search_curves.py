"""What a search buys with its budget: the best value so far, and rankings that turn with the number of suggestions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics import CONFIDENCE
from lnl.storage.outcomes import diverged as diverged  # beside `outcome`

BOOTSTRAP_DRAWS = 2000  # of a bootstrap
BEST_SO_FAR_COLUMNS = (  # columns of `best_so_far`
    *("suggestions", "epochs", "expected_epochs", "number", "seen_validation", "seen_test"),
    *("validation", "validation_low", "validation_high", "test", "test_low", "test_high"),
)
LEAST_LEAD = 0.005  # a lead in test accuracy that makes an order


def best_so_far(suggestions: pd.DataFrame) -> pd.DataFrame:
    """What k = 1 … N suggestions of one search buy: accuracy of the one that validation chooses among the first k.

    `validation` and `test` are expectations over all orders in which the N - 1 others could have come, the arm's own
    values always first: Dodge et al. 2019, "Show Your Work", but without replacement, and with the default in every
    draw.  It takes suggestions as exchangeable, which those of an adaptive sampler are not: `seen_validation` and
    `seen_test` follow the order in which they came (NaN where nothing can be chosen yet: a pruned one never is).
    `low` and `high`: 95 % percentile bootstrap over the others, so they tell how much hung on which suggestions were
    drawn; no resample can beat the best one, so near N they are too narrow upwards.  Ties go to the lower number.
    `epochs`: trained by then; `expected_epochs`: the expectation.

    `suggestions`: those of one search, as `Results.suggestions` gives them.
    """
    rows = suggestions[suggestions["counts"]].sort_values(["own", "number"], ascending=[False, True], ignore_index=True)
    count = len(rows)
    if not count:
        return pd.DataFrame(columns=BEST_SO_FAR_COLUMNS, dtype=float)
    complete = (rows["state"] == "complete") & rows["accuracy"].notna()
    value = np.where(complete, rows["accuracy"], -np.inf)
    leader = [int(np.argmax(value[: k + 1])) for k in range(count)]  # the first of equals
    some = np.isfinite(value[leader])
    frame = pd.DataFrame({"suggestions": np.arange(1, count + 1), "epochs": rows["epochs"].cumsum()})
    frame["expected_epochs"] = rows["epochs"].iloc[:1].sum() + np.arange(count) * rows["epochs"].iloc[1:].mean()
    frame["expected_epochs"] = frame["expected_epochs"].fillna(rows["epochs"].sum())
    frame["number"] = rows["number"].to_numpy()[leader]
    for name, column in (("validation", "accuracy"), ("test", "test")):
        frame[f"seen_{name}"] = np.where(some, rows[column].to_numpy(float)[leader], np.nan)
    order = 1 + np.argsort(-value[1:], kind="stable")  # the others, best first, the lower number first of equals
    better = int((value[order] > value[:1]).sum())  # of them better than the default
    weights = _shares_of_best(count - 1)
    draws = np.sort(np.random.default_rng(0).integers(max(count - 1, 1), size=(BOOTSTRAP_DRAWS, count - 1)), axis=1)
    for name, column in (("validation", "accuracy"), ("test", "test")):
        score = np.where(complete, rows[column].to_numpy(float), np.nan)
        chosen = np.where(np.arange(count - 1) < better, score[order], score[:1])  # else the default is
        frame[name] = np.concatenate([score[:1], _expectation(chosen[None], weights)[0]])
        low, high = np.quantile(
            _expectation(chosen[draws], weights), [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], axis=0
        )
        frame[f"{name}_low"], frame[f"{name}_high"] = np.append(score[:1], low), np.append(score[:1], high)
    return frame[list(BEST_SO_FAR_COLUMNS)]


def _shares_of_best(others: int) -> NDArray[np.float64]:
    """P(the best of m drawn from n without replacement is the one of rank r), (m - 1, r), both from 0: (n, n)."""
    shares = np.zeros((others, others))
    for drawn in range(1, others + 1):
        share = drawn / others
        for rank in range(others - drawn + 1):
            shares[drawn - 1, rank] = share
            share *= 1 - (drawn - 1) / (others - 1 - rank) if rank < others - 1 else 0
    return shares


def _expectation(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, n) values under (K, n) weights -> (R, K); NaN where one with weight is."""
    absent = np.isnan(values)
    return np.where(absent.astype(float) @ weights.T > 0, np.nan, np.where(absent, 0, values) @ weights.T)


def ranking_flips(curves: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Pairs of searches whose order at some budget is not that at the largest budget that both have.

    `curves`: name -> `best_so_far`, all in one setting.  Only leads in expected test accuracy of more than `LEAST_LEAD`
    count, on both sides.  `first` to `until`: budgets at which `early` leads, by at most `lead`; `late` leads from
    `since` on, by `final_lead` at `budget`.
    """
    rows = []
    for first, second in combinations(curves, 2):
        budget = min(len(curves[first]), len(curves[second]))
        difference = (curves[first]["test"][:budget] - curves[second]["test"][:budget]).to_numpy()
        if not budget or not abs(difference[-1]) > LEAST_LEAD:
            continue
        late, early = (first, second) if difference[-1] > 0 else (second, first)
        lead = difference * np.sign(difference[-1])  # of the late one
        before, behind = np.flatnonzero(lead < -LEAST_LEAD), np.flatnonzero(~(lead > LEAST_LEAD))
        if len(before):
            rows.append(
                [early, late, before[0] + 1, before[-1] + 1, -lead[before].min(), behind[-1] + 2, budget, lead[-1]]
            )
    names = ["early", "late", "first", "until", "lead", "since", "budget", "final_lead"]
    return pd.DataFrame(rows, columns=names).sort_values("lead", ascending=False, kind="stable", ignore_index=True)
