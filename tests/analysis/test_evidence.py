"""Evidence against statsmodels, SciPy and derivations of its own, and verdicts on rows that are written by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from analysis import statistics
from analysis.verdicts import (
    CONTRAST_COLUMNS,
    FEWEST_REPLICATES,
    NULL_DRAWS,
    POWER,
    detectable_effect,
    holm,
    judge_contrasts,
    level_per_look,
    p_over_looks,
    power,
    replicates_needed,
)
from lnl.storage.plan_record import ContrastRecord

LOOKS = (4, 6, 8, 10)


def rows(arm, accuracies, replicates=None, **columns):
    """Finished trials of one arm whose hashes name their replicate."""
    replicates = list(range(len(accuracies))) if replicates is None else replicates
    frame = pd.DataFrame({"arm": arm, "replicate": replicates, "accuracy_last": accuracies})
    frame = frame.assign(failure_class=None, classes=10, transition=None, dataset="digits", status="ok")
    for name in statistics.PAIRING_HASHES:
        frame[name] = [f"{name}-{replicate}" for replicate in replicates]
    return frame.assign(**columns)


def judge(*arms, looks=(), smallest_effect=0.0, missing=(), selection="last"):
    """Contrasts of all further arms against the first; `missing`: (arm, replicate, status)."""
    first, *others = [frame["arm"].iloc[0] for frame in arms]
    declared = [ContrastRecord(arm=arm, against=first, smallest_effect=smallest_effect) for arm in others]
    absent = pd.DataFrame(list(missing), columns=["arm", "replicate", "status"])
    return judge_contrasts(declared, pd.concat(arms, ignore_index=True), absent, selection, looks)


def normal(seed, n, mean=0.0, deviation=1.0):
    """n values with exactly this mean and standard deviation."""
    values = np.random.default_rng(seed).normal(size=n)
    return mean + deviation * (values - values.mean()) / values.std(ddof=1)


# ---------------------------------------------------------------------------------------------------------------- Holm


@pytest.mark.slow
def test_holm_equals_statsmodels_and_an_unknown_p_counts_and_stays_unknown():
    """Families with ties; an unknown p counts as if it were no evidence at all."""
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 5, 8, 12):
        p = np.round(random.beta(0.3, 1, size), 2)
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)
        unknown = random.random(size) < 0.3
        adjusted = holm(np.where(unknown, np.nan, p))
        worst = multipletests(np.where(unknown, 1.0, p), method="holm")[1]
        np.testing.assert_array_equal(np.isnan(adjusted), unknown)
        np.testing.assert_allclose(adjusted[~unknown], worst[~unknown], rtol=1e-12)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.04, 0.01, np.nan, 0.02]), [0.08, 0.04, np.nan, 0.06])
    assert holm([]).shape == (0,)


# --------------------------------------------------------------------------------------------------------- equivalence


@pytest.mark.parametrize("shift", [0.0, 0.004, -0.009, 0.02])
@pytest.mark.parametrize("n", [4, 6, 10])
def test_equivalence_equals_statsmodels(n, shift):
    draws = np.random.default_rng(n)
    arm, against = draws.normal(0.8 + shift, 0.01, n), draws.normal(0.8, 0.01, n)
    paired = judge(rows("full", against), rows("part", arm), smallest_effect=0.01).iloc[0]
    assert paired["paired"]
    assert paired["p_equivalence"] == pytest.approx(ttost_paired(arm, against, -0.01, 0.01)[0], rel=1e-9)
    assert paired["p"] == pytest.approx(scipy.stats.ttest_rel(arm, against).pvalue, rel=1e-9)
    unpaired = judge(rows("full", against), rows("part", arm, noise_hash="another"), smallest_effect=0.01).iloc[0]
    assert not unpaired["paired"]
    theirs = ttost_ind(arm, against, -0.01, 0.01, usevar="unequal")[0]
    assert unpaired["p_equivalence"] == pytest.approx(theirs, rel=1e-9)
    assert unpaired["p"] == pytest.approx(scipy.stats.ttest_ind(arm, against, equal_var=False).pvalue, rel=1e-9)


def test_without_a_smallest_effect_there_is_no_equivalence():
    frame = judge(rows("full", normal(0, 6, 0.8, 0.01)), rows("part", normal(1, 6, 0.8, 0.01)))
    assert frame[["p_equivalence", "p_equivalence_holm"]].isna().all(axis=None)


# --------------------------------------------------------------------------------------------------------------- power


POINTS, WEIGHTS = np.polynomial.legendre.leggauss(300)


def upper_tail(t, freedom, shift):
    """P(noncentral t > t): the normal tail, integrated over the standard deviation that is estimated."""
    low, high = scipy.stats.chi.ppf([1e-16, 1 - 1e-16], freedom)
    chi = low + (high - low) * (POINTS + 1) / 2
    tail = scipy.stats.norm.sf(t * chi / np.sqrt(freedom) - shift)
    return float((high - low) / 2 * (WEIGHTS * scipy.stats.chi.pdf(chi, freedom)) @ tail)


@pytest.mark.parametrize("n", [4, 5, 10, 50, 1000])
def test_power_and_detectable_effect_equal_statsmodels(n):
    theirs = TTestPower()
    for ratio in (0.1, 0.5, 1.0):
        expected = theirs.power(ratio, nobs=n, alpha=0.05)
        if np.isfinite(expected):  # theirs is not, where SciPy's lower tail of the noncentral t is not
            assert power(0.004 * ratio, n, 0.004) == pytest.approx(expected, abs=1e-7)
    found = detectable_effect(0.004, n)
    assert found == pytest.approx(0.004 * theirs.solve_power(nobs=n, alpha=0.05, power=0.8), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.05, 0.0125, 0.001, 1e-5])
@pytest.mark.parametrize("n", [4, 10, 1000])
def test_power_and_detectable_effect_equal_quadrature_at_every_level(n, alpha):
    critical = scipy.stats.t.isf(alpha / 2, n - 1)

    def reference(effect):
        shift = effect / 0.004 * np.sqrt(n)
        return upper_tail(critical, n - 1, shift) + upper_tail(critical, n - 1, -shift)

    for effect in (0.0005, 0.004, 0.02, 0.1):
        assert power(-effect, n, 0.004, alpha=alpha) == pytest.approx(reference(effect), abs=1e-8)
    assert reference(detectable_effect(0.004, n, alpha)) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("smallest", [0.0, 0.005])
def test_power_never_falls_with_replicates_and_is_never_unknown(smallest):
    counts = np.unique(np.geomspace(2, 1000, 120).astype(int))
    for ratio in (0.0, 0.1, 1.0, 5.0, 10.0, 80.0, 1000.0):
        for alpha in (0.05, 0.0125, 1e-4):
            chance = power(0.001 * ratio, counts, 0.001, smallest, alpha)
            assert np.isfinite(chance).all() and (np.diff(chance) > -1e-6).all()
            assert (0 <= chance).all() and (chance <= 1).all()


@pytest.mark.parametrize(
    ("effect", "deviation", "smallest"),
    [(0.01, 0.01, 0.0), (0.003, 0.01, 0.0), (0.01, 0.001, 0.0), (0.0, 0.01, 0.008), (0.004, 0.01, 0.008)],
)
def test_replicates_needed_are_the_fewest_that_decide(effect, deviation, smallest):
    needed = replicates_needed(effect, deviation, smallest, alpha=0.0125)
    chances = [float(power(effect, n, deviation, smallest, 0.0125)) for n in range(FEWEST_REPLICATES, 1001)]
    assert needed == FEWEST_REPLICATES + next(i for i, chance in enumerate(chances) if chance >= POWER)
    if not smallest and needed > FEWEST_REPLICATES:
        exact = TTestPower().solve_power(effect / deviation, alpha=0.0125, power=0.8)
        assert needed == np.ceil(exact)


def test_replicates_needed_where_none_suffice_or_nothing_is_known():
    assert replicates_needed(0.0, 0.01) == np.inf
    assert replicates_needed(0.005, 0.01, 0.005, alpha=0.001) < np.inf  # at the margin it differs from zero
    assert np.isnan(replicates_needed(np.nan, 0.01))
    assert np.isnan(replicates_needed(0.01, 0.0)) and np.isnan(detectable_effect(np.nan, 5))


@pytest.mark.parametrize(("effect", "smallest"), [(0.8, 0.0), (0.3, 1.5), (0.9, 1.0), (0.0, 1.2), (0.0, 0.9)])
def test_power_equals_simulation(effect, smallest):
    """Of 100,000 studies of ten normal differences; that of equivalence is a lower bound, tight where it is high."""
    studies, n, alpha = 100_000, 10, 0.02
    values = np.random.default_rng(0).normal(effect, 1, (studies, n))
    mean, error = values.mean(-1), values.std(-1, ddof=1) / np.sqrt(n)
    differs = np.mean(np.abs(mean / error) > scipy.stats.t.isf(alpha / 2, n - 1))
    within = np.mean((smallest - np.abs(mean)) / error > scipy.stats.t.isf(alpha, n - 1)) if smallest else 0.0
    chance, chances_of = float(power(effect, n, 1.0, smallest, alpha)), 4 * np.sqrt(0.25 / studies)
    assert chance <= max(differs, within) + chances_of
    if max(differs, within) > 0.6 or differs > within:
        assert chance == pytest.approx(max(differs, within), abs=chances_of)


# --------------------------------------------------------------------------------------------------------------- looks


def smallest_p(looks, sides, seed=0, exponent=16):
    """The smallest p over the looks under the null, from Sobol points of each block's mean and sum of squares.

    A mean of b normal values is normal, the sum of squares around it chi-squared with b - 1 degrees of freedom, and the
    two are independent; blocks are pooled as Chan, Golub and LeVeque (1979) do.
    """
    blocks = np.diff([0, *looks])
    points = scipy.stats.qmc.Sobol(2 * len(blocks), seed=seed).random_base2(exponent).clip(1e-12, 1 - 1e-12).T
    n, mean, squares, smallest = 0, 0.0, 0.0, np.ones(2**exponent)
    for block, first, second in zip(blocks, points[::2], points[1::2], strict=True):
        own = scipy.stats.norm.ppf(first) / np.sqrt(block)
        within = scipy.stats.chi2.ppf(second, block - 1) if block > 1 else 0.0
        squares = squares + within + (own - mean) ** 2 * n * block / (n + block)
        mean = (n * mean + block * own) / (n + block)
        n += block
        t = mean / np.sqrt(squares / (n - 1) / n)
        p = 2 * scipy.stats.t.sf(np.abs(t), n - 1) if sides == 2 else scipy.stats.t.sf(t, n - 1)
        smallest = np.minimum(smallest, p)
    return smallest


@pytest.mark.slow
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("looks", [LOOKS, (4, 8), (5, 6, 7)])
def test_p_over_looks_equals_quasi_monte_carlo(looks, sides):
    null = smallest_p(looks, sides)
    for p in (0.002, 0.01, 0.018, 0.05, 0.2):
        share = (null <= p).mean()
        tolerance = 4 * np.sqrt(share / NULL_DRAWS) + 2e-4  # of their draws, and of these points
        assert p_over_looks([p], looks, sides) == pytest.approx(share, abs=tolerance)


@pytest.mark.slow
def test_many_replicates_give_pococks_level():
    """Pocock 1977, Table 1: .0294 at each of two equally spaced looks, with known spread, errs in 5 %.

    Student's t of 40 and 80 replicates asks for almost the same.
    """
    assert level_per_look(0.05, (40, 80)) == pytest.approx(0.0294, abs=0.0006)
    assert p_over_looks([0.0294], (40, 80)) == pytest.approx(0.05, abs=0.001)


@pytest.mark.slow
def test_peeking_at_few_replicates_by_known_values():
    """An earlier survey, 200,000 null studies: .164 reach a p of .05 at some of 3 … 10 replicates, .049 one of .012;
    .05 one of .018 at 4, 6, 8 or 10."""
    assert p_over_looks([0.05], range(3, 11)) == pytest.approx(0.165, abs=0.003)
    assert p_over_looks([0.012], range(3, 11)) == pytest.approx(0.05, abs=0.002)
    assert p_over_looks([0.018], LOOKS) == pytest.approx(0.05, abs=0.002)
    assert level_per_look(0.05, LOOKS) == pytest.approx(0.018, abs=0.0003)


@pytest.mark.parametrize("sides", [1, 2])
def test_p_over_looks_keeps_the_order_of_evidence_between_its_bounds(sides):
    """At least the smallest p, at most Bonferroni's, and rising with it, also below what the draws resolve."""
    p = np.geomspace(1e-12, 1, 500)
    adjusted = np.array([p_over_looks([one], LOOKS, sides) for one in p])
    assert (np.diff(adjusted) >= 0).all()
    assert (p <= adjusted).all() and (adjusted <= np.minimum(len(LOOKS) * p, 1) * (1 + 1e-9)).all()


