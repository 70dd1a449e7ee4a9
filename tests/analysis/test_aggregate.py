"""Statistics across settings and of factorials: answers by hand, from SciPy, from simulated truth, and from rows."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.colors import same_color
from scipy.special import ndtr

from analysis import aggregate, load, statistics
from analysis.aggregate import interquartile_mean, linear, paired_improvement, proportion, rank, unpaired_improvement
from analysis.factorials import declared_factorials, effect_coefficients, effects, factorials, prediction_coefficients
from analysis.figures.aggregate import across_figures
from analysis.figures.base import arm_looks
from analysis.tables.aggregate import across_tables, scope_sentence
from analysis.words import setting_name
from studies.robmix_ablation import study as robmix
from tests import simulated

# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([4, 1, 3, 2], 2.5),
        ([8, 7, 6, 5, 4, 3, 2, 1], 4.5),
        ([0, 1, 2, 3, 10], (0.75 * 1 + 2 + 0.75 * 3) / 2.5),  # quartiles cut the second and the fourth of five
        ([0, 6, 1, 2, 4, 3], (0.5 * 1 + 2 + 3 + 0.5 * 4) / 3),
        ([1, 2, 9], (0.25 * 1 + 2 + 0.25 * 9) / 1.5),
        ([1, 3], 2),
        ([7], 7),
    ],
)
def test_interquartile_mean_by_hand(values, expected):
    assert interquartile_mean(values) == pytest.approx(expected)


def test_interquartile_mean_is_scipys_trimmed_mean_where_quarters_are_whole():
    values = np.random.default_rng(0).normal(size=(3, 12))
    np.testing.assert_allclose(interquartile_mean(values), scipy.stats.trim_mean(values, 0.25, axis=1))
    values[:, 0] = 1e6
    assert (interquartile_mean(values) < 10).all()  # one run of twelve cannot carry it away


def test_a_share_whose_replicates_agree_has_the_interval_of_independent_runs():
    for hits in (0, 3, 6):
        scores = np.tile(np.arange(6) < hits, (4, 1))
        exact = scipy.stats.binomtest(4 * hits, 24).proportion_ci(0.95, "exact")
        share, low, high = proportion(scores)
        assert (share, low, high) == (hits / 6, pytest.approx(exact.low), pytest.approx(exact.high))
    assert proportion(np.ones((4, 6)))[1] == pytest.approx(0.025 ** (1 / 24))


def test_a_share_whose_settings_repeat_each_other_is_worth_less_than_its_replicates():
    scores = np.repeat([[1.0], [1.0], [1.0], [0.0], [0.0]], 8, axis=1)
    # the variance of the mean is p (1 - p) / (n - 1), so five replicates are four runs, fewer still with four degrees
    size = 4 * (scipy.stats.t.ppf(0.975, 39) / scipy.stats.t.ppf(0.975, 4)) ** 2
    low = scipy.stats.beta.ppf(0.025, 0.6 * size, 0.4 * size + 1)
    high = scipy.stats.beta.ppf(0.975, 0.6 * size + 1, 0.4 * size)
    np.testing.assert_allclose(proportion(scores), [0.6, low, high])
    alone = proportion(np.ones((1, 3)))
    assert alone[0] == 1 and np.isnan(alone[1:]).all()


def test_improvement_of_pairs_counts_ties_as_half():
    values, against = [[0.8, 0.5], [0.7, 0.6], [0.1 + 0.2, 0.9]], [[0.7, 0.5], [0.8, 0.5], [0.3, 0.2]]
    by_setting, share, low, high = paired_improvement(values, against)
    np.testing.assert_allclose(by_setting, [(1 + 0 + 0.5) / 3, (0.5 + 1 + 1) / 3])  # rounding makes no winner
    assert share == pytest.approx(4 / 6) and low < share < high
    back = paired_improvement(against, values)
    np.testing.assert_allclose([back[1], back[2], back[3]], [1 - share, 1 - high, 1 - low])


def test_unpaired_improvement_is_mann_and_whitneys_with_delongs_variance():
    draw = np.random.default_rng(3)
    values, against = (
        (draw.normal(mean, 1, (n, 1)) + draw.normal(0, 0.2, (n, 2))).round(1) for mean, n in ((0.4, 5), (0, 7))
    )
    by_setting, share, low, high = unpaired_improvement(values, against)
    for setting in range(2):
        u = scipy.stats.mannwhitneyu(values[:, setting], against[:, setting]).statistic
        assert by_setting[setting] == pytest.approx(u / 35)
    assert share == pytest.approx(by_setting.mean())

    def mean_win(ours, theirs):
        return np.mean([(a > b) + 0.5 * (a == b) for x in ours for y in theirs for a, b in zip(x, y, strict=True)])

    first = np.var([mean_win([x], against) for x in values], ddof=1) / 5
    second = np.var([mean_win(values, [y]) for y in against], ddof=1) / 7
    freedom = (first + second) ** 2 / (first**2 / 4 + second**2 / 6)
    quantiles = scipy.stats.t.ppf(0.975, [9, freedom])
    size = share * (1 - share) / (first + second) * (quantiles[0] / quantiles[1]) ** 2
    assert size < 10  # runs
    assert low == pytest.approx(scipy.stats.beta.ppf(0.025, share * size, (1 - share) * size + 1))
    assert high == pytest.approx(scipy.stats.beta.ppf(0.975, share * size + 1, (1 - share) * size))


# Demšar 2006, Table 6: AUC of C4.5, with m, with cf, with both, on 14 data sets.  The table prints 0.975 twice in the
# last row but one, and ranks the first of them second, the other third.
DEMSAR = [
    [0.763, 0.768, 0.771, 0.798],
    [0.599, 0.591, 0.590, 0.569],
    [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898],
    [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685],
    [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000],
    [0.940, 0.962, 0.965, 0.962],
    [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.97501, 0.975],
    [0.957, 0.978, 0.946, 0.970],
]


def test_ranks_and_groups_of_demsars_example():
    ranking = rank(DEMSAR)
    np.testing.assert_allclose(ranking.ranks, [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    uncorrected = 12 * 14 / (4 * 5) * ((ranking.ranks**2).sum() - 4 * 25 / 4)
    assert uncorrected == pytest.approx(9.28, abs=0.005)  # the paper has no correction for ties
    expected = scipy.stats.friedmanchisquare(*np.transpose(DEMSAR))
    assert (ranking.statistic, ranking.p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert ranking.difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    # at .05 no two differ by 1.25; at .10, with 1.12, C4.5 is worse than those with m, and with cf in between
    assert ranking.groups == [(3, 1, 2, 0)]
    order = np.argsort(ranking.ranks)
    assert aggregate._groups(ranking.ranks, order, 2.291 * np.sqrt(20 / 84)) == [(3, 1, 2), (2, 0)]


@pytest.mark.parametrize(
    ("ranks", "difference", "groups"),
    [
        ([1, 2, 3, 4], 1.5, [(0, 1), (1, 2), (2, 3)]),
        ([1, 2, 3, 4], 1.0, []),  # a difference as large as the critical one counts
        ([4, 3, 1, 2], 2.5, [(2, 3, 1), (3, 1, 0)]),
        ([1, 1.5, 3.9, 4, 4.6], 1.0, [(0, 1), (2, 3, 4)]),
        ([1, 1.2, 3, 4.9, 4.9], 0.5, [(0, 1), (3, 4)]),  # the third differs from all
        ([3, 2, 1], np.inf, [(2, 1, 0)]),
    ],
)
def test_groups_by_hand(ranks, difference, groups):
    ranks = np.array(ranks, dtype=float)
    assert aggregate._groups(ranks, np.argsort(ranks, kind="stable"), difference) == groups


def test_groups_are_the_maximal_sets_within_the_difference():
    draw = np.random.default_rng(5)
    for _ in range(40):
        ranks = draw.uniform(1, 7, 7).round(1)
        close = [
            set(some)
            for size in range(2, 8)
            for some in itertools.combinations(range(7), size)
            if np.ptp(ranks[list(some)]) < 1.5
        ]
        maximal = [some for some in close if not any(some < other for other in close)]
        found = [set(group) for group in aggregate._groups(ranks, np.argsort(ranks, kind="stable"), 1.5)]
        assert sorted(map(sorted, found)) == sorted(map(sorted, maximal))


def test_arms_that_friedman_does_not_tell_apart_are_one_group():
    draw = np.random.default_rng(1)
    assert sorted(rank(draw.normal(size=(6, 4))).groups[0]) == [0, 1, 2, 3]
    # Nemenyi's test alone would tell the first from the second
    places = [[2, 5, 1, 4, 3, 6], [3, 6, 5, 1, 4, 2], [2, 6, 5, 4, 1, 3], [2, 4, 6, 1, 5, 3], [1, 6, 4, 3, 2, 5]]
    ranking = rank(-np.array([*places, [2, 5, 4, 6, 3, 1]]))
    assert np.ptp(ranking.ranks) > ranking.difference and 0.05 < ranking.p < 0.06
    assert [sorted(group) for group in ranking.groups] == [[0, 1, 2, 3, 4, 5]]
    alike = rank(np.full((5, 3), 0.9))
    assert (alike.statistic, alike.p) == (0, 1) and alike.ranks.tolist() == [2, 2, 2] and len(alike.groups) == 1
    apart = rank(np.arange(10)[:, None] + np.array([0.1, 0.3, 0.2]))
    assert apart.ranks.tolist() == [3, 1, 2] and apart.groups == [(1, 2), (2, 0)]  # 1.05: neighbours are not apart


def test_sums_of_cells_are_scipys_paired_and_welch_tests():
    draw = np.random.default_rng(2)
    one, other = draw.normal(0.8, 0.02, 6), draw.normal(0.79, 0.01, 6)
    for paired, expected in (
        (True, scipy.stats.ttest_rel(one, other)),
        (False, scipy.stats.ttest_ind(one, other, equal_var=False)),
    ):
        found = linear([one, other], [1, -1], paired)
        low, high = expected.confidence_interval()
        np.testing.assert_allclose([found.low, found.high, found.p], [low, high, expected.pvalue])
    same = linear([[0.5, 0.5], [0.5, 0.5, 0.5]], [[1, -1]], paired=False)
    assert same.value == [0] and np.isnan(same.low).all()


# ----------------------------------------------------------------------------------- intervals, where truth is known


def draws(count, n, settings, correlation, seed, spread=3.0):
    """Accuracies in units of a run's deviation, (count, n, settings); settings of a replicate are correlated."""
    draw = np.random.default_rng([seed, n, settings])
    shared, own = draw.standard_normal((count, n, 1)), draw.standard_normal((count, n, settings))
    return np.linspace(0, spread, settings) + correlation**0.5 * shared + (1 - correlation) ** 0.5 * own


