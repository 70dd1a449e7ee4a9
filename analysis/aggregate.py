"""Statistics across settings, and the effects and interactions of factorial ablations.

The unit of analysis is one replicate, here through all settings: what a replicate's runs give together is one number,
and intervals are over replicates.  So nothing is assumed of how the settings of one replicate hang together, and arms
stay paired.  Coverage of the 95 % intervals is simulated in tests/analysis/test_aggregate.py, for n = 4, 6 and 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, stdtrit
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from analysis import statistics
from analysis.statistics import AGREE, LEVEL, PAIRING, ROUNDING, Estimate
from lnl.storage.places import canonical

if TYPE_CHECKING:
    from analysis.results import Study

FEWEST_SETTINGS = 5  # that a critical difference needs
FEWEST_ARMS = 3
IQM = (  # columns of `interquartile_means`
    *("arm", "n", "iqm", "low", "high"),
    *("against", "difference", "difference_low", "difference_high", "p", "pairs", "n_against", "paired", "reason"),
)
CANDIDATES = 500  # sets of settings, in the search for the largest part of a study without gaps
THRESHOLDS = 201  # of a performance profile, from the lowest accuracy to the highest


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
    return _worth(means.mean(-1), statistics.variance(means) / count, runs, np.asarray(count - 1.0))


def _worth(
    share: NDArray[np.float64], variance: NDArray[np.float64], runs: float, freedom: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Korn and Graubard's interval from the variance of the share, with its degrees of freedom."""
    spread = variance > ROUNDING**2
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(spread, share * (1 - share) / variance, np.inf)
    size = np.minimum(size * (stdtrit(runs - 1, 0.5 + LEVEL / 2) / stdtrit(freedom, 0.5 + LEVEL / 2)) ** 2, runs)
    hits, misses = share * size, (1 - share) * size
    tail = 0.5 - LEVEL / 2
    low = np.where(hits > ROUNDING, betaincinv(np.maximum(hits, ROUNDING), misses + 1, tail), 0.0)
    high = np.where(misses > ROUNDING, betaincinv(hits + 1, np.maximum(misses, ROUNDING), 1 - tail), 1.0)
    return share, low, high


def wins(values: ArrayLike, against: ArrayLike) -> NDArray[np.float64]:
    """1 where a value is higher, 1/2 where they are equal, else 0; shapes broadcast."""
    difference = np.asarray(values, dtype=float) - np.asarray(against, dtype=float)
    return np.where(np.abs(difference) <= ROUNDING, 0.5, (difference > 0).astype(float))


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
    return won.mean((0, 1)), *_worth(share, np.asarray(sum(parts)), float(values.size), freedom)


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
    quantile = float(studentized_range.ppf(LEVEL, arms, np.inf)) / np.sqrt(2)
    difference = quantile * float(np.sqrt(arms * (arms + 1) / (6 * settings)))
    order = np.argsort(ranks, kind="stable")
    return Ranking(ranks, statistic, p, difference, _groups(ranks, order, difference if p < 1 - LEVEL else np.inf))


def _groups(ranks: NDArray[np.float64], order: NDArray[np.intp], difference: float) -> list[tuple[int, ...]]:
    """Maximal runs of at least two arms, in the order of their ranks, within less than the difference."""
    found, reached = [], 0
    for first in range(len(order)):
        end = first + int((ranks[order[first:]] - ranks[order[first]] < difference).sum())
        if end > max(reached, first + 1):  # else a run that began earlier holds it
            found.append(tuple(int(arm) for arm in order[first:end]))
            reached = end
    return found


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
    """Scores whose difference is the arithmetic's are ties."""
    return np.round(scores / ROUNDING) * ROUNDING


# ------------------------------------------------------------------------------------------------ settings side by side


@dataclass(frozen=True)
class Grid:
    """Arms that all have all of some settings: for each a table of accuracies, replicates × settings, without gaps."""

    accuracies: dict[str, pd.DataFrame]
    hashes: dict[str, pd.DataFrame]  # likewise, the stored hashes of `PAIRING` as one tuple
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
        reason = _disagreement([self.hashes[name].loc[common] for name in (arm, self.reference)])
        if reason:
            return own.to_numpy(), other.to_numpy(), False, reason
        return own.loc[common].to_numpy(), other.loc[common].to_numpy(), True, AGREE