def test_p_over_looks_is_that_of_the_smallest_so_far():
    p = [np.nan, 0.03, 0.2, 0.01]
    steps = [p_over_looks(p[:taken], LOOKS) for taken in (1, 2, 3, 4)]
    assert np.isnan(steps[0]) and np.isnan(p_over_looks([], LOOKS))
    assert steps[1:] == [p_over_looks([smallest], LOOKS) for smallest in (0.03, 0.03, 0.01)]


def test_one_look_is_no_look():
    for p in (1e-6, 0.01, 0.049999, 0.5, 1.0):
        assert p_over_looks([p], (6,)) == p
    assert level_per_look(0.05, (6,)) == level_per_look(0.05, ()) == 0.05


# ------------------------------------------------------------------------------------------------------------ verdicts


def arms(difference, deviation, n=6):
    """Two arms with exactly this mean difference and this standard deviation of differences."""
    against = 0.8 + np.random.default_rng(0).normal(0, 0.01, n)
    return rows("full", against), rows("part", against + normal(1, n, difference, deviation))


@pytest.mark.parametrize(
    ("difference", "deviation", "verdict"),
    [
        (0.02, 0.005, "helps"),
        (-0.02, 0.005, "hurts"),
        (0.0, 0.005, "equivalent"),
        (0.004, 0.002, "equivalent"),  # and other than zero: t = 4.9
        (0.02, 0.05, "undecided"),
        (0.01, 0.02, "undecided"),  # at the margin, wide
    ],
)
def test_verdicts_by_hand(difference, deviation, verdict):
    row = judge(*arms(difference, deviation), smallest_effect=0.01).iloc[0]
    t = abs(difference) / deviation * np.sqrt(6)
    assert row["p"] == pytest.approx(2 * scipy.stats.t.sf(t, 5))
    within = scipy.stats.t.sf((0.01 - abs(difference)) / deviation * np.sqrt(6), 5)
    assert row["p_equivalence"] == pytest.approx(within)
    assert row["verdict"] == verdict and row["why"] == ""
    assert row["difference"] == pytest.approx(difference, abs=1e-12) and row["deviation"] == pytest.approx(deviation)
    assert (verdict == "undecided") == np.isfinite(row["more"])