def covered(low, high, truth):
    return np.mean((low <= truth) & (truth <= high))


def bound(count, tail=0.001):
    return scipy.stats.binom.ppf([tail, 1 - tail], count, 0.95) / count


@pytest.mark.parametrize("n", [4, 6, 10])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_the_interval_of_an_iqm_covers_it(n, correlation):
    # the five settings are symmetric about 1.5, so the IQM is
    values = interquartile_mean(draws(3000, n, 5, correlation, seed=0))
    found = statistics.mean(values)
    low, high = bound(3000)
    assert low <= covered(found.low, found.high, 1.5) <= high


def test_the_percentile_bootstrap_over_runs_does_not():
    values = draws(200, 5, 5, 0.5, seed=1)
    draw = np.random.default_rng(0)
    chosen = draw.integers(5, size=(300, *values.shape))  # resamples each setting by itself: stratified
    resampled = np.take_along_axis(np.broadcast_to(values, chosen.shape), chosen, axis=2)
    low, high = np.quantile(interquartile_mean(resampled.reshape(300, 200, -1)), [0.025, 0.975], axis=0)
    assert covered(low, high, 1.5) < 0.85


@pytest.mark.parametrize("n", [4, 6, 10])
@pytest.mark.parametrize(("correlation", "lead"), [(0.0, 0.0), (0.3, 1.0), (0.3, 2.0)])
def test_the_interval_of_a_probability_covers_it(n, correlation, lead):
    won = draws(2000, n, 6, correlation, seed=2) - 1.5 + lead > 0
    _, low, high = proportion(won)
    truth = ndtr(np.linspace(0, 3, 6) - 1.5 + lead).mean()
    assert covered(low, high, truth) >= bound(2000)[0]


