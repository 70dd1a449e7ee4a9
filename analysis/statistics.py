"""Accuracies under a selection rule, t-based intervals, and differences between two arms.

Estimates work on the last axis, `(..., n)` values of n replicates; leading axes are batch.  The unit of analysis is one
replicate: one draw of noise, split and initial weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from lnl.results import accuracies, is_outcome
from lnl.results import diverged as diverged  # beside `outcome`

LEVEL = 0.95
ROUNDING = 1e-9  # of a fraction of test images: a smaller spread is the arithmetic's
PAIRING = ("data_hash", "noise_hash", "split_hash")  # equal in both arms, else a replicate is not a pair
AGREE = "data, noise and split hashes agree"
DRAWS = 2000  # of a bootstrap
BEST = (  # columns of `best_so_far`
    *("suggestions", "epochs", "expected_epochs", "number", "seen_validation", "seen_test"),
    *("validation", "validation_low", "validation_high", "test", "test_low", "test_high"),
)
MATTERS = 0.005  # a lead in test accuracy that makes an order
SELECTION = {
    "last": "at the last epoch",
    "last10": "averaged over the last ten epochs",
    "val_selected": "at the epoch with the best validation accuracy",
    "best_test": "at its best epoch, an oracle: the epoch is chosen by looking at the test set",
}


class Estimate(NamedTuple):
    """A mean or a difference of means with its 95 % interval; `p` is two-sided, against zero.  Shapes `(...)`."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]  # NaN where one replicate, or replicates that all agree, allow no interval
    high: NDArray[np.float64]
    p: NDArray[np.float64]
    error: NDArray[np.float64]  # standard error, NaN where there is no interval
    freedom: NDArray[np.float64]  # degrees of freedom of its t distribution


class Comparison(NamedTuple):
    """One arm minus another."""

    difference: float
    low: float
    high: float
    p: float
    n: int  # replicates of the arm: pairs, where paired
    n_against: int
    correlation: float  # of the pairs; NaN below three of them
    paired: bool
    reason: str  # why it is paired or not, for the reader
    error: float  # standard error of the difference
    freedom: float


def check_selection(selection: str) -> str:
    """The rule itself.  Raises ValueError for an unknown one."""
    if selection not in SELECTION:
        raise ValueError(f"Unknown selection rule {selection!r}: choose one of {', '.join(SELECTION)}.")
    return selection


def only_rule(selections: Iterable[str]) -> str:
    """The selection rule that rows share.  Raises ValueError where rows of two rules come together."""
    rules = sorted(set(selections))
    if len(rules) != 1:
        raise ValueError(
            f"A table or figure shows one selection rule; these rows come from {' and '.join(rules) or 'none'}: "
            "make one for each."
        )
    return check_selection(rules[0])


def outcome(trials: pd.DataFrame) -> pd.Series:
    """Trials that are finished: trained to their end, or diverged."""
    return is_outcome(trials).astype(bool)


def accuracy(trials: pd.DataFrame, selection: str) -> pd.Series:
    """Test accuracy per trial under a selection rule: see `lnl.results.accuracies`, which the terminal uses, too."""
    return accuracies(trials, check_selection(selection))


def at_chance(trials: pd.DataFrame) -> pd.Series:
    """Diverged trials that count as chance: all but those of earlier versions of whose classes nothing tells."""
    return diverged(trials) & accuracy(trials, "last").notna()


def mean(values: ArrayLike) -> Estimate:
    """Mean over the last axis with Student's t interval, n - 1 degrees of freedom."""
    values = np.asarray(values, dtype=float)
    n = values.shape[-1]
    return t_interval(values.mean(-1), variance(values) / n, np.asarray(n - 1.0))


def paired_difference(values: ArrayLike, against: ArrayLike) -> Estimate:
    """Mean of `values - against`, replicate by replicate, with the t interval of the differences."""
    return mean(np.asarray(values, dtype=float) - np.asarray(against, dtype=float))


def welch_difference(values: ArrayLike, against: ArrayLike) -> Estimate:
    """Difference of two independent means; Welch (1947), Satterthwaite's degrees of freedom."""
    values, against = np.asarray(values, dtype=float), np.asarray(against, dtype=float)
    counts = values.shape[-1], against.shape[-1]
    variances = [variance(side) / count for side, count in zip((values, against), counts, strict=True)]
    difference, total = values.mean(-1) - against.mean(-1), np.asarray(sum(variances))
    return t_interval(difference, total, satterthwaite(variances, counts))