def test_verdicts_at_the_very_edge_of_five_percent():
    for inside, side in ((1.001, "helps"), (0.999, "undecided")):
        t = scipy.stats.t.isf(0.025, 5) * inside
        assert judge(*arms(t * 0.01 / np.sqrt(6), 0.01)).iloc[0]["verdict"] == side
    for inside, side in ((1.001, "equivalent"), (0.999, "undecided")):
        t = scipy.stats.t.isf(0.05, 5) * inside
        row = judge(*arms(0.0, 0.01), smallest_effect=t * 0.01 / np.sqrt(6)).iloc[0]
        assert row["verdict"] == side


def test_holm_is_over_all_declared_contrasts_also_those_without_results():
    full, part = arms(0.011, 0.01)  # p = .043
    assert judge(full, part).iloc[0]["verdict"] == "helps"
    declared = [ContrastRecord(arm=arm, against="full") for arm in ("part", "absent")]
    nothing = pd.DataFrame(columns=["arm", "replicate", "status"])
    frame = judge_contrasts(declared, pd.concat([full, part]), nothing, "last")
    assert frame["p_holm"].iloc[0] == pytest.approx(2 * frame["p"].iloc[0]) and np.isnan(frame["p_holm"].iloc[1])
    assert frame["verdict"].tolist() == ["undecided", "no verdict"]
    assert frame["n"].tolist() == [6, 0] and "no finished replicates" in frame["why"].iloc[1]