def test_a_t_interval_of_a_probability_near_one_does_not():
    won = draws(2000, 4, 6, 0.3, seed=2, spread=0) + 2 > 0
    found = statistics.mean(won.mean(-1))
    assert covered(np.nan_to_num(found.low, nan=1), np.nan_to_num(found.high, nan=1), ndtr(2)) < 0.7
    assert covered(*proportion(won)[1:], ndtr(2)) >= bound(2000)[0]


@pytest.mark.parametrize("n", [4, 6, 10])
def test_the_interval_of_an_unpaired_probability_covers_it(n):
    values, against = draws(600, n, 4, 0.3, seed=3, spread=0) + 1, draws(600, n, 4, 0.3, seed=4, spread=0)
    found = np.array([unpaired_improvement(*pair)[2:] for pair in zip(values, against, strict=True)])
    assert covered(*found.T, ndtr(1 / 2**0.5)) >= bound(600)[0]


# ----------------------------------------------------------------------------------------------------------- factorials


def test_effects_by_hand():
    # cells: none, A, B, AB, C, AC, BC, ABC
    cells = np.array([10.0, 12, 13, 16, 20, 23, 21, 29])
    effects = dict(zip(range(1, 8), effect_coefficients(3) @ cells, strict=True))
    assert effects[1] == pytest.approx((2 + 3 + 3 + 8) / 4)  # of A: without both, with B, with C, with both
    assert effects[2] == pytest.approx((3 + 4 + 1 + 6) / 4)
    assert effects[4] == pytest.approx((10 + 11 + 8 + 13) / 4)
    assert effects[0b011] == pytest.approx(((16 - 12 - 13 + 10) + (29 - 23 - 21 + 20)) / 2)
    assert effects[0b111] == pytest.approx((29 - 23 - 21 + 20) - (16 - 12 - 13 + 10))
    predicted = prediction_coefficients(3) @ cells
    assert predicted.tolist() == [10, 12, 13, 10 + 2 + 3, 20, 10 + 2 + 10, 10 + 3 + 10, 10 + 2 + 3 + 10]
    assert (cells - predicted)[7] == 29 - 12 - 13 - 20 + 2 * 10


