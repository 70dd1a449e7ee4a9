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

from analysis import measures, statistics
from analysis.measures import ACCURACY
from analysis.statistics import Comparison
from lnl.storage.plan_record import ContrastRecord, PlanRecord, read_records

ALPHA = 0.05  # of each of the two questions, over the family
POWER = 0.8
FEWEST_REPLICATES = 4  # that allow a verdict
MOST_REPLICATES = 1000  # that are worth naming as needed
# Of a difference in test accuracy not measured yet: of runs of 0.28 points each, the median of public logs.
ASSUMED_DEVIATION = 0.004
OPEN_VERDICTS = ("undecided", "no verdict")  # which more replicates may change; the second: `why` there is none yet
VERDICTS = ("helps", "hurts", "equivalent", *OPEN_VERDICTS)
FUTILE_BELOW = 0.1  # chance of a decision at the last look below which more replicates are not worth their cost
NULL_DRAWS = 500_000  # of the null distribution over looks
RESOLVED_DRAWS = 200  # draws below a p by which its adjustment is known

CONTRAST_COLUMNS = (  # of `judge_contrasts`
    *("arm", "against", "metric", "direction", "smallest_effect", "selection", *Comparison._fields, "deviation"),
    *("diverged", "diverged_against"),
    *("p_holm", "low_holm", "high_holm", "p_equivalence", "p_equivalence_holm"),
    *("verdict", "why", "more", "look", "looked"),
)


class ContrastAtLook(NamedTuple):
    """One contrast as it stood at one look."""

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
    from scipy.special import stdtr  # see `statistics.t_interval`

    distance = (abs(comparison.difference) - smallest_effect) / comparison.error
    return float(stdtr(comparison.freedom, distance))


def p_over_looks(p: ArrayLike, looks: Sequence[int], sides: int = 2) -> float:
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
    floor = null[RESOLVED_DRAWS - 1]
    bound = min(len(looks) * smallest, 1.0)  # Bonferroni's, where too few draws are as extreme
    if smallest < floor:
        return bound
    share = np.searchsorted(null, smallest, side="right") / len(null)
    return float(min(max(share, len(looks) * floor), bound))


