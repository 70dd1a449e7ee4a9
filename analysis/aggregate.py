"""Statistics across settings: interquartile means, profiles, probabilities of improvement, and ranks.

The unit of analysis is one replicate, here through all settings: what a replicate's runs give together is one number,
and intervals are over replicates.  So nothing is assumed of how the settings of one replicate hang together, and arms
stay paired.  Coverage of the 95 % intervals is simulated in tests/analysis/test_aggregate.py, for n = 4, 6 and 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, stdtrit
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from analysis import statistics
from analysis.results import Results
from analysis.statistics import CONFIDENCE, HASHES_AGREE, PAIRING_HASHES, ROUNDING_ERROR, Estimate
from lnl.storage.places import canonical

FEWEST_SETTINGS = 5  # that a critical difference needs
FEWEST_ARMS = 3
IQM_COLUMNS = (  # columns of `interquartile_means`
    *("arm", "n", "iqm", "low", "high"),
    *("against", "difference", "difference_low", "difference_high", "p", "pairs", "n_against", "paired", "reason"),
)
MOST_CANDIDATES = 500  # sets of settings, in the search for the largest part of a study without gaps
PROFILE_THRESHOLDS = 201  # of a performance profile, from the lowest accuracy to the highest


# ------------------------------------------------------------------------------------------------------------- numbers


def interquartile_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Mean of the middle half of the last axis, (..., N) -> (...); values at the quartiles count in part.

    Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
    """
    ordered = np.sort(np.asarray(values, dtype=float), axis=-1)
    edges = np.linspace(0, 1, ordered.shape[-1] + 1).clip(0.25, 0.75)
    return np.asarray(ordered @ np.diff(edges) / 0.5)