@pytest.mark.parametrize("factors", [2, 3, 4])
def test_effects_are_those_of_a_regression_on_signs(factors):
    cells = np.random.default_rng(factors).normal(size=2**factors)
    bits = (np.arange(2**factors)[:, None] >> np.arange(factors)) & 1
    signs = 2 * bits - 1
    design = np.stack([signs[:, chosen.astype(bool)].prod(axis=1) for chosen in bits], axis=1)
    slopes = np.linalg.solve(design, cells)
    np.testing.assert_allclose(effect_coefficients(factors) @ cells, (slopes * 2.0 ** bits.sum(axis=1))[1:])


def test_additive_cells_have_no_interactions_and_no_residual():
    single = np.array([0.01, -0.02, 0.005])
    bits = (np.arange(8)[:, None] >> np.arange(3)) & 1
    cells = 0.9 + bits @ single
    found = effect_coefficients(3) @ cells
    np.testing.assert_allclose(found[[0, 1, 3]], single)
    np.testing.assert_allclose(found[[2, 4, 5, 6]], 0, atol=1e-12)
    np.testing.assert_allclose(prediction_coefficients(3) @ cells, cells)


def test_the_factorials_of_robmix_are_found():
    found, *others = factorials(robmix.arms)
    assert [other.factors for other in others] == [("alternating", "frozen_head"), ("alternating", "projection_only")]
    assert found.factors == ("frozen_head", "gradient_tenth", "two_alternating")
    assert found.arms == (
        *("full", "frozen_head", "gradient_tenth", "frozen_tenth"),
        *("two_alternating", "frozen_alternating", "tenth_alternating", "all_three"),
    )
    assert found.term(0b101) == ("frozen_head", "two_alternating")


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ({"full": {}, "a": {"x": 1}, "b": {"y": 1}, "ab": {"x": 1, "y": 1}}, [("full", "a", "b", "ab")]),
        ({"full": {}, "a": {"x": 1}, "b": {"y": 1}, "ab": {"x": 1, "y": 2}}, []),
        ({"full": {}, "a": {"x": 1}, "b": {"x": 2}, "c": {"y": 1}, "ac": {"x": 1, "y": 1}}, [("full", "a", "c", "ac")]),
        # not from the base; lists as values; the larger factor first
        (
            {"ab": {"p": 0, "x": [1], "z": 1, "y": 1}, "a": {"p": 0, "x": [1], "z": 1}, "o": {"p": 0},
             "b": {"p": 0, "y": 1}},
            [("o", "a", "b", "ab")],
        ),
        # another method is no factor beside a field of the method
        ({"full": {}, "m": {"method": "gce"}, "q": {"method.q": 1}, "mq": {"method": "gce", "method.q": 1}}, []),
        ({"only": {"x": 1}}, []),
    ],
)  # fmt: skip
def test_factorials_by_hand(arms, expected):
    assert [factorial.arms for factorial in factorials(arms)] == expected