def _disagreement(hashes: Sequence[pd.DataFrame]) -> str:
    """`statistics.disagreement` of tables replicates × settings, whose cells are tuples."""
    return statistics.disagreement([np.array(frame.to_numpy().tolist(), dtype=object) for frame in hashes])


def grid(study: Study, selection: str) -> Grid | None:
    """The arms and settings of a study that can be aggregated: at least two of each; None where there are none.

    They are the most (arms × settings) of which every arm has a run in every setting.  The choice looks at which runs
    there are, never at results.
    """
    rows = _scored(study, selection)
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
        mine = runs[runs["arm"] == arm].set_index(["replicate", "where"])
        accuracies = mine["accuracy"].unstack()[list(kept.columns)].dropna()
        hashes = mine["hashes"].unstack()[list(kept.columns)].loc[accuracies.index]
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


def _scored(study: Study, selection: str) -> pd.DataFrame:
    """Runs with an accuracy under the rule: arm, where (a setting as text), replicate, accuracy, hashes."""
    trials = study.trials.reset_index(drop=True)
    trials = trials.assign(
        accuracy=statistics.accuracy(trials, selection),
        where=trials["setting"].map(canonical),
        hashes=pd.Series(list(trials[list(PAIRING)].itertuples(index=False, name=None)), dtype=object),
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
        if len(shared) > CANDIDATES:
            size = {part: len(part) * sum(part <= other for other in held.values()) for part in shared}
            first = sorted(shared, key=lambda part: (part <= held[base], size[part]), reverse=True)
            shared = dict.fromkeys(first[:CANDIDATES])
    found = [(settings, [arm for arm in held if held[arm] >= settings]) for settings in shared if len(settings) > 1]
    found = [(settings, arms) for settings, arms in found if len(arms) > 1]
    if not found:
        return None
    settings, arms = max(found, key=lambda part: (base in part[1], len(part[0]) * len(part[1]), len(part[0])))
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
    return pd.DataFrame(rows, columns=IQM)


def profiles(grid: Grid) -> pd.DataFrame:
    """Share of each arm's runs above a threshold, by arm and threshold, with pointwise 95 % intervals."""
    values = np.concatenate([table.to_numpy().ravel() for table in grid.accuracies.values()])
    thresholds = np.linspace(values.min(), values.max(), THRESHOLDS)
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


@dataclass(frozen=True)
class Factorial:
    """A complete 2^k design among the arms of a study: `arms[S]` has the factors whose bits are set in S."""

    factors: tuple[str, ...]  # the arms that change one thing
    arms: tuple[str, ...]  # 2^k, from that which changes nothing to that which changes everything

    def term(self, subset: int) -> tuple[str, ...]:
        return tuple(factor for bit, factor in enumerate(self.factors) if subset >> bit & 1)


def declared_factorials(study: Study) -> list[Factorial]:
    """The factorials among the arms that a study declares; what a search found is no factor."""
    searched = {cell.searched_arm for cell in study.cells}
    return factorials({arm: overrides for arm, overrides in study.plan.arms.items() if arm not in searched})


def factorials(arms: Mapping[str, Mapping[str, Any]]) -> list[Factorial]:
    """Every complete factorial of two or more factors in the overrides of arms that is no part of a larger one.

    A factor is what an arm changes beyond another arm, the origin; two factors never touch the same field.
    """
    named: dict[frozenset[tuple[str, str]], str] = {}
    for arm, overrides in arms.items():
        named.setdefault(frozenset((field, canonical(value)) for field, value in overrides.items()), arm)
    found: list[Factorial] = []
    for origin in named:
        changes = [items - origin for items in named if items > origin]
        found.extend(
            Factorial(tuple(named[origin | change] for change in chosen), tuple(named[c] for c in cells))
            for chosen, cells in _grown((), (origin,), changes, named)
            if len(chosen) > 1
        )
    found.sort(key=lambda one: -len(one.arms))  # stable: the order of declaration within a size
    largest: list[Factorial] = []
    for one in found:
        if not any(set(one.arms) <= set(other.arms) for other in largest):
            largest.append(one)
    return largest


Change = frozenset[tuple[str, str]]


def _grown(
    chosen: tuple[Change, ...], cells: tuple[Change, ...], candidates: Sequence[Change], named: Mapping[Change, str]
) -> Iterator[tuple[tuple[Change, ...], tuple[Change, ...]]]:
    """Factorials that begin with the chosen changes: these, and the sets of items of their 2^k cells."""
    yield chosen, cells
    for place, change in enumerate(candidates):
        added = tuple(cell | change for cell in cells)
        if all(cell in named for cell in added) and not any(_touch(change, other) for other in chosen):
            yield from _grown((*chosen, change), (*cells, *added), candidates[place + 1 :], named)


def _touch(one: Change, other: Change) -> bool:
    """Whether two sets of changes share a field, or one holds a field of the other's."""
    fields = [({field for field, _ in items}) for items in (one, other)]
    return any(a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.") for a in fields[0] for b in fields[1])


def effect_coefficients(factors: int) -> NDArray[np.float64]:
    """Effects of k factors as sums over 2^k cells, (2^k - 1, 2^k); bits of a number are the factors of its cell or row.

    Of one factor: with minus without it.  Of two: how much the effect of one changes with the other; of three, how much
    that changes with the third; all averaged over the other factors.  (Box, Hunter & Hunter halve an interaction of two
    factors and quarter one of three.)
    """
    cells = np.arange(2**factors)
    count = np.array([subset.bit_count() for subset in cells])
    signs = (-1.0) ** count[cells[:, None] & ~cells[None] & (2**factors - 1)]
    return signs[1:] / 2.0 ** (factors - count[1:, None])


def prediction_coefficients(factors: int) -> NDArray[np.float64]:
    """What each cell would be if single effects added up, as sums over cells: (2^k, 2^k)."""
    predicted = np.zeros((2**factors, 2**factors))
    for subset in range(2**factors):
        singles = [1 << bit for bit in range(factors) if subset >> bit & 1]
        predicted[subset, singles] = 1
        predicted[subset, 0] = 1 - len(singles)
    return predicted


def effects(study: Study, factorial: Factorial, selection: str) -> pd.DataFrame:
    """Effects, interactions and additivity in the base setting; empty where a cell has no run.

    kind "effect": `effect_coefficients`.  For each arm that combines factors: kind "measured", its accuracy;
    "additive", what it would be if single effects added up; "residual", the first minus the second.  Columns: kind,
    term (names of factors), arm, value, low, high, p (of accuracies NaN), n (the fewest replicates of a cell), paired,
    reason.
    """
    rows = _scored(study, selection)
    rows = rows[rows["where"] == canonical({})]
    tables = [rows[rows["arm"] == arm].set_index("replicate") for arm in factorial.arms]
    columns = ["kind", "term", "arm", "value", "low", "high", "p", "n", "paired", "reason"]
    if any(table.empty for table in tables):
        return pd.DataFrame(columns=columns)
    common = sorted(set.intersection(*(set(table.index) for table in tables)))
    reason = _disagreement([table.loc[common, ["hashes"]] for table in tables])
    paired = not reason
    if paired:
        tables, reason = [table.loc[common] for table in tables], AGREE
    cells = [table["accuracy"].to_numpy() for table in tables]
    k = len(factorial.factors)
    combined = [subset for subset in range(2**k) if subset.bit_count() > 1]
    identity, predicted = np.eye(2**k), prediction_coefficients(k)
    by_order = sorted(range(1, 2**k), key=lambda subset: (subset.bit_count(), _bits(subset)))
    weights = {
        "effect": (by_order, effect_coefficients(k)[[subset - 1 for subset in by_order]]),
        "measured": (combined, identity[combined]),
        "additive": (combined, predicted[combined]),
        "residual": (combined, (identity - predicted)[combined]),
    }
    parts = []
    for kind, (subsets, coefficients) in weights.items():
        estimate = linear(cells, coefficients, paired)
        parts.append(
            pd.DataFrame(
                {
                    "kind": kind,
                    "term": [factorial.term(subset) for subset in subsets],
                    "arm": [factorial.arms[subset] for subset in subsets],
                    **{name: getattr(estimate, name) for name in ("value", "low", "high", "p")},
                    "n": min(map(len, cells)),
                    "paired": paired,
                    "reason": reason,
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(p=frame["p"].where(frame["kind"].isin(["effect", "residual"])))[columns]


def _bits(subset: int) -> tuple[int, ...]:
    return tuple(bit for bit in range(subset.bit_length()) if subset >> bit & 1)
