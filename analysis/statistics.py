"""Accuracies under a selection rule, t-based intervals, and differences between two arms.

Estimates work on the last axis, `(..., n)` values of n replicates; leading axes are batch.  The unit of analysis is one
replicate: one draw of noise, split and initial weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis import measures
from analysis.measures import ACCURACY
from lnl.storage.outcomes import accuracies, is_outcome
from lnl.storage.outcomes import diverged as diverged  # beside `outcome`

CONFIDENCE = 0.95
ROUNDING_ERROR = 1e-9  # of a fraction of test images: a smaller spread is the arithmetic's
PAIRING_HASHES = ("data_hash", "noise_hash", "split_hash")  # equal in both arms, else a replicate is not a pair
HASHES_AGREE = "data, noise and split hashes agree"
SELECTION_RULES = {
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
    """Return the rule itself.  Raises ValueError for an unknown one."""
    if selection not in SELECTION_RULES:
        raise ValueError(f"Unknown selection rule {selection!r}: choose one of {', '.join(SELECTION_RULES)}.")
    return selection


def shared_rule(selections: Iterable[str]) -> str:
    """The selection rule that rows share.  Raises ValueError where rows of two rules come together."""
    rules = sorted(set(selections))
    if len(rules) != 1:
        raise ValueError(
            f"A table or figure shows one selection rule; these rows come from {' and '.join(rules) or 'none'}: "
            "make one for each."
        )
    return check_selection(rules[0])


def is_finished(trials: pd.DataFrame) -> pd.Series:
    """Return whether each trial is finished: trained to its end, or diverged."""
    return is_outcome(trials).astype(bool)


def accuracy(trials: pd.DataFrame, selection: str) -> pd.Series:
    """Test accuracy per trial under a selection rule: see `lnl.storage.outcomes.accuracies`, as in the terminal."""
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
    """Return the unbiased variance on the last axis; NaN for one value."""
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
    from scipy.special import stdtr, stdtrit  # as slow to import as numpy, and reading results needs none of it

    error = np.sqrt(np.where(variance > ROUNDING_ERROR**2, variance, np.nan))
    half = stdtrit(freedom, 0.5 + CONFIDENCE / 2) * error
    p = 2 * stdtr(freedom, -np.abs(value / error))
    return Estimate(np.asarray(value), value - half, value + half, p, error, np.asarray(freedom))


def is_too_wide(low: float, high: float, metric: str = ACCURACY) -> bool:
    """Whether an interval of accuracies, or of their difference, says nothing: it is wider than all accuracies are.

    So of other metrics that lie in [0, 1].
    """
    return bool(high - low > 1) and measures.is_bounded(metric)


def correlation(values: ArrayLike, against: ArrayLike) -> float:
    """Return Pearson's correlation, NaN where three pairs or any spread is lacking."""
    values, against = np.asarray(values, dtype=float), np.asarray(against, dtype=float)
    if len(values) < 3 or np.ptp(values) == 0 or np.ptp(against) == 0:
        return float("nan")
    return float(np.corrcoef(values, against)[0, 1])


def measured(trials: pd.DataFrame, selection: str, metric: str) -> pd.Series:
    """Test accuracy per trial under a selection rule, or another metric, of which `trials` have a column for it."""
    return accuracy(trials, selection) if metric == ACCURACY else trials[metric]


def compare(arm: pd.DataFrame, against: pd.DataFrame, selection: str, metric: str = ACCURACY) -> Comparison:
    """One arm minus another in one setting, in accuracy or another metric, of which both have a column (`measured`).

    Paired by replicate where the stored hashes agree, else not: the choice looks at hashes alone, never at results.
    Replicates without a value are left out.
    """
    left, right = (
        rows.assign(score=measured(rows, selection, metric)).dropna(subset="score") for rows in (arm, against)
    )
    pairs = left.merge(right, on="replicate", suffixes=("", "_against")).sort_values("replicate")
    reason = disagreement([pairs[[name + end for name in PAIRING_HASHES]].to_numpy(object) for end in ("", "_against")])
    paired = not reason
    if paired:
        estimate = paired_difference(pairs["score"], pairs["score_against"])
        n, n_against = len(pairs), len(pairs)
        alone = len(left) + len(right) - 2 * len(pairs)
        reason = HASHES_AGREE + f"; {alone} replicates without a partner left out" * (alone > 0)
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

    `hashes`: those of `PAIRING_HASHES` of each arm, (..., 3), aligned by replicate, the first axis.

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
        for place, name in enumerate(PAIRING_HASHES)
        if not all(_agree(first[..., place], other[..., place]) for other in others)
    ]
    return f"{' and '.join(differing)} hashes differ or are absent" if differing else ""


def _agree(hashes: NDArray[np.object_], others: NDArray[np.object_]) -> bool:
    """Whether all hashes that both arms have are equal, and each setting has some.  (replicates, ...) twice."""
    known = pd.notna(hashes) & pd.notna(others)
    return bool(known.any(axis=0).all() and (hashes == others)[known].all())


def arm_table(trials: pd.DataFrame, reference: str, across: Sequence[str], selection: str) -> pd.DataFrame:
    """Every setting and arm of a panel: n, mean, interval, and the comparison with the reference arm in that setting.

    `trials`: as `Results.panel` gives them.  The comparison is empty for the reference itself.
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
    compared = [f"against_{name}" for name in Comparison._fields]
    return pd.DataFrame(rows, columns=[*across, "arm", "n", "mean", "low", "high", *compared])


def rule_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Each arm under every selection rule, a column for each: its mean; NaN where a trial has no value under the rule.

    `ahead_of_last`, `ahead_of_val_selected`: by how much the oracle `best_test` is ahead, the mean over replicates, and
    the largest as `…_most`.  `validation`: the labels that `val_selected` looked at.  `trials`: of one setting.
    """
    scores = pd.DataFrame({rule: accuracy(trials, rule) for rule in SELECTION_RULES})
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
    return pd.DataFrame(rows, columns=["arm", "n", "validation", *SELECTION_RULES, *columns])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