def test_the_interval_after_holm_leaves_out_zero_exactly_where_a_difference_is_declared():
    """Of two contrasts the clearer is tested at 2.5 %, the other at 5 %."""
    _, clear = arms(0.05, 0.01)
    for inside, without_zero in ((1.001, True), (0.999, False)):
        t = scipy.stats.t.isf(0.025, 5) * inside
        full, near = arms(t * 0.01 / np.sqrt(6), 0.01)
        trials = pd.concat([full, near, clear.assign(arm="clear")])
        declared = [ContrastRecord(arm=arm, against="full") for arm in ("part", "clear")]
        nothing = pd.DataFrame(columns=["arm", "replicate", "status"])
        frame = judge_contrasts(declared, trials, nothing, "last")
        assert (frame["p_holm"].iloc[0] <= 0.05) == (frame["low_holm"].iloc[0] > 0) == without_zero
        error = 0.01 / np.sqrt(6)
        assert frame["low_holm"].iloc[0] == pytest.approx(frame["low"].iloc[0]), "the last one is not corrected"
        assert frame["high_holm"].iloc[1] - 0.05 == pytest.approx(scipy.stats.t.isf(0.0125, 5) * error)
        assert frame["low_holm"].iloc[1] - 0.05 == pytest.approx(-scipy.stats.t.isf(0.0125, 5) * error)