def test_two_factorials_that_share_arms_are_both_found():
    arms = {"full": {}, "a": {"x": 1}, "b": {"y": 1}, "c": {"z": 1}, "ab": {"x": 1, "y": 1}, "bc": {"y": 1, "z": 1}}
    assert [factorial.factors for factorial in factorials(arms)] == [("a", "b"), ("b", "c")]


def test_what_a_search_found_is_no_factor(tmp_path):
    simulated.searched(tmp_path)
    study = load(tmp_path, simulated.STUDY)
    values = study.plan.arms["full_tpe"]
    study.plan.arms["both"] = {**study.plan.arms["stopped_gradient"], **values}
    assert [one.factors for one in factorials(study.plan.arms)] == [("stopped_gradient", "full_tpe")]
    assert declared_factorials(study) == []


# -------------------------------------------------------------------------------------------------------------- a study

ARMS = {"full": {}, "a": {"x": 1}, "b": {"y": 2}, "ab": {"x": 1, "y": 2}, "c": {"z": 1}}
SETTINGS = [
    {f: level for f, level in (("labels", labels), ("noise.rate", rate)) if level != simulated.BASE_LEVELS[f]}
    for labels in (40, 100, 400)
    for rate in (0.2, 0.4)
]
ACROSS = ("full", "a", "c")


def written(folder, replicates=4, lacking=(), arms=ARMS, **columns):
    """A study in which three arms have six settings and the others the base; its accuracies by arm and setting."""
    draw = np.random.default_rng(7)
    plan = simulated.plan(replicates, panels=["frozen_head"], arms=arms, contrasts=[])
    wanted = [(arm, setting) for arm in arms for setting in SETTINGS if arm in ACROSS or not setting]
    plan["trials"] = [
        {"trial": simulated.trial_id(arm, setting, r), "arm": arm, "setting": setting, "replicate": r}
        for arm, setting in wanted
        for r in range(replicates)
    ]
    simulation = simulated.Simulation(folder, epochs=1)
    simulation.submit(plan)
    rows = []
    for trial in plan["trials"]:
        place = SETTINGS.index(trial["setting"])
        value = round(0.7 + 0.04 * place - 0.02 * (trial["arm"] == "c") + draw.normal(0, 0.01), 3)
        if (trial["arm"], place, trial["replicate"]) not in lacking:
            simulation.trial(**trial, accuracy_last=value, **columns.get(trial["arm"], {}))
            rows.append({**trial, "place": place, "value": value})
    return load(folder, simulated.STUDY), pd.DataFrame(rows)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return written(tmp_path_factory.mktemp("results"), lacking=[("c", 2, 3)])


def table(rows, arm, replicates=4):
    cells = rows[rows["arm"] == arm].pivot(index="replicate", columns="place", values="value")
    return cells.loc[range(replicates)].to_numpy()


def trimmed(values):
    """IQM of six: half of the second and of the fifth, all of the two between."""
    second, third, fourth, fifth = np.sort(values, axis=1)[:, 1:5].T
    return (second / 2 + third + fourth + fifth / 2) / 3


@pytest.mark.slow
def test_arms_and_settings_that_make_a_grid(results):
    study, _ = results
    grid = aggregate.grid(study, "last")
    assert grid.arms == list(ACROSS) and grid.reference == "full" and len(grid.settings) == 6
    assert grid.left_arms == ["b", "ab"] and grid.left_settings == []
    assert grid.left_runs == 5  # of the replicate that lacks a setting in one arm
    assert [len(accuracies) for accuracies in grid.accuracies.values()] == [4, 4, 3]


def test_iqm_and_differences_against_the_rows(results):
    study, rows = results
    frame = aggregate.interquartile_means(aggregate.grid(study, "last")).set_index("arm")
    full = trimmed(table(rows, "full"))
    low, high = scipy.stats.t.interval(0.95, 3, full.mean(), scipy.stats.sem(full))
    np.testing.assert_allclose(frame.loc["full", ["iqm", "low", "high"]].astype(float), [full.mean(), low, high])
    test = scipy.stats.ttest_rel(trimmed(table(rows, "c", 3)), full[:3])
    low, high = test.confidence_interval()
    found = frame.loc["c", ["difference_low", "difference_high", "p"]].astype(float)
    np.testing.assert_allclose(found, [low, high, test.pvalue])
    assert bool(frame.loc["c", "paired"]) and (frame.loc["c", "pairs"], frame.loc["a", "pairs"]) == (3, 4)