def variance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unbiased variance on the last axis; NaN for one value."""
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(values.var(-1, ddof=1))


def satterthwaite(variances: Sequence[NDArray[np.float64]], counts: Sequence[int]) -> NDArray[np.float64]:
    """Degrees of freedom of a sum of independent estimates with these variances (1946), each of so many replicates.

    Those of all together where nothing varies.  Shapes broadcast.
    """
    total = np.asarray(sum(variances))
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = sum(each**2 / (count - 1) for each, count in zip(variances, counts, strict=True))
        return np.where(total > 0, total**2 / parts, float(sum(counts) - len(counts)))


def t_interval(value: NDArray[np.float64], variance: NDArray[np.float64], freedom: NDArray[np.float64]) -> Estimate:
    """An estimate with this variance.  Without spread there is no interval: few replicates on few test images can
    agree by chance."""
    error = np.sqrt(np.where(variance > ROUNDING**2, variance, np.nan))
    half = stdtrit(freedom, 0.5 + LEVEL / 2) * error
    p = 2 * stdtr(freedom, -np.abs(value / error))
    return Estimate(np.asarray(value), value - half, value + half, p, error, np.asarray(freedom))


def correlation(values: ArrayLike, against: ArrayLike) -> float:
    """Pearson's, NaN where three pairs or any spread is lacking."""
    values, against = np.asarray(values, dtype=float), np.asarray(against, dtype=float)
    if len(values) < 3 or np.ptp(values) == 0 or np.ptp(against) == 0:
        return float("nan")
    return float(np.corrcoef(values, against)[0, 1])


def compare(arm: pd.DataFrame, against: pd.DataFrame, selection: str) -> Comparison:
    """Accuracy of one arm minus another's in one setting: paired by replicate where the stored hashes agree, else not.

    The choice looks at hashes alone, never at results.  Replicates without an accuracy are left out.
    """
    left, right = (rows.assign(score=accuracy(rows, selection)).dropna(subset="score") for rows in (arm, against))
    pairs = left.merge(right, on="replicate", suffixes=("", "_against")).sort_values("replicate")
    reason = disagreement([pairs[[name + end for name in PAIRING]].to_numpy(object) for end in ("", "_against")])
    paired = not reason
    if paired:
        estimate = paired_difference(pairs["score"], pairs["score_against"])
        n, n_against = len(pairs), len(pairs)
        alone = len(left) + len(right) - 2 * len(pairs)
        reason = AGREE + f"; {alone} replicates without a partner left out" * (alone > 0)
        rho = correlation(pairs["score"], pairs["score_against"])
    else:
        n, n_against, rho = len(left), len(right), float("nan")
        estimate = (
            welch_difference(left["score"], right["score"]) if n and n_against else Estimate(*[np.asarray(np.nan)] * 6)
        )
    difference, low, high, p, error, freedom = map(float, estimate)
    return Comparison(difference, low, high, p, n, n_against, rho, paired, reason, error, freedom)


def disagreement(hashes: Sequence[NDArray[np.object_]]) -> str:
    """Why replicates that arms share cannot be compared one by one; empty where they can.

    `hashes`: those of `PAIRING` of each arm, (..., 3), aligned by replicate, the first axis.

    A hash may be absent: earlier versions did not store those of a trial that diverged in its first epoch.  It says
    neither yes nor no, and the other replicates decide: a draw is a function of the configuration and the replicate's
    number, so arms whose draws agree in one replicate draw alike in all.  Divergence thus never changes the test.
    Where an arm has no hash at all nothing is known to agree, and it stays unpaired; all its trials diverged then and
    count the same, for which Welch's test and the paired one are equal.
    """
    first, *others = hashes
    if not len(first):
        return "the arms have no replicate in common"
    differing = [
        name.removesuffix("_hash")
        for place, name in enumerate(PAIRING)
        if not all(_agree(first[..., place], other[..., place]) for other in others)
    ]
    return f"{' and '.join(differing)} hashes differ or are absent" if differing else ""


def _agree(hashes: NDArray[np.object_], others: NDArray[np.object_]) -> bool:
    """Whether all hashes that both arms have are equal, and each setting has some.  (replicates, ...) twice."""
    known = pd.notna(hashes) & pd.notna(others)
    return bool(known.any(axis=0).all() and (hashes == others)[known].all())


def arm_table(trials: pd.DataFrame, reference: str, across: Sequence[str], selection: str) -> pd.DataFrame:
    """Every setting and arm of a panel: n, mean, interval, and the comparison with the reference arm in that setting.

    `trials`: as `Study.panel` gives them.  The comparison is empty for the reference itself.
    """
    scored = trials.assign(accuracy=accuracy(trials, selection)).dropna(subset="accuracy")
    rows = []
    for cell, group in scored.groupby([*across, "arm"], observed=True):
        *setting, arm = cell
        row = {**dict(zip(across, setting, strict=True)), "arm": arm, "n": len(group)}
        row.update(zip(("mean", "low", "high"), map(float, mean(group["accuracy"])[:3]), strict=True))
        if arm != reference:
            here = scored[(scored[list(across)] == setting).all(axis=1)]
            comparison = compare(group, here[here["arm"] == reference], selection)
            row.update({f"against_{name}": value for name, value in comparison._asdict().items()})
        rows.append(row)
    measured = [f"against_{name}" for name in Comparison._fields]
    return pd.DataFrame(rows, columns=[*across, "arm", "n", "mean", "low", "high", *measured])