def test_a_study_without_contrasts_has_none():
    frame = judge_contrasts([], rows("full", [0.8, 0.9]), pd.DataFrame(columns=["arm", "replicate", "status"]), "last")
    assert frame.empty and list(frame.columns) == list(CONTRAST_COLUMNS)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_verdict_under_four_replicates(n):
    draws = np.random.default_rng(n).normal(0, 1e-5, n)
    row = judge(rows("full", np.full(n, 0.5)), rows("part", 0.9 + draws), smallest_effect=0.01).iloc[0]
    assert row["verdict"] == "no verdict" and "too few" in row["why"] and str(n) in row["why"]
    assert np.isnan(row["p_holm"]) and np.isnan(row["p_equivalence_holm"])


def test_four_replicates_of_one_arm_and_three_of_the_other_are_three():
    row = judge(rows("full", [0.5, 0.51, 0.5, 0.49]), rows("part", [0.9, 0.91, 0.9], noise_hash="other")).iloc[0]
    assert (row["n"], row["n_against"], row["verdict"]) == (3, 4, "no verdict") and "3 replicates" in row["why"]


@pytest.mark.parametrize("gap", [0.0, 0.1, 1 / 3])
def test_replicates_that_do_not_differ_give_no_verdict(gap):
    """Also where all runs end in the same accuracy: ties are no evidence of their own sureness."""
    values = np.array([0.1, 0.3, 0.5, 0.6, 0.65])
    for against in (values, np.full(5, 0.5)):
        row = judge(rows("full", against), rows("part", against + gap), smallest_effect=0.2).iloc[0]
        assert row["verdict"] == "no verdict" and "do not differ" in row["why"] and np.isnan(row["p_holm"])