def proportion(scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean of shares and its 95 % interval, (..., n, S) scores in [0, 1] of n replicates -> three of (...).

    Korn & Graubard 1998: Clopper and Pearson's interval for as many independent runs as the spread of the replicates'
    means is worth, at most n × S.  It stays an interval where all replicates agree.  Simulated coverage is at least
    .95 where settings of a replicate are correlated by .3 or less, and .86 in the worst case, correlations of .8; that
    of a t interval falls to .2 for shares near 1.
    """
    scores = np.asarray(scores, dtype=float)
    means, runs = scores.mean(-1), float(scores.shape[-1] * scores.shape[-2])
    if (count := means.shape[-1]) < 2:
        return means.mean(-1), *[np.full(means.shape[:-1], np.nan)] * 2
    return _korn_graubard(means.mean(-1), statistics.variance(means) / count, runs, np.asarray(count - 1.0))


def _korn_graubard(
    share: NDArray[np.float64], variance: NDArray[np.float64], runs: float, freedom: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Korn and Graubard's interval from the variance of the share, with its degrees of freedom."""
    spread = variance > ROUNDING_ERROR**2
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(spread, share * (1 - share) / variance, np.inf)
    size = np.minimum(
        size * (stdtrit(runs - 1, 0.5 + CONFIDENCE / 2) / stdtrit(freedom, 0.5 + CONFIDENCE / 2)) ** 2, runs
    )
    hits, misses = share * size, (1 - share) * size
    tail = 0.5 - CONFIDENCE / 2
    low = np.where(hits > ROUNDING_ERROR, betaincinv(np.maximum(hits, ROUNDING_ERROR), misses + 1, tail), 0.0)
    high = np.where(misses > ROUNDING_ERROR, betaincinv(hits + 1, np.maximum(misses, ROUNDING_ERROR), 1 - tail), 1.0)
    return share, low, high


def wins(values: ArrayLike, against: ArrayLike) -> NDArray[np.float64]:
    """1 where a value is higher, 1/2 where they are equal, else 0; shapes broadcast."""
    difference = np.asarray(values, dtype=float) - np.asarray(against, dtype=float)
    return np.where(np.abs(difference) <= ROUNDING_ERROR, 0.5, (difference > 0).astype(float))


def paired_improvement(
    values: ArrayLike, against: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Share of pairs that are better, ties as half: (n, S) each -> by setting (S,), then their mean, low and high."""
    won = wins(values, against)
    return won.mean(0), *proportion(won)


def unpaired_improvement(
    values: ArrayLike, against: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mann and Whitney's P(value > against), ties as half: (n, S), (m, S) -> by setting, then their mean, low, high.

    The variance is that of DeLong et al. 1988, from each replicate's mean over settings and partners.
    """
    values, against = np.asarray(values, dtype=float), np.asarray(against, dtype=float)
    won = wins(values[:, None], against[None])  # (n, m, S)
    sides = [(won.mean((1, 2)), len(values)), (won.mean((0, 2)), len(against))]
    share = np.asarray(won.mean())
    if min(len(values), len(against)) < 2:
        return won.mean((0, 1)), share, *[np.asarray(np.nan)] * 2
    parts = [statistics.variance(means) / count for means, count in sides]
    freedom = statistics.satterthwaite(parts, [count for _, count in sides])
    return won.mean((0, 1)), *_korn_graubard(share, np.asarray(sum(parts)), float(values.size), freedom)


class Ranking(NamedTuple):
    """Arms by their mean rank over settings, 1 the best."""

    ranks: NDArray[np.float64]  # (A,)
    statistic: float  # Friedman's, with its correction for ties
    p: float
    difference: float  # of mean ranks that Nemenyi's test calls different at .05
    groups: list[tuple[int, ...]]  # arms that it cannot tell apart, best first; arms in none differ from all others


def rank(scores: ArrayLike) -> Ranking:
    """Friedman's test of (S, A) scores, higher is better, then Nemenyi's critical difference (Demšar 2006).

    Groups are the largest runs of neighbouring ranks that differ by less than the critical difference; all arms are
    one group where Friedman's test does not reject that they are alike.  Friedman's chi-square is conservative for few
    settings.
    """
    scores = np.asarray(scores, dtype=float)
    settings, arms = scores.shape
    ranks = rankdata(-_rounded(scores), axis=1).mean(0)
    alike = bool((np.ptp(_rounded(scores), axis=1) == 0).all())
    statistic, p = (0.0, 1.0) if alike else map(float, friedmanchisquare(*_rounded(scores).T))
    quantile = float(studentized_range.ppf(CONFIDENCE, arms, np.inf)) / np.sqrt(2)
    difference = quantile * float(np.sqrt(arms * (arms + 1) / (6 * settings)))
    order = np.argsort(ranks, kind="stable")
    return Ranking(ranks, statistic, p, difference, _groups(ranks, order, difference if p < 1 - CONFIDENCE else np.inf))


def _groups(ranks: NDArray[np.float64], order: NDArray[np.intp], difference: float) -> list[tuple[int, ...]]:
    """Maximal runs of at least two arms, in the order of their ranks, within less than the difference."""
    groups, reached = [], 0
    for first in range(len(order)):
        end = first + int((ranks[order[first:]] - ranks[order[first]] < difference).sum())
        if end > max(reached, first + 1):  # else a run that began earlier holds it
            groups.append(tuple(int(arm) for arm in order[first:end]))
            reached = end
    return groups


def linear(cells: Sequence[ArrayLike], coefficients: ArrayLike, paired: bool) -> Estimate:
    """Weighted sums of the means of C cells, (..., C) coefficients -> `(...)`, with 95 % t intervals.

    Paired: every cell has the same n replicates.  Else the cells are independent, with Satterthwaite's degrees of
    freedom (1946).  NaN intervals where replicates are too few or do not differ.
    """
    weights = np.asarray(coefficients, dtype=float)
    columns = [np.asarray(cell, dtype=float) for cell in cells]
    if paired:
        return statistics.mean(weights @ np.stack(columns))
    value = weights @ np.array([column.mean() for column in columns])
    variances = [weights[..., i] ** 2 * statistics.variance(column) / len(column) for i, column in enumerate(columns)]
    freedom = statistics.satterthwaite(variances, list(map(len, columns)))
    return statistics.t_interval(np.asarray(value), np.sum(variances, axis=0), freedom)


def _rounded(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round scores to what arithmetic resolves, so that equal ones are ties."""
    return np.round(scores / ROUNDING_ERROR) * ROUNDING_ERROR


# ------------------------------------------------------------------------------------------------ settings side by side


@dataclass(frozen=True)
class Grid:
    """Arms that all have all of some settings: for each a table of accuracies, replicates × settings, without gaps."""

    accuracies: dict[str, pd.DataFrame]
    hashes: dict[str, pd.DataFrame]  # likewise, the stored hashes of `PAIRING_HASHES` as one tuple
    settings: list[dict[str, Any]]
    reference: str
    trials: pd.DataFrame  # rows of the study, of these arms in these settings
    left_arms: list[str]  # arms of the plan that lack a replicate with all of these settings
    left_settings: list[dict[str, Any]]  # that some of these arms lack
    left_runs: int  # of replicates that lack one of the settings

    @property
    def arms(self) -> list[str]:
        return list(self.accuracies)

    def against(self, arm: str) -> tuple[NDArray[np.float64], NDArray[np.float64], bool, str]:
        """An arm's accuracies and the reference's, (n, S) and (m, S); whether rows are pairs, and why.

        Paired where the replicates that both have agree in their hashes, in every setting; the others are left out.
        """
        own, other = self.accuracies[arm], self.accuracies[self.reference]
        common = own.index.intersection(other.index)
        reason = hash_disagreement([self.hashes[name].loc[common] for name in (arm, self.reference)])
        if reason:
            return own.to_numpy(), other.to_numpy(), False, reason
        return own.loc[common].to_numpy(), other.loc[common].to_numpy(), True, HASHES_AGREE


def hash_disagreement(hashes: Sequence[pd.DataFrame]) -> str:
    """`statistics.disagreement` of tables replicates × settings, whose cells are tuples."""
    return statistics.disagreement([np.array(frame.to_numpy().tolist(), dtype=object) for frame in hashes])


def grid(study: Results, selection: str) -> Grid | None:
    """The arms and settings of a study that can be aggregated: at least two of each; None where there are none.

    They are the most (arms × settings) of which every arm has a run in every setting.  The choice looks at which runs
    there are, never at results.
    """
    rows = scored_runs(study, selection)
    present = pd.crosstab(rows["arm"], rows["where"]).reindex(list(study.plan.arms), fill_value=0) > 0
    declared = dict.fromkeys(canonical(planned.setting) for planned in study.plan.trials)
    present = present[[where for where in declared if where in present]]
    base = _base(study.plan.arms)
    kept = _rectangle(present, base)
    if kept is None:
        return None
    runs = rows[rows["arm"].isin(kept.index) & rows["where"].isin(kept.columns)]
    tables = {}
    for arm in kept.index:
        of_arm = runs[runs["arm"] == arm].set_index(["replicate", "where"])
        accuracies = of_arm["accuracy"].unstack()[list(kept.columns)].dropna()
        hashes = of_arm["hashes"].unstack()[list(kept.columns)].loc[accuracies.index]
        if len(accuracies):
            tables[arm] = accuracies, hashes
    if len(tables) < 2:
        return None
    settings = {canonical(planned.setting): planned.setting for planned in study.plan.trials}
    return Grid(
        accuracies={arm: accuracies for arm, (accuracies, _) in tables.items()},
        hashes={arm: hashes for arm, (_, hashes) in tables.items()},
        settings=[settings[where] for where in kept.columns],
        reference=base if base in tables else next(iter(tables)),
        trials=study.trials[
            study.trials["arm"].isin(tables) & study.trials["setting"].map(canonical).isin(kept.columns)
        ],
        left_arms=[arm for arm in study.plan.arms if arm not in tables],
        left_settings=[settings[where] for where in declared if where not in kept.columns],
        left_runs=int(runs["arm"].isin(tables).sum()) - sum(accuracies.size for accuracies, _ in tables.values()),
    )


def scored_runs(study: Results, selection: str) -> pd.DataFrame:
    """Runs with an accuracy under the rule: arm, where (a setting as text), replicate, accuracy, hashes."""
    trials = study.trials.reset_index(drop=True)
    trials = trials.assign(
        accuracy=statistics.accuracy(trials, selection),
        where=trials["setting"].map(canonical),
        hashes=pd.Series(list(trials[list(PAIRING_HASHES)].itertuples(index=False, name=None)), dtype=object),
    )
    return trials.dropna(subset="accuracy")[["arm", "where", "replicate", "accuracy", "hashes"]]


def _base(arms: Mapping[str, Mapping[str, Any]]) -> str:
    return next((name for name, overrides in arms.items() if not overrides), next(iter(arms)))


def _rectangle(present: pd.DataFrame, base: str) -> pd.DataFrame | None:
    """The largest part of (arms × settings) without gaps, at least two by two; one with the base arm, if there is any.

    Of equally large ones that with more settings.  Gaps all over a large table have more candidates than can be tried:
    the most promising ones are followed.
    """
    held = {
        arm: frozenset(present.columns[row]) for arm, row in zip(present.index, present.to_numpy(bool), strict=True)
    }
    shared: dict[frozenset[str], None] = {}  # every set of settings that some arms have in common
    for settings in held.values():
        shared.update(dict.fromkeys([settings, *(settings & other for other in shared)]))
        if len(shared) > MOST_CANDIDATES:
            size = {part: len(part) * sum(part <= other for other in held.values()) for part in shared}
            first = sorted(shared, key=lambda part: (part <= held[base], size[part]), reverse=True)
            shared = dict.fromkeys(first[:MOST_CANDIDATES])
    candidates = [
        (settings, [arm for arm in held if held[arm] >= settings]) for settings in shared if len(settings) > 1
    ]
    candidates = [(settings, arms) for settings, arms in candidates if len(arms) > 1]
    if not candidates:
        return None
    settings, arms = max(candidates, key=lambda part: (base in part[1], len(part[0]) * len(part[1]), len(part[0])))
    return present.loc[arms, [where for where in present.columns if where in settings]]


def interquartile_means(grid: Grid) -> pd.DataFrame:
    """Each arm's IQM over settings, the mean of its replicates' with a t interval, and the difference to the reference.

    Simulated coverage is .93 to .96 at n = 4 to 10 (skewed runs: .89 to .96), also where settings of a replicate are
    correlated.  The stratified percentile bootstrap that the measure came with covers .85 to .94, and .5 to .87 where
    they are correlated by .5: it takes them as independent.
    """
    rows = []
    for arm in grid.arms:
        each = interquartile_mean(grid.accuracies[arm])
        row: dict[str, Any] = {"arm": arm, "n": len(each)}
        row.update(zip(("iqm", "low", "high"), map(float, statistics.mean(each)[:3]), strict=True))
        if arm != grid.reference:
            own, other, paired, reason = grid.against(arm)
            compute = statistics.paired_difference if paired else statistics.welch_difference
            estimate = compute(interquartile_mean(own), interquartile_mean(other))
            row.update(against=grid.reference, difference=float(estimate.value), p=float(estimate.p))
            row.update(difference_low=float(estimate.low), difference_high=float(estimate.high))
            row.update(pairs=len(own), n_against=len(other), paired=paired, reason=reason)
        rows.append(row)
    return pd.DataFrame(rows, columns=IQM_COLUMNS)


def profiles(grid: Grid) -> pd.DataFrame:
    """Share of each arm's runs above a threshold, by arm and threshold, with pointwise 95 % intervals."""
    values = np.concatenate([table.to_numpy().ravel() for table in grid.accuracies.values()])
    thresholds = np.linspace(values.min(), values.max(), PROFILE_THRESHOLDS)
    parts = []
    for arm, table in grid.accuracies.items():
        share, low, high = proportion(table.to_numpy() > thresholds[:, None, None])
        columns = {"threshold": thresholds, "share": share, "low": low, "high": high}
        parts.append(pd.DataFrame({"arm": arm, **columns, "n": len(table)}))
    return pd.concat(parts, ignore_index=True)


def improvements(grid: Grid) -> pd.DataFrame:
    """Probability that a run of an arm is better than one of the reference: the mean over settings, and each setting.

    `setting` is None for the mean, which alone has an interval.  Paired or not as in `Grid.against`, alike in all
    settings of an arm: shares of pairs and of all combinations are not the same quantity.
    """
    rows = []
    for arm in grid.arms:
        if arm == grid.reference:
            continue
        own, other, paired, reason = grid.against(arm)
        each, share, low, high = (paired_improvement if paired else unpaired_improvement)(own, other)
        about = {"arm": arm, "against": grid.reference}
        counts = {"n": len(own), "n_against": len(other), "paired": paired, "reason": reason}
        mean = {"probability": float(share), "low": float(low), "high": float(high)}
        rows.append({**about, "setting": None, **mean, **counts})
        for setting, value in zip(grid.settings, each, strict=True):
            rows.append(
                {**about, "setting": setting, "probability": float(value), "low": np.nan, "high": np.nan, **counts}
            )
    return pd.DataFrame(rows)


def ranking(grid: Grid) -> Ranking | None:
    """Arms ranked in each setting by their mean accuracy there; None below five settings or three arms."""
    if len(grid.settings) < FEWEST_SETTINGS or len(grid.arms) < FEWEST_ARMS:
        return None
    return rank(np.stack([table.to_numpy().mean(0) for table in grid.accuracies.values()], axis=-1))


# ----------------------------------------------------------------------------------------------------------- factorials