def test_profiles_against_the_rows(results):
    study, rows = results
    frame = aggregate.profiles(aggregate.grid(study, "last"))
    of_full = frame[frame["arm"] == "full"]
    values = table(rows, "full")
    for _, row in of_full.iloc[::25].iterrows():
        assert row["share"] == pytest.approx((values > row["threshold"]).mean())
        assert row["low"] <= row["share"] <= row["high"]
    assert (of_full["share"].diff().dropna() <= 0).all()
    assert frame["threshold"].agg(["min", "max"]).tolist() == [
        rows.loc[rows["arm"].isin(ACROSS) & ~((rows["arm"] == "c") & (rows["replicate"] == 3)), "value"].min(),
        rows.loc[rows["arm"].isin(ACROSS) & ~((rows["arm"] == "c") & (rows["replicate"] == 3)), "value"].max(),
    ]


def test_improvement_against_the_rows(results):
    study, rows = results
    frame = aggregate.improvements(aggregate.grid(study, "last"))
    for arm, n in (("a", 4), ("c", 3)):
        own, full = table(rows, arm, n), table(rows, "full", n)
        won = (own > full) + 0.5 * (own == full)
        mine = frame[frame["arm"] == arm]
        np.testing.assert_allclose(mine["probability"], [won.mean(), *won.mean(axis=0)])
        assert mine["setting"].tolist() == [None, *SETTINGS]
        assert mine["low"].notna().tolist() == [True] + [False] * 6 and (mine["n"] == n).all()


def test_ranks_against_the_rows(results):
    study, rows = results
    grid = aggregate.grid(study, "last")
    means = pd.DataFrame({arm: table(rows, arm, 4 if arm != "c" else 3).mean(axis=0) for arm in ACROSS})
    expected = means.rank(axis=1, ascending=False).mean()
    np.testing.assert_allclose(aggregate.ranking(grid).ranks, expected)
    few = dataclasses.replace(grid, settings=grid.settings[:4])
    assert aggregate.ranking(few) is None


def test_effects_against_the_rows(results):
    study, rows = results
    (factorial,) = factorials(study.plan.arms)
    frame = effects(study, factorial, "last")
    base = rows[rows["setting"] == {}].pivot(index="replicate", columns="arm", values="value")
    expected = {
        ("effect", ("a",)): (base["a"] - base["full"] + base["ab"] - base["b"]) / 2,
        ("effect", ("b",)): (base["b"] - base["full"] + base["ab"] - base["a"]) / 2,
        ("effect", ("a", "b")): base["ab"] - base["a"] - base["b"] + base["full"],
        ("measured", ("a", "b")): base["ab"],
        ("additive", ("a", "b")): base["a"] + base["b"] - base["full"],
        ("residual", ("a", "b")): base["ab"] - base["a"] - base["b"] + base["full"],
    }
    assert list(zip(frame["kind"], frame["term"], strict=True)) == list(expected)
    for (_, row), values in zip(frame.iterrows(), expected.values(), strict=True):
        low, high = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
        np.testing.assert_allclose([row["value"], row["low"], row["high"]], [values.mean(), low, high])
    test = scipy.stats.ttest_1samp(expected["residual", ("a", "b")], 0)
    assert frame["p"].iloc[-1] == pytest.approx(test.pvalue) and frame["p"].isna().tolist()[3:5] == [True, True]
    assert frame["paired"].all() and (frame["n"] == 4).all()


@pytest.mark.slow
def test_diverged_runs_stay_as_chance_and_are_counted(tmp_path):
    lost = {"status": "failed", "failure_class": "nan"}
    study, rows = written(tmp_path, replicates=2, arms={arm: ARMS[arm] for arm in ("full", "a", "b", "ab")}, ab=lost)
    (residual,) = effects(study, factorials(study.plan.arms)[0], "last").query("kind == 'residual'")["value"]
    base = rows[rows["setting"] == {}].groupby("arm")["value"].mean()
    assert residual == pytest.approx(0.1 - base["a"] - base["b"] + base["full"])
    caption = across_figures(study, "last")["factorial-a-b"].caption
    assert "2 diverged trials counted as chance." in caption


