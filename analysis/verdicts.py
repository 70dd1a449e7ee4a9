"""From declared contrasts to verdicts: tests of difference and of equivalence, Holm over the family, looks, power.

Two questions are asked of every contrast.  Is the difference other than zero (two-sided t test)?  Is it smaller than
the smallest effect that matters, in both directions (two one-sided t tests, Schuirmann 1987)?  Each question is
corrected over all declared contrasts (Holm 1979), so that at most 5 % of studies have a single false "helps" or "hurts"
in them, and at most 5 % a single false "equivalent".  Where both are answered with yes, the verdict is "equivalent":
there is a difference, and it does not matter.

Replicates may be added after a look at the results, if the looks are declared before: p is then the chance that the
smallest p of *all* declared looks is at most the smallest one seen, so that it holds whenever one stops.  Differences
are taken as normal; the null distribution comes from seeded draws.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from analysis import statistics
from analysis.statistics import Comparison
from lnl.storage.plan_record import ContrastRecord, PlanRecord, read_records

ALPHA = 0.05  # of each of the two questions, over the family
POWER = 0.8
FEWEST = 4  # replicates that allow a verdict
MOST = 1000  # replicates that are worth naming
SPREAD = 0.004  # of a difference, where nothing is measured: of two runs of 0.28 points each, the median of public logs
OPEN = ("undecided", "no verdict")  # what more replicates may change; the second: there can be none yet, and `why`
VERDICTS = ("helps", "hurts", "equivalent", *OPEN)
HOPELESS = 0.1  # chance of a decision at the last look below which more replicates are not worth their cost
DRAWS = 500_000  # of the null distribution over looks
RESOLVED = 200  # draws below a p by which its adjustment is known

COLUMNS = (  # of `contrasts`
    *("arm", "against", "direction", "smallest_effect", "selection", *Comparison._fields, "deviation"),
    *("diverged", "diverged_against"),
    *("p_holm", "p_equivalence", "p_equivalence_holm", "verdict", "why", "more", "look", "looked"),
)


class Looked(NamedTuple):
    """One contrast at one look."""

    replicates: int  # of each arm that were asked for by then
    comparison: Comparison


# ----------------------------------------------------------------------------------------------------- tests and power


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p (m,) of a family of m; one that is not known (NaN) counts in m and stays NaN.  Holm 1979."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)  # NaN last
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1)
    return result


def equivalence_p(comparison: Comparison, smallest_effect: float) -> float:
    """The larger p of the two one-sided tests that the difference lies within ± `smallest_effect`; NaN if that is 0."""
    if smallest_effect <= 0:
        return float("nan")
    distance = (abs(comparison.difference) - smallest_effect) / comparison.error
    return float(stdtr(comparison.freedom, distance))


def over_looks(p: ArrayLike, looks: Sequence[int], sides: int = 2) -> float:
    """p after the looks taken so far, valid whenever one stops; NaN before the first.

    `p`: one each of the looks taken, in order.  `looks`: replicates at every declared look.  `sides`: 2 for the test
    against zero, 1 for a one-sided one, as those for equivalence are.
    """
    seen = np.asarray(p, dtype=float)
    if np.isnan(seen).all():
        return float("nan")
    smallest = float(np.nanmin(seen))
    if len(looks) == 1:
        return smallest
    null = _null(tuple(looks), sides)
    floor = null[RESOLVED - 1]
    bound = min(len(looks) * smallest, 1.0)  # Bonferroni's, where too few draws are as extreme
    if smallest < floor:
        return bound
    share = np.searchsorted(null, smallest, side="right") / len(null)
    return float(min(max(share, len(looks) * floor), bound))


@lru_cache(maxsize=32)
def _null(looks: tuple[int, ...], sides: int) -> NDArray[np.float64]:
    """The smallest p over the looks of independent standard normal differences, sorted, (DRAWS,)."""
    random = np.random.default_rng(0)
    parts, chunk = [], 50_000
    for _ in range(DRAWS // chunk):
        sums, squares, smallest = np.zeros(chunk), np.zeros(chunk), np.ones(chunk)
        for before, n in pairwise((0, *looks)):
            values = random.standard_normal((n - before, chunk))
            sums, squares = sums + values.sum(axis=0), squares + (values**2).sum(axis=0)
            mean = sums / n
            error = np.sqrt((squares / n - mean**2) / (n - 1))
            t = mean / error
            p = 2 * stdtr(n - 1, -np.abs(t)) if sides == 2 else stdtr(n - 1, t)
            np.minimum(smallest, p, out=smallest)
        parts.append(smallest)
    return np.sort(np.concatenate(parts))


def level_of_a_look(alpha: float, looks: Sequence[int], sides: int = 2) -> float:
    """The p that each of the declared looks may claim, so that all of them together err in a share `alpha`."""
    if len(looks) < 2:
        return alpha
    null = _null(tuple(looks), sides)
    return max(float(np.quantile(null, alpha)), alpha / len(looks))


def power(
    effect: ArrayLike, n: ArrayLike, deviation: float, smallest_effect: float = 0.0, alpha: float = ALPHA
) -> NDArray[np.float64]:
    """Chance that n paired differences of this mean and standard deviation decide: other than zero, or equivalent.

    The larger of the two chances; that of equivalence is a lower bound, close where it is not small.
    """
    from scipy.stats import nct  # takes half a second, and few commands ask for power

    effect, n = np.asarray(np.abs(effect), dtype=float), np.asarray(n, dtype=float)
    error, freedom = deviation / np.sqrt(n), n - 1
    two_sided = stdtrit(freedom, 1 - alpha / 2)
    with np.errstate(all="ignore"):  # far tails underflow to 0
        shift = effect / error
        decided = nct.sf(two_sided, freedom, shift) + nct.sf(
            two_sided, freedom, -shift
        )  # SciPy's lower tail: often NaN
        if smallest_effect > 0:
            one_sided = stdtrit(freedom, 1 - alpha)
            below = nct.sf(one_sided, freedom, (smallest_effect - effect) / error)
            above = nct.sf(one_sided, freedom, (effect + smallest_effect) / error)
            decided = np.fmax(decided, below + above - 1)
    return np.asarray(np.clip(decided, 0, 1))


def replicates_needed(
    effect: float, deviation: float, smallest_effect: float = 0.0, alpha: float = ALPHA, chance: float = POWER
) -> float:
    """The fewest replicates, at least `FEWEST`, that decide with this chance if mean and spread are as given; NaN where
    they are not known, infinite where `MOST` do not."""
    if np.isnan(effect) or not deviation > 0:
        return float("nan")

    def lacking(n: int) -> bool:
        return bool(power(effect, n, deviation, smallest_effect, alpha) < chance)

    if lacking(MOST):
        return float("inf")
    return float(bisect_left(range(MOST), True, lo=FEWEST, key=lambda n: not lacking(n)))


def detectable_effect(deviation: float, n: int, alpha: float = ALPHA, chance: float = POWER) -> float:
    """The smallest true difference that n paired replicates find to be other than zero with this chance."""
    from scipy.optimize import brentq  # as above

    if n < 2 or not deviation > 0:
        return float("nan")
    high = deviation
    while power(high, n, deviation, alpha=alpha) < chance:
        high *= 2
    return float(brentq(lambda effect: float(power(effect, n, deviation, alpha=alpha)) - chance, 0, high))


# ------------------------------------------------------------------------------------------------------------ verdicts


def contrasts(
    declared: Sequence[ContrastRecord],
    trials: pd.DataFrame,
    missing: pd.DataFrame,
    selection: str,
    looks: Sequence[int] = (),
) -> pd.DataFrame:
    """Every declared contrast with its estimate, its two p values and its verdict; see `COLUMNS`.

    `trials`, `missing`: finished and other planned trials of the base setting.  A verdict waits for all trials that the
    plan asks for, or the next declared look asks for: results of a part, looked at when they please, would err more
    often.  A trial on data that were replaced since (`stale`) has not run.  Trials that failed by accident are not
    waited for.

    deviation: standard deviation of one replicate's difference.  diverged, diverged_against: trials of either arm that
    count as chance: a rare divergence moves a mean far, and few replicates may hold none.  p, p_equivalence: of a
    difference other than zero, and of one outside ± smallest_effect; where there are looks, over all of them.  more:
    further replicates that would decide, with a chance of 80 % if difference and spread stay; NaN where none are needed
    or nothing is known, infinite above `MOST`.  look: replicates at the declared look that decided; looked: at the
    latest look.

    low, high: 95 % of one contrast at a fixed number of replicates, adjusted neither for the family nor for looks:
    where looks decided when to stop, they hold the truth in 92 to 95 % of studies.
    """
    waiting = missing[missing["status"].isin(["not run", "preempted", "stale"])]
    planned_rows = pd.concat([trials[["arm", "replicate"]], missing[["arm", "replicate"]]])
    counts = planned_rows.groupby("arm")["replicate"].max() + 1
    rows: list[dict[str, Any]] = []
    taken: list[list[Looked]] = []
    for contrast in declared:
        arm, against = (trials[trials["arm"] == name] for name in (contrast.arm, contrast.against))
        whole = statistics.compare(arm, against, selection)
        mine = waiting[waiting["arm"].isin(contrast.arms)]
        both = counts.get(contrast.arm, 0), counts.get(contrast.against, 0)
        planned = min(both) if looks else max(both)  # shifted replicates are waited for, too
        done: list[Looked] = []
        for count in looks or (planned,):
            if (mine["replicate"] < count).any() or count > planned:
                break
            then = statistics.compare(_before(arm, count), _before(against, count), selection) if looks else whole
            done.append(Looked(count, then))
        enough = [one for one in done if min(one.comparison.n, one.comparison.n_against) >= FEWEST]
        rows.append(
            {
                **contrast.model_dump(),
                "selection": selection,
                **whole._asdict(),
                "deviation": whole.error * np.sqrt(min(whole.n, whole.n_against)),
                "diverged": int(statistics.at_chance(arm).sum()),
                "diverged_against": int(statistics.at_chance(against).sum()),
                "why": _why(whole, len(mine), bool(enough)),
                "looked": done[-1].replicates if looks and done else np.nan,
            }
        )
        taken.append(enough)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    for column in ("verdict", "why", "reason"):
        frame[column] = frame[column].astype(object)
    steps = [_judged(frame, taken, looks, step) for step in range(1, len(looks or (0,)) + 1)]
    for column in ("p", "p_holm", "p_equivalence", "p_equivalence_holm", "verdict"):
        frame[column] = steps[-1][column].to_numpy() if column != "p" or looks else frame["p"]
    decided = frame["verdict"] != "undecided"
    frame.loc[decided, "why"] = ""
    if looks:
        open_after = pd.concat([step["verdict"] == "undecided" for step in steps], axis=1).sum(axis=1)
        frame["look"] = [looks[count] if count < len(looks) else np.nan for count in open_after]
    frame.loc[frame["why"] != "", "verdict"] = "no verdict"
    level = open_level(frame, looks)
    frame["more"] = [
        np.nan
        if row["verdict"] not in OPEN
        else max(
            replicates_needed(row["difference"], row["deviation"], row["smallest_effect"], level)
            - min(row["n"], row["n_against"]),
            1,
        )
        for row in statistics.records(frame)
    ]
    kinds = dict.fromkeys(("smallest_effect", "deviation", "p_holm", "p_equivalence", "p_equivalence_holm"), float)
    return frame.astype({**kinds, "more": float, "look": float, "looked": float})


def declarations(
    record: PlanRecord,
    contrasts: Sequence[ContrastRecord],
    plans: pd.DataFrame,
    ended: Mapping[str, pd.Timestamp],
) -> pd.DataFrame:
    """When each contrast of a plan's record was first declared as it stands, and what had ended by then.

    declared_at: when the first stored plan with it was submitted (NaT: none was yet, or one of an earlier version was,
    which kept only its last submission).  declared_after: trials of its two arms in the base setting that had ended
    before, of declared_of that the plan has: above 0 somebody may have seen results before the question.  Of what an
    earlier version had stored nothing is claimed: 0.

    `plans`: all stored ones of the study, with `plan` and `first_submitted_at`.  `ended`: trial -> when its first
    outcome was there.  Two contrasts are the same where direction and smallest effect agree and the same two
    configurations are compared, whatever the arms are called, so it is the trials of their first replicates that are
    asked for.
    """
    first: dict[tuple[Any, ...], pd.Timestamp] = {}
    unknown = set()
    for before, at in zip(read_records(plans), plans["first_submitted_at"], strict=True):
        trials = _of_arms(before)
        for contrast in before.contrasts:
            key = _asks(contrast, trials)
            if pd.isna(at):
                unknown.add(key)
            else:
                first[key] = min(first.get(key, at), at)
    rows = []
    here = _of_arms(record)
    for contrast in contrasts:
        key = _asks(contrast, here)
        at = pd.NaT if key in unknown else first.get(key, pd.NaT)
        of_arms = {trial for arm in contrast.arms for trial in here.get(arm, [])}
        seen = {trial for trial in of_arms if trial in ended and (at is pd.NaT or ended[trial] < at)}
        rows.append([at, 0 if key in unknown else len(seen), len(of_arms)])
    frame = pd.DataFrame(rows, columns=["declared_at", "declared_after", "declared_of"])
    frame["declared_at"] = pd.to_datetime(frame["declared_at"], utc=True)
    return frame.astype({"declared_after": int, "declared_of": int})


def declared_late(row: Mapping[str, Any]) -> str:
    """What to say of a contrast that was declared, or changed, when some of its trials had ended; else nothing."""
    if not row["declared_after"]:
        return ""
    return f"declared after {row['declared_after']} of {row['declared_of']} trials had ended"


def _of_arms(record: PlanRecord) -> dict[str, list[str]]:
    """Trials of each arm in the base setting, by replicate."""
    found: dict[str, list[str]] = {}
    for planned in sorted(record.trials, key=lambda planned: planned.replicate):
        if not planned.setting:
            found.setdefault(planned.arm, []).append(planned.trial)
    return found


def _asks(contrast: ContrastRecord, trials: Mapping[str, Sequence[str]]) -> tuple[Any, ...]:
    """What makes a contrast the same as another: an arm that is not planned in the base setting counts by its name."""
    pair = (trials.get(arm, [arm])[0] for arm in (contrast.arm, contrast.against))
    return (*pair, contrast.direction, contrast.smallest_effect)


def open_level(frame: pd.DataFrame, looks: Sequence[int] = ()) -> float:
    """The level at which an undecided contrast would be tested next, at one look: Holm's, over those that are open."""
    alpha = ALPHA / max(1, int((~(frame["p_holm"] <= ALPHA)).sum()))
    return level_of_a_look(alpha, looks) if len(looks) > 1 else alpha