def rule_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Each arm under every selection rule, a column for each: its mean; NaN where a trial has no value under the rule.

    `ahead_of_last`, `ahead_of_val_selected`: by how much the oracle `best_test` is ahead, the mean over replicates, and
    the largest as `…_most`.  `validation`: the labels that `val_selected` looked at.  `trials`: of one setting.
    """
    scores = pd.DataFrame({rule: accuracy(trials, rule) for rule in SELECTION})
    ahead = {f"ahead_of_{rule}": scores["best_test"] - scores[rule] for rule in ("last", "val_selected")}
    rows = []
    for arm, group in trials.groupby("arm", sort=False, observed=True):
        means = scores.loc[group.index].mean(skipna=False)
        labels = " or ".join(sorted(set(group["validation_labels"].dropna())))
        row: dict[str, Any] = {"arm": arm, "n": len(group), "validation": labels, **means}
        for name, gaps in ahead.items():
            here = gaps[group.index]
            row |= {name: here.mean(skipna=False), f"{name}_most": here.max(skipna=False)}
        rows.append(row)
    columns = [name + end for name in ahead for end in ("", "_most")]
    return pd.DataFrame(rows, columns=["arm", "n", "validation", *SELECTION, *columns])


# ------------------------------------------------------------------------------------------------------------ searches


def best_so_far(suggestions: pd.DataFrame) -> pd.DataFrame:
    """What k = 1 … N suggestions of one search buy: accuracy of the one that validation chooses among the first k.

    `validation` and `test` are expectations over all orders in which the N - 1 others could have come, the arm's own
    values always first: Dodge et al. 2019, "Show Your Work", but without replacement, and with the default in every
    draw.  It takes suggestions as exchangeable, which those of an adaptive sampler are not: `seen_validation` and
    `seen_test` follow the order in which they came (NaN where nothing can be chosen yet: a pruned one never is).
    `low` and `high`: 95 % percentile bootstrap over the others, so they tell how much hung on which suggestions were
    drawn; no resample can beat the best one, so near N they are too narrow upwards.  Ties go to the lower number.
    `epochs`: trained by then; `expected_epochs`: the expectation.

    `suggestions`: those of one search, as `Study.suggestions` gives them.
    """
    rows = suggestions[suggestions["counts"]].sort_values(["own", "number"], ascending=[False, True], ignore_index=True)
    count = len(rows)
    if not count:
        return pd.DataFrame(columns=BEST, dtype=float)
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
    draws = np.sort(np.random.default_rng(0).integers(max(count - 1, 1), size=(DRAWS, count - 1)), axis=1)
    for name, column in (("validation", "accuracy"), ("test", "test")):
        score = np.where(complete, rows[column].to_numpy(float), np.nan)
        chosen = np.where(np.arange(count - 1) < better, score[order], score[:1])  # else the default is
        frame[name] = np.concatenate([score[:1], _expectation(chosen[None], weights)[0]])
        low, high = np.quantile(_expectation(chosen[draws], weights), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
        frame[f"{name}_low"], frame[f"{name}_high"] = np.append(score[:1], low), np.append(score[:1], high)
    return frame[list(BEST)]


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

    `curves`: name -> `best_so_far`, all in one setting.  Only leads in expected test accuracy of more than `MATTERS`
    count, on both sides.  `first` to `until`: budgets at which `early` leads, by at most `lead`; `late` leads from
    `since` on, by `final_lead` at `budget`.
    """
    rows = []
    for one, other in combinations(curves, 2):
        budget = min(len(curves[one]), len(curves[other]))
        difference = (curves[one]["test"][:budget] - curves[other]["test"][:budget]).to_numpy()
        if not budget or not abs(difference[-1]) > MATTERS:
            continue
        late, early = (one, other) if difference[-1] > 0 else (other, one)
        lead = difference * np.sign(difference[-1])  # of the late one
        before, behind = np.flatnonzero(lead < -MATTERS), np.flatnonzero(~(lead > MATTERS))
        if len(before):
            rows.append(
                [early, late, before[0] + 1, before[-1] + 1, -lead[before].min(), behind[-1] + 2, budget, lead[-1]]
            )
    names = ["early", "late", "first", "until", "lead", "since", "budget", "final_lead"]
    return pd.DataFrame(rows, columns=names).sort_values("lead", ascending=False, kind="stable", ignore_index=True)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