@pytest.mark.slow
def test_other_noise_draws_are_never_paired(tmp_path):
    study, rows = written(
        tmp_path, arms={arm: ARMS[arm] for arm in ("full", "a", "b", "ab")}, a={"noise_hash": "other"}
    )
    grid = aggregate.grid(study, "last")
    (row,) = aggregate.interquartile_means(grid).query("arm == 'a'").to_dict("records")
    test = scipy.stats.ttest_ind(trimmed(table(rows, "a")), trimmed(table(rows, "full")), equal_var=False)
    assert not row["paired"] and row["reason"] == "noise hashes differ or are absent"
    np.testing.assert_allclose([row["difference_low"], row["difference_high"]], list(test.confidence_interval()))
    mean = aggregate.improvements(grid).iloc[0]
    u = [
        scipy.stats.mannwhitneyu(a, b).statistic for a, b in zip(table(rows, "a").T, table(rows, "full").T, strict=True)
    ]
    assert mean["probability"] == pytest.approx(np.mean(u) / 16) and not mean["paired"]
    frame = effects(study, factorials(study.plan.arms)[0], "last")
    cells = [rows.loc[(rows["arm"] == arm) & (rows["place"] == SETTINGS.index({})), "value"] for arm in study.plan.arms]
    error = sum(scipy.stats.sem(cell) ** 2 for cell in cells)
    freedom = error**2 / sum(scipy.stats.sem(cell) ** 4 / 3 for cell in cells)
    residual = frame.iloc[-1]
    half = scipy.stats.t.ppf(0.975, freedom) * error**0.5
    assert residual["high"] - residual["value"] == pytest.approx(half) and not frame["paired"].any()
    assert "unpaired" in across_figures(study, "last")["factorial-a-b"].caption


def test_many_arms_that_were_left_out_are_counted(results):
    study, _ = results
    grid = aggregate.grid(study, "last")
    few = dataclasses.replace(grid, left_arms=list("abcdef"))
    assert "these settings: a, b, c, d, e and f." in scope_sentence(few, "last")
    many = dataclasses.replace(grid, left_arms=list("abcdefg"))
    assert " 7 arms left out, because they lack a replicate with all of these settings." in (
        scope_sentence(many, "last")
    )


def test_figures_show_their_frames_and_say_what_was_left_out(results):
    study, _ = results
    figures = across_figures(study, "last")
    assert list(figures) == ["iqm", "profiles", "improvement", "ranks", "factorial-a-b"]
    for name in ("iqm", "profiles", "improvement", "ranks"):
        caption = figures[name].caption
        assert "Over 6 settings (noise rate and labelled images), each with the same weight" in caption
        assert (
            "Arms left out, because they lack a replicate with all of these settings: b and ab." in caption
            and "5 runs" in caption
        )
        assert "selection rule last" in caption and "n = 3 to 4 replicates" in caption
    looks = arm_looks(study)
    left, right = figures["iqm"].figure.axes
    frame = figures["iqm"].drawn
    bold = [line for line in left.lines if line.get_markersize() == 6]
    np.testing.assert_allclose([line.get_xdata()[0] for line in bold], 100 * frame["iqm"])
    assert all(same_color(line.get_color(), looks[arm].colour) for line, arm in zip(bold, frame["arm"], strict=True))
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["full", "a", "c"]
    assert right.get_xlabel() == "difference to full (points)"
    first = figures["profiles"].figure.axes[0]
    drawn = figures["profiles"].drawn
    np.testing.assert_allclose(first.lines[1].get_ydata(), 100 * drawn.loc[drawn["arm"] == "a", "share"])
    better = figures["improvement"]
    bold = [
        line.get_xdata()[0]
        for line in better.figure.axes[0].lines
        if line.get_markersize() == 6 and line.get_marker() == "o"
    ]
    np.testing.assert_allclose(bold, 100 * better.drawn.loc[better.drawn["setting"].isna(), "probability"])
    texts = [text.get_text() for text in figures["ranks"].figure.axes[0].texts]
    for row in figures["ranks"].drawn.to_dict("records"):
        assert any(row["arm"] in text and f"{row['rank']:.2f}" in text for text in texts)
    named = {setting_name(setting) for setting in SETTINGS}
    assert set(better.drawn["setting"].dropna()) == named and len(named) == 6
    assert list(figures["factorial-a-b"].drawn["term"])[2] == "a × b"
    lower = figures["factorial-a-b"].figure.axes[1]
    drawn = figures["factorial-a-b"].drawn.set_index("kind")["value"]
    points = [line.get_xdata()[0] for line in lower.lines]
    np.testing.assert_allclose(points, 100 * drawn[["measured", "additive"]])