def _before(rows: pd.DataFrame, replicate: int) -> pd.DataFrame:
    return rows[rows["replicate"] < replicate]


def _why(whole: Comparison, waiting: int, enough: bool) -> str:
    """Why there can be no verdict, if so."""
    fewest = min(whole.n, whole.n_against)
    if not fewest:
        return "no finished replicates of both arms in the base setting"
    if fewest < FEWEST:
        return f"{fewest} {'replicate is' if fewest == 1 else 'replicates are'} too few: a verdict needs {FEWEST}"
    if np.isnan(whole.error):
        return "the replicates do not differ at all, so nothing tells how sure the difference is"
    if waiting and not enough:
        return f"{waiting} planned {'trial has' if waiting == 1 else 'trials have'} not run"
    return "" if enough else f"lost trials left fewer than {FEWEST} replicates at every look so far"


def _judged(frame: pd.DataFrame, taken: Sequence[Sequence[Looked]], looks: Sequence[int], step: int) -> pd.DataFrame:
    """p values and verdicts as they stood after that many looks."""
    rows = []
    for contrast, done in zip(statistics.records(frame), taken, strict=True):
        seen = [one.comparison for one in done if not looks or one.replicates <= looks[step - 1]]
        zero = [one.p for one in seen]
        within = [equivalence_p(one, contrast["smallest_effect"]) for one in seen]
        if looks:
            p, p_equivalence = over_looks(zero, looks, 2), over_looks(within, looks, 1)
        else:
            p, p_equivalence = (values[-1] if values else np.nan for values in (zero, within))
        best = int(np.nanargmin(zero)) if not np.isnan(zero).all() and zero else None
        rows.append([p, p_equivalence, np.nan if best is None else seen[best].difference])
    judged = pd.DataFrame(rows, columns=["p", "p_equivalence", "difference"], dtype=float)
    judged["p_holm"], judged["p_equivalence_holm"] = holm(judged["p"]), holm(judged["p_equivalence"])
    differs = np.where(judged["difference"] > 0, "helps", "hurts")
    verdict = np.where(judged["p_holm"] <= ALPHA, differs, "undecided")
    judged["verdict"] = np.where(judged["p_equivalence_holm"] <= ALPHA, "equivalent", verdict)
    return judged


def hopeless(row: Mapping[str, Any], last: int, alpha: float) -> bool:
    """Whether the last look would hardly decide a contrast (a row of `contrasts`).

    Not even if the truth lay a standard error to the better side for one of the two questions.  To stop for that makes
    no claim, so it costs no error.
    """
    if not row["deviation"] > 0:
        return False
    places = (abs(row["difference"]) + row["error"], max(abs(row["difference"]) - row["error"], 0.0))
    chances = power(np.array(places), last, row["deviation"], row["smallest_effect"], alpha)
    return bool((chances < HOPELESS).all())