def test_a_diverged_run_is_chance_and_a_lost_one_is_left_out():
    full = rows("full", [0.8, 0.81, 0.79, 0.8, 0.82, 0.8])
    part = rows("part", [0.83, 0.84, 0.83, 0.82, 0.86, np.nan])
    part["failure_class"] = [None] * 5 + ["nan"]
    row = judge(full, part).iloc[0]
    differences = np.array([0.03, 0.03, 0.04, 0.02, 0.04, 0.1 - 0.8])
    assert row["n"] == 6 and row["difference"] == pytest.approx(differences.mean()) and row["verdict"] == "undecided"
    assert row["p"] == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue)
    lost = judge(full, part.iloc[:5], missing=[("part", 5, "failed")]).iloc[0]  # by accident: no outcome of the method
    assert lost["n"] == 5 and lost["verdict"] == "helps" and lost["difference"] == pytest.approx(0.032)
    assert "1 replicate" in lost["reason"]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_when_a_trial_diverged_changes_neither_the_test_nor_its_chance(classes):
    """In the first, a middle or the last epoch; and as earlier versions wrote the first, without hashes and classes."""
    text = json.dumps(np.eye(classes).tolist())
    about = {"dataset": "npz:own.npz", "classes": classes, "transition": text}
    full = rows("full", [0.5, 0.52, 0.49, 0.53, 0.5, 0.51], **about)
    part = rows("part", [0.53, 0.54, np.nan, 0.55, np.nan, 0.52], **about)
    part["failure_class"] = [None, None, "nan", None, "nan", None]
    found = []
    for epochs_done in (0, 50, 99):
        found.append(judge(full, part.assign(epochs_done=epochs_done)).iloc[0])
    early = part.copy()
    early.loc[early["failure_class"] == "nan", [*statistics.PAIRING_HASHES, "classes", "transition"]] = None
    found.append(judge(full.assign(classes=None), early.assign(epochs_done=0)).iloc[0])
    theirs = scipy.stats.ttest_rel(part["accuracy_last"].fillna(1 / classes), full["accuracy_last"])
    for row in found:
        assert row["paired"] and row["reason"] == statistics.HASHES_AGREE and (row["n"], row["diverged"]) == (6, 2)
        assert row["p"] == pytest.approx(theirs.pvalue)


def test_a_verdict_waits_for_all_planned_trials():
    full, part = arms(0.02, 0.005)
    row = judge(full, part.iloc[:5], missing=[("part", 5, "not run")]).iloc[0]
    assert row["verdict"] == "no verdict" and "1 planned trial has not run" in row["why"]
    assert np.isfinite(row["p"]) and np.isnan(row["p_holm"])
    elsewhere = judge(full, part, missing=[("third", 0, "not run")]).iloc[0]
    assert elsewhere["verdict"] == "helps"


def test_how_many_more_replicates_is_what_power_says():
    row = judge(*arms(0.004, 0.01)).iloc[0]
    needed = np.ceil(TTestPower().solve_power(0.4, alpha=0.05, power=0.8))
    assert row["more"] == needed - 6
    three = judge(*arms(0.004, 0.01), rows("third", normal(3, 6, 0.8, 0.01)), rows("fourth", normal(4, 6, 0.8, 0.01)))
    assert three["more"].iloc[0] == np.ceil(TTestPower().solve_power(0.4, alpha=0.05 / 3, power=0.8)) - 6


# ------------------------------------------------------------------------------------------------ verdicts over looks


def test_looks_use_the_replicates_up_to_each_and_remember_the_smallest_p():
    differences = np.array([0.010, 0.012, 0.011, 0.013, -0.05, 0.04, 0.02, -0.03])
    against = 0.8 + np.random.default_rng(0).normal(0, 0.01, 8)
    row = judge(rows("full", against), rows("part", against + differences), looks=LOOKS).iloc[0]
    p = [scipy.stats.ttest_1samp(differences[:n], 0).pvalue for n in (4, 6, 8)]
    assert p[0] < 0.01 < 0.3 < min(p[1:])
    assert row["p"] == p_over_looks(p, LOOKS) == p_over_looks(p[:1], LOOKS)
    assert (row["verdict"], row["look"], row["looked"], row["n"]) == ("helps", 4, 8, 8)
    assert row["difference"] == pytest.approx(differences.mean())  # the estimate is of all of them