@lru_cache(maxsize=32)
def _null(looks: tuple[int, ...], sides: int) -> NDArray[np.float64]:
    """The smallest p over the looks of independent standard normal differences, sorted, (DRAWS,)."""
    from scipy.special import stdtr

    random = np.random.default_rng(0)
    parts, chunk = [], 50_000
    for _ in range(NULL_DRAWS // chunk):
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


def level_per_look(alpha: float, looks: Sequence[int], sides: int = 2) -> float:
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
    from scipy.special import stdtrit
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
    """The fewest replicates that decide with this chance if mean and spread are as given, at least `FEWEST_REPLICATES`.

    NaN where mean or spread is not known, infinite where `MOST_REPLICATES` do not decide.
    """
    if np.isnan(effect) or not deviation > 0:
        return float("nan")

    def lacking(n: int) -> bool:
        return bool(power(effect, n, deviation, smallest_effect, alpha) < chance)

    if lacking(MOST_REPLICATES):
        return float("inf")
    return float(bisect_left(range(MOST_REPLICATES), True, lo=FEWEST_REPLICATES, key=lambda n: not lacking(n)))


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


def judge_contrasts(
    declared: Sequence[ContrastRecord],
    trials: pd.DataFrame,
    missing: pd.DataFrame,
    selection: str,
    looks: Sequence[int] = (),
) -> pd.DataFrame:
    """Every declared contrast with its estimate, its two p values and its verdict; see `CONTRAST_COLUMNS`.

    `trials`, `missing`: finished and other planned trials of the base setting; finished ones have a column for each
    metric that is judged, by its name, but for the test accuracy.  Differences, their errors and intervals are in the
    metric's own unit; a loss or an error helps where it is smaller.  A verdict waits for all trials that the plan asks
    for, or the next declared look asks for: results of a part, looked at when they please, would err more often.  A
    trial on data that were replaced since (`stale`) has not run.  Trials that failed by accident are not waited for.

    deviation: standard deviation of one replicate's difference.  diverged, diverged_against: trials of either arm that
    count as chance: a rare divergence moves a mean far, and few replicates may hold none.  On another metric they have
    no value, and there is no verdict: without them the arm would be judged by its better half.  p, p_equivalence: of a
    difference other than zero, and of one outside ± smallest_effect; where there are looks, over all of them.  more:
    further replicates that would decide, with a chance of 80 % if difference and spread stay; NaN where none are needed
    or nothing is known, infinite above `MOST_REPLICATES`.  look: replicates at the declared look that decided; looked:
    at the latest look.

    low, high: 95 % of one contrast at a fixed number of replicates, adjusted neither for the family nor for looks:
    where looks decided when to stop, they hold the truth in 92 to 95 % of studies.  low_holm, high_holm: at the level
    at which Holm's procedure tests the contrast, so that they leave out 0 exactly where p_holm ≤ 5 %; NaN with looks.
    """
    waiting = missing[missing["status"].isin(["not run", "preempted", "stale"])]
    planned = pd.concat([trials[["arm", "replicate"]], missing[["arm", "replicate"]]])
    counts = planned.groupby("arm")["replicate"].max() + 1
    rows: list[dict[str, Any]] = []
    taken: list[list[ContrastAtLook]] = []
    for contrast in declared:
        row, enough = _estimated(contrast, trials, waiting, counts, selection, looks)
        rows.append(row)
        taken.append(enough)
    frame = pd.DataFrame(rows, columns=CONTRAST_COLUMNS)
    for column in ("verdict", "why", "reason"):
        frame[column] = frame[column].astype(object)
    frame = _with_verdicts(frame, taken, looks)
    for column, sign in (("low_holm", -1), ("high_holm", 1)):
        frame[column] = [np.nan if looks else _holm_bound(row, sign) for row in statistics.records(frame)]
    level = next_level(frame, looks)
    frame["more"] = [_more_replicates(row, level) for row in statistics.records(frame)]
    numbers = ("smallest_effect", "deviation", "p_holm", "low_holm", "high_holm", "p_equivalence", "p_equivalence_holm")
    kinds = dict.fromkeys(numbers, float)
    return frame.astype({**kinds, "more": float, "look": float, "looked": float})


def _estimated(
    contrast: ContrastRecord,
    trials: pd.DataFrame,
    waiting: pd.DataFrame,
    counts: pd.Series,
    selection: str,
    looks: Sequence[int],
) -> tuple[dict[str, Any], list[ContrastAtLook]]:
    """What is known of a contrast before its verdict, and the looks at which it may be decided.

    `waiting`: trials that are waited for.  `counts`: planned replicates by arm.
    """
    pair = [contrast.arm, contrast.against]
    arm, against = (trials[trials["arm"] == name] for name in pair)
    whole = statistics.compare(arm, against, selection, contrast.metric)
    waiting_replicates = waiting.loc[waiting["arm"].isin(pair), "replicate"]
    of_both = [counts.get(name, 0) for name in pair]
    asked = min(of_both) if looks else max(of_both)  # shifted replicates are waited for, too
    reached = [
        count for count in looks or (asked,) if count <= asked and not (waiting_replicates < count).any()
    ]  # in order: what waits for a small count waits for a larger one
    done = [
        ContrastAtLook(n, _compare_first(arm, against, n, selection, contrast.metric) if looks else whole)
        for n in reached
    ]
    of_accuracy = contrast.metric == ACCURACY
    counts_diverged = statistics.at_chance if of_accuracy else statistics.diverged
    diverged, diverged_against = (int(counts_diverged(side).sum()) for side in (arm, against))
    lost = 0 if of_accuracy else diverged + diverged_against
    enough = [
        look for look in done if min(look.comparison.n, look.comparison.n_against) >= FEWEST_REPLICATES and not lost
    ]
    row = {
        **contrast.model_dump(),
        "metric": contrast.metric,
        "selection": selection,
        **whole._asdict(),
        "deviation": whole.error * np.sqrt(min(whole.n, whole.n_against)),
        "diverged": diverged,
        "diverged_against": diverged_against,
        "why": _why(whole, len(waiting_replicates), bool(enough), _lost(lost, contrast.metric)),
        "looked": done[-1].replicates if looks and done else np.nan,
    }
    return row, enough


def _compare_first(arm: pd.DataFrame, against: pd.DataFrame, count: int, selection: str, metric: str) -> Comparison:
    """Compare the first so many replicates."""
    first, first_against = (rows[rows["replicate"] < count] for rows in (arm, against))
    return statistics.compare(first, first_against, selection, metric)


def _with_verdicts(
    frame: pd.DataFrame, taken: Sequence[Sequence[ContrastAtLook]], looks: Sequence[int]
) -> pd.DataFrame:
    """The contrasts with p values and verdicts, and the look that decided.  `taken`: looks of each that count."""
    steps = [_judge(frame, taken, looks, step) for step in range(1, len(looks or (0,)) + 1)]
    for column in ("p_holm", "p_equivalence", "p_equivalence_holm", "verdict", *(["p"] if looks else [])):
        frame[column] = steps[-1][column].to_numpy()
    frame.loc[frame["verdict"] != "undecided", "why"] = ""
    if looks:
        open_after = pd.concat([step["verdict"] == "undecided" for step in steps], axis=1).sum(axis=1)
        frame["look"] = [looks[count] if count < len(looks) else np.nan for count in open_after]
    frame.loc[frame["why"] != "", "verdict"] = "no verdict"
    return frame


def _holm_bound(row: Mapping[str, Any], sign: int) -> float:
    """The lower (-1) or upper (1) end of the interval of a difference at the level of Holm's test; NaN without one."""
    from scipy.special import stdtrit  # see `statistics.t_interval`

    if np.isnan(row["p_holm"]) or not row["p"] > 0:
        return float("nan")
    alpha = ALPHA * row["p"] / row["p_holm"]
    return float(row["difference"] + sign * stdtrit(row["freedom"], 1 - alpha / 2) * row["error"])


def _more_replicates(row: Mapping[str, Any], level: float) -> float:
    """Further replicates that would decide a contrast, at least one; NaN where it is decided."""
    if row["verdict"] not in OPEN_VERDICTS:
        return np.nan
    if has_lost_trials(row):
        return np.inf
    needed = replicates_needed(row["difference"], row["deviation"], row["smallest_effect"], level)
    return max(needed - min(row["n"], row["n_against"]), 1)


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
    outcome was there.  Two contrasts are the same where metric, direction and smallest effect agree and the same two
    configurations are compared, whatever the arms are called, so it is the trials of their first replicates that are
    asked for.
    """
    first: dict[tuple[Any, ...], pd.Timestamp] = {}
    unknown = set()
    for submitted, at in zip(read_records(plans), plans["first_submitted_at"], strict=True):
        trials = _trials_of_arms(submitted)
        for contrast in submitted.contrasts:
            key = _identity(contrast, trials)
            if pd.isna(at):
                unknown.add(key)
            else:
                first[key] = min(first.get(key, at), at)
    rows = []
    trials = _trials_of_arms(record)
    for contrast in contrasts:
        key = _identity(contrast, trials)
        at = pd.NaT if key in unknown else first.get(key, pd.NaT)
        of_arms = {trial for arm in contrast.arms for trial in trials.get(arm, [])}
        seen = {trial for trial in of_arms if trial in ended and (at is pd.NaT or ended[trial] < at)}
        rows.append([at, 0 if key in unknown else len(seen), len(of_arms)])
    frame = pd.DataFrame(rows, columns=["declared_at", "declared_after", "declared_of"])
    frame["declared_at"] = pd.to_datetime(frame["declared_at"], utc=True)
    return frame.astype({"declared_after": int, "declared_of": int})


def declared_late(row: Mapping[str, Any]) -> str:
    """`declared after 3 of 8 trials had ended`; nothing where that is not so, or not known.

    `row`: of a contrast, with the columns of `declarations` where these are known.
    """
    after, of = (row.get(name, np.nan) for name in ("declared_after", "declared_of"))
    return f"declared after {after:g} of {of:g} trials had ended" if after and not np.isnan(after) else ""


def _trials_of_arms(record: PlanRecord) -> dict[str, list[str]]:
    """Return the trials of each arm in the base setting, by replicate."""
    trials: dict[str, list[str]] = {}
    for planned in sorted(record.trials, key=lambda planned: planned.replicate):
        if not planned.setting:
            trials.setdefault(planned.arm, []).append(planned.trial)
    return trials


def _identity(contrast: ContrastRecord, trials: Mapping[str, Sequence[str]]) -> tuple[Any, ...]:
    """What makes a contrast the same as another: an arm that is not planned in the base setting counts by its name."""
    pair = (trials.get(arm, [arm])[0] for arm in (contrast.arm, contrast.against))
    return (*pair, contrast.metric, contrast.direction, contrast.smallest_effect)


def next_level(frame: pd.DataFrame, looks: Sequence[int] = ()) -> float:
    """The level at which an undecided contrast would be tested next, at one look: Holm's, over those that are open."""
    alpha = ALPHA / max(1, int((~(frame["p_holm"] <= ALPHA)).sum()))
    return level_per_look(alpha, looks) if len(looks) > 1 else alpha


def _lost(diverged: int, metric: str) -> str:
    """Why trials that diverged allow no verdict on this metric, if there are some."""
    trials = "trial has" if diverged == 1 else "trials have"
    return f"{diverged} diverged {trials} no value of {metric}" if diverged else ""


def _why(whole: Comparison, waiting: int, enough: bool, lost: str) -> str:
    """Say why there can be no verdict, if so.  `lost`: the reason of trials that diverged."""
    fewest = min(whole.n, whole.n_against)
    if lost:
        return lost
    if not fewest:
        return "no finished replicates of both arms in the base setting"
    if fewest < FEWEST_REPLICATES:
        are = "replicate is" if fewest == 1 else "replicates are"
        return f"{fewest} {are} too few: a verdict needs {FEWEST_REPLICATES}"
    if np.isnan(whole.error):
        return "the replicates do not differ at all, so nothing tells how sure the difference is"
    if waiting and not enough:
        return f"{waiting} planned {'trial has' if waiting == 1 else 'trials have'} not run"
    return "" if enough else f"lost trials left fewer than {FEWEST_REPLICATES} replicates at every look so far"


def _judge(
    frame: pd.DataFrame, taken: Sequence[Sequence[ContrastAtLook]], looks: Sequence[int], step: int
) -> pd.DataFrame:
    """Return p values and verdicts as they stood after that many looks."""
    rows = []
    for contrast, of_contrast in zip(statistics.records(frame), taken, strict=True):
        seen = [look.comparison for look in of_contrast if not looks or look.replicates <= looks[step - 1]]
        p_zero = [comparison.p for comparison in seen]
        p_within = [equivalence_p(comparison, contrast["smallest_effect"]) for comparison in seen]
        if looks:
            p, p_equivalence = p_over_looks(p_zero, looks, 2), p_over_looks(p_within, looks, 1)
        else:
            p, p_equivalence = (values[-1] if values else np.nan for values in (p_zero, p_within))
        clearest = int(np.nanargmin(p_zero)) if p_zero and not np.isnan(p_zero).all() else None
        rows.append([p, p_equivalence, np.nan if clearest is None else seen[clearest].difference])
    judged = pd.DataFrame(rows, columns=["p", "p_equivalence", "difference"], dtype=float)
    judged["p_holm"], judged["p_equivalence_holm"] = holm(judged["p"]), holm(judged["p_equivalence"])
    towards = frame["metric"].map(measures.better).to_numpy(int)
    differs = np.where(judged["difference"] * towards > 0, "helps", "hurts")
    verdict = np.where(judged["p_holm"] <= ALPHA, differs, "undecided")
    judged["verdict"] = np.where(judged["p_equivalence_holm"] <= ALPHA, "equivalent", verdict)
    return judged


def has_lost_trials(row: Mapping[str, Any]) -> bool:
    """Whether trials that diverged allow a contrast (a row of `judge_contrasts`) no verdict, however many follow."""
    return row["metric"] != ACCURACY and row["diverged"] + row["diverged_against"] > 0


def is_futile(row: Mapping[str, Any], last: int, alpha: float) -> bool:
    """Whether the last look would hardly decide a contrast (a row of `judge_contrasts`).

    Not even if the truth lay a standard error to the better side for one of the two questions.  To stop for that makes
    no claim, so it costs no error.
    """
    if has_lost_trials(row):
        return True
    if not row["deviation"] > 0:
        return False
    places = (abs(row["difference"]) + row["error"], max(abs(row["difference"]) - row["error"], 0.0))
    chances = power(np.array(places), last, row["deviation"], row["smallest_effect"], alpha)
    return bool((chances < FUTILE_BELOW).all())