def test_tables_hold_the_numbers_of_the_figures(results):
    study, _ = results
    tables = across_tables(study, "last")
    assert list(tables) == ["settings", "factorial-a-b"]
    settings = tables["settings"]
    assert [row[0] for row in settings.rows] == ["full", "a", "c"] and settings.rows[0][4] == "reference"
    assert settings.rows[2][2] == f"{100 * settings.frame['iqm'].iloc[2]:.2f}" and settings.rows[2][5] == "yes, n = 3"
    assert len(settings.header) == len(settings.rows[0]) == len(settings.rows[1])
    terms = [row[0] for row in tables["factorial-a-b"].rows]
    assert terms == ["a", "b", "a × b", "ab"]
    assert tables["factorial-a-b"].rows[3][1].startswith("additivity residual: ")
    assert "\\toprule" in settings.latex("settings") and "a $\\times$" not in settings.markdown()


@pytest.mark.slow
def test_the_same_rows_give_the_same_bytes(results):
    study, _ = results
    once, again = (across_figures(study, "last") for _ in range(2))
    assert all(once[name].png() == again[name].png() for name in once)


def test_a_study_in_one_setting_has_nothing_to_aggregate(tmp_path):
    simulated.complete(tmp_path, panels=["frozen_head"])
    study = load(tmp_path, simulated.STUDY)
    assert aggregate.grid(study, "last") is None
    assert across_figures(study, "last") == {} and across_tables(study, "last") == {}


def test_a_study_without_results_has_no_figures(tmp_path):
    simulated.Simulation(tmp_path).submit(simulated.plan())
    study = load(tmp_path, simulated.STUDY)
    assert across_figures(study, "last") == {}


def present(**rows):
    return pd.DataFrame.from_dict(rows, orient="index").astype(bool).rename(columns=str)


def shape(present, base="full"):
    kept = aggregate._rectangle(present, base)
    return None if kept is None else (list(kept.index), "".join(kept.columns))


def test_the_largest_part_without_gaps_is_aggregated():
    assert shape(present(full=[1, 1, 1], a=[1, 1, 1], b=[1, 0, 0], c=[1, 1, 1])) == (["full", "a", "c"], "012")
    assert shape(present(full=[1, 1, 1], a=[1, 1, 0], b=[1, 1, 0])) == (["full", "a", "b"], "01")
    # with the base, though more could be compared without it
    assert shape(present(full=[1, 1, 0, 0], a=[1, 1, 1, 1], b=[1, 1, 1, 1])) == (["full", "a", "b"], "01")
    assert shape(present(full=[1, 0, 0], a=[1, 1, 1], b=[0, 1, 1])) == (["a", "b"], "12")
    # many arms in one setting are nothing to aggregate; two of them in five more are
    many = present(full=[1] * 6, a=[1] * 6, **{f"arm{i}": [1] + [0] * 5 for i in range(28)})
    assert shape(many) == (["full", "a"], "012345")
    assert shape(present(full=[1, 0], a=[0, 1])) is None and shape(present(full=[1], a=[1])) is None


def test_no_other_part_without_gaps_is_larger():
    draw = np.random.default_rng(4)
    subsets = [list(some) for size in range(2, 6) for some in itertools.combinations(range(5), size)]
    for _ in range(30):
        table = draw.random((5, 5)) < 0.7
        frame = present(**{f"arm{i}": row for i, row in enumerate(table)})
        full = [(rows, columns) for rows in subsets for columns in subsets if table[np.ix_(rows, columns)].all()]
        full = [part for part in full if 0 in part[0]] or full
        found = shape(frame, "arm0")
        assert (len(found[0]) * len(found[1]) if found else 0) == max([len(a) * len(b) for a, b in full], default=0)
        assert found is None or frame.loc[found[0], list(found[1])].to_numpy().all()


def test_a_large_study_full_of_gaps_is_searched_only_as_far_as_it_pays():
    """Trying all parts would take minutes; the one of 18 × 24 that is there is found among gaps of a fifth."""
    table = np.random.default_rng(6).random((30, 40)) < 0.8
    table[:18, :24] = True
    kept = aggregate._rectangle(present(**{f"arm{i}": row for i, row in enumerate(table)}), "arm0")
    assert kept.to_numpy().all() and kept.size >= 18 * 24