def test_a_later_look_decides_at_its_own_level():
    """p = .03 at the last look: enough for a fixed number of replicates, not for the last of four looks."""
    against = 0.8 + np.random.default_rng(0).normal(0, 0.01, 10)
    differences = normal(3, 10) + scipy.stats.t.isf(0.015, 9) / np.sqrt(10)
    p = [scipy.stats.ttest_1samp(differences[:n], 0).pvalue for n in LOOKS]
    full, part = rows("full", against), rows("part", against + 0.01 * differences)
    fixed, looked = judge(full, part).iloc[0], judge(full, part, looks=LOOKS).iloc[0]
    assert min(p) == p[-1] == pytest.approx(0.03) and fixed["verdict"] == "helps"
    assert looked["p"] == pytest.approx(p_over_looks(p, LOOKS), rel=1e-3) and looked["p"] > 0.07
    assert looked["verdict"] == "undecided" and np.isnan(looked["look"]) and looked["looked"] == 10


def test_replicates_between_two_looks_wait_for_the_next():
    against = 0.8 + np.random.default_rng(0).normal(0, 0.01, 5)
    differences = np.append(normal(0, 4, 0.01, 0.02), 0.012)
    five = judge(rows("full", against), rows("part", against + differences), looks=LOOKS).iloc[0]
    four = scipy.stats.ttest_1samp(differences[:4], 0).pvalue
    assert five["p"] == p_over_looks([four], LOOKS) and five["looked"] == 4 and five["n"] == 5


def test_an_arm_that_stopped_is_not_looked_at_again():
    """The reference went on to ten for another arm; an unpaired comparison would change with it."""
    random = np.random.default_rng(0)
    full, part = random.normal(0.8, 0.01, 10), random.normal(0.83, 0.01, 4)
    row = judge(rows("full", full), rows("part", part, split_hash="other"), looks=LOOKS).iloc[0]
    assert row["looked"] == 4 and (row["n"], row["n_against"]) == (4, 10)
    at_four = scipy.stats.ttest_ind(part, full[:4], equal_var=False).pvalue
    assert row["p"] == pytest.approx(p_over_looks([at_four], LOOKS))


def test_a_look_at_which_too_many_runs_are_lost_allows_no_verdict():
    full, part = arms(0.05, 0.001, n=6)
    lost = part[~part["replicate"].isin([1])]
    three = judge(
        full[full["replicate"] < 4], lost[lost["replicate"] < 4], looks=LOOKS, missing=[("part", 1, "failed")]
    )
    assert three.iloc[0]["verdict"] == "no verdict" and "too few" in three.iloc[0]["why"]
    five = judge(full, lost, looks=LOOKS, missing=[("part", 1, "failed")]).iloc[0]
    assert five["verdict"] == "helps" and five["look"] == 6


@pytest.mark.parametrize("seed", range(6))
def test_what_is_decided_at_one_look_stays_decided_at_later_ones(seed):
    random = np.random.default_rng(seed)
    against = random.normal(0.8, 0.01, 10)
    others = [against + random.normal(shift, 0.01, 10) for shift in (0.0, 0.01)]
    decided: dict[str, float] = {}
    for n in LOOKS[:3]:
        frame = judge(
            rows("full", against[:n]),
            *(rows(f"arm{i}", o[:n]) for i, o in enumerate(others)),
            looks=LOOKS,
            smallest_effect=0.01,
        )
        for row in statistics.records(frame):
            if row["arm"] in decided:
                assert row["verdict"] != "undecided" and row["look"] == decided[row["arm"]]
            elif row["verdict"] != "undecided":
                assert row["look"] == n
                decided[row["arm"]] = row["look"]
