"""Estimates against SciPy, intervals against simulated truth, pairing against hand-written hashes."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analysis import statistics
from analysis.words import rule_sentence

DRAWS = np.random.default_rng(0)


def rows(accuracies, replicates=None, **columns):
    """Finished trials of one arm whose hashes name their replicate."""
    replicates = list(range(len(accuracies))) if replicates is None else replicates
    frame = pd.DataFrame(
        {"replicate": replicates, "accuracy_last": accuracies, "failure_class": None, "transition": None}
    ).assign(classes=10, dataset="digits")
    for name in statistics.PAIRING_HASHES:
        frame[name] = [f"{name}-{replicate}" for replicate in replicates]
    return frame.assign(**columns)


@pytest.mark.parametrize("n", [2, 3, 4, 10, 100])
def test_mean_and_paired_difference_equal_scipy(n):
    values, against = DRAWS.normal(0.8, 0.02, n), DRAWS.normal(0.79, 0.03, n)
    ours, theirs = statistics.mean(values), scipy.stats.ttest_1samp(values, 0)
    low, high = theirs.confidence_interval()
    np.testing.assert_allclose([*ours][:4], [values.mean(), low, high, theirs.pvalue], rtol=1e-9)
    ours, theirs = statistics.paired_difference(values, against), scipy.stats.ttest_rel(values, against)
    low, high = theirs.confidence_interval()
    np.testing.assert_allclose([*ours][:4], [(values - against).mean(), low, high, theirs.pvalue], rtol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 7), (10, 4)])
def test_welch_difference_equals_scipy(n, m):
    values, against = DRAWS.normal(0.8, 0.02, n), DRAWS.normal(0.79, 0.05, m)
    ours, theirs = statistics.welch_difference(values, against), scipy.stats.ttest_ind(values, against, equal_var=False)
    low, high = theirs.confidence_interval()
    np.testing.assert_allclose([*ours][:4], [values.mean() - against.mean(), low, high, theirs.pvalue], rtol=1e-9)


@pytest.mark.parametrize("n", [4, 6, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(n):
    """20,000 simulated studies, correlated arms: coverage within four binomial standard deviations of 95 %."""
    studies, effect, rho = 20_000, 0.004, 0.6
    draws = np.random.default_rng(n)
    shared = draws.normal(0, np.sqrt(rho), (studies, n))
    against = 0.8 + 0.01 * (shared + draws.normal(0, np.sqrt(1 - rho), (studies, n)))
    arm = 0.8 + effect + 0.01 * (shared + draws.normal(0, np.sqrt(1 - rho), (studies, n)))
    other = 0.8 + 0.02 * draws.normal(size=(studies, n))  # independent, of another spread
    tolerance = 4 * np.sqrt(0.95 * 0.05 / studies)

    def coverage(estimate, truth):
        return np.mean((estimate.low <= truth) & (truth <= estimate.high))

    assert coverage(statistics.mean(arm), 0.8 + effect) == pytest.approx(0.95, abs=tolerance)
    paired = statistics.paired_difference(arm, against)
    assert coverage(paired, effect) == pytest.approx(0.95, abs=tolerance)
    assert coverage(statistics.welch_difference(arm, other), effect) == pytest.approx(0.95, abs=tolerance + 0.01)
    # what pairing is for: with correlation 0.6 the interval is shorter by about sqrt(1 - 0.6)
    unpaired = statistics.welch_difference(arm, against)
    ratio = np.median(paired.high - paired.low) / np.median(unpaired.high - unpaired.low)
    assert ratio < 0.85
    # and p is uniform where there is no effect
    null = statistics.paired_difference(arm - effect, against).p
    assert np.mean(null < 0.05) == pytest.approx(0.05, abs=tolerance)


def test_one_value_has_no_interval():
    for estimate in (
        statistics.mean([0.5]),
        statistics.welch_difference([0.6], [0.1]),
        statistics.welch_difference([0.6], [0.1, 0.2]),
    ):
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high, estimate.p]).all()


@pytest.mark.parametrize("gap", [0.0, 1 / 3])
def test_replicates_that_all_agree_have_no_interval(gap):
    """Differences of thirds are equal but for rounding: an interval from that would be a lie."""
    values = np.array([0.1, 0.3, 0.7])
    for estimate in (
        statistics.paired_difference(values + gap, values),
        statistics.welch_difference([0.5 + gap] * 3, [0.5] * 3),
    ):
        assert estimate.value == pytest.approx(gap)
        assert np.isnan([estimate.low, estimate.high, estimate.p]).all()


def test_correlation_needs_three_pairs_and_spread():
    assert np.isnan(statistics.correlation([0.1, 0.2], [0.3, 0.4]))
    assert np.isnan(statistics.correlation([0.1, 0.1, 0.1], [0.3, 0.4, 0.5]))
    assert statistics.correlation([1, 2, 3], [2, 4, 6.1]) == pytest.approx(np.corrcoef([1, 2, 3], [2, 4, 6.1])[0, 1])


def test_pairs_are_matched_by_replicate_not_by_position():
    arm, against = rows([0.8, 0.7, 0.9]), rows([0.88, 0.79, 0.69], replicates=[2, 0, 1])
    result = statistics.compare(arm, against, "last")
    assert result.paired and result.n == result.n_against == 3
    theirs = scipy.stats.ttest_rel([0.8, 0.7, 0.9], [0.79, 0.69, 0.88])
    assert result.difference == pytest.approx(0.04 / 3)
    assert result.p == pytest.approx(theirs.pvalue)
    assert result.correlation == pytest.approx(np.corrcoef([0.8, 0.7, 0.9], [0.79, 0.69, 0.88])[0, 1])


@pytest.mark.parametrize("name", statistics.PAIRING_HASHES)
@pytest.mark.parametrize("where", [[1], [0, 1, 2]])
def test_one_differing_hash_or_none_at_all_makes_it_unpaired_and_says_so(name, where):
    arm, against = rows([0.8, 0.7, 0.9]), rows([0.79, 0.69, 0.88])
    against.loc[where, name] = "another draw" if len(where) == 1 else None
    result = statistics.compare(arm, against, "last")
    assert not result.paired
    assert name.removesuffix("_hash") in result.reason
    assert np.isnan(result.correlation)
    theirs = scipy.stats.ttest_ind([0.8, 0.7, 0.9], [0.79, 0.69, 0.88], equal_var=False)
    assert result.p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("both", [False, True])
def test_an_absent_hash_says_nothing_and_the_others_decide(both):
    """As in rows of earlier versions whose trial diverged in its first epoch."""
    arm, against = rows([0.8, 0.1, 0.9]), rows([0.79, 0.69, 0.88])
    for frame in (arm, against)[: 1 + both]:
        frame.loc[1, list(statistics.PAIRING_HASHES)] = None
    result = statistics.compare(arm, against, "last")
    assert result.paired and result.n == 3 and result.reason == statistics.HASHES_AGREE
    assert result.p == pytest.approx(scipy.stats.ttest_rel([0.8, 0.1, 0.9], [0.79, 0.69, 0.88]).pvalue)
    against.loc[2, "noise_hash"] = "another draw"
    assert not statistics.compare(arm, against, "last").paired


def test_where_all_of_an_arm_diverged_the_unpaired_test_is_the_paired_one():
    """So that earlier rows without any hash may stay unpaired: the outcome changes nothing."""
    arm, against = rows([0.1] * 5), rows([0.79, 0.69, 0.88, 0.81, 0.77])
    paired, unpaired = (statistics.compare(frame, against, "last") for frame in (arm, arm.assign(split_hash=None)))
    assert paired.paired and not unpaired.paired
    for name in ("difference", "low", "high", "p", "freedom"):
        assert getattr(unpaired, name) == pytest.approx(getattr(paired, name))


def test_replicates_without_a_partner_are_left_out_and_counted():
    result = statistics.compare(rows([0.8, 0.7, 0.9, 0.1]), rows([0.79, 0.69, 0.88]), "last")
    assert result.paired and result.n == 3 and "1 replicate" in result.reason
    assert result.difference == pytest.approx(0.04 / 3)


def test_arms_without_a_common_replicate_or_without_rows():
    apart = statistics.compare(rows([0.8, 0.7]), rows([0.6, 0.5], replicates=[2, 3]), "last")
    assert not apart.paired and apart.difference == pytest.approx(0.2) and "no replicate" in apart.reason
    empty = statistics.compare(rows([0.8, 0.7]), rows([]), "last")
    assert np.isnan(empty.difference) and (empty.n, empty.n_against) == (2, 0)


def test_a_diverged_trial_is_an_outcome_at_chance():
    frame = rows([0.9, 0.8, np.nan, np.nan], failure_class=[None, "nan", "nan", None], classes=[4, 4, 100, 100])
    np.testing.assert_allclose(statistics.accuracy(frame, "last"), [0.9, 1 / 4, 1 / 100, np.nan])


def test_how_many_classes_there_were_in_rows_of_earlier_versions():
    """Its own matrix, else that of the same data, else the known name; two data sets of one name leave it open."""
    three, four = (json.dumps(np.eye(k).tolist()) for k in (3, 4))
    diverged = [  # dataset, its own matrix, chance
        ("npz:a.npz", three, 1 / 3),
        ("npz:b.npz", None, 1 / 4),
        ("npz:twice.npz", None, np.nan),
        ("npz:nowhere.npz", None, np.nan),
        ("cifar100", None, 1 / 100),
        *((name, None, 1 / 10) for name in ("digits", "cifar10", "stl10")),
    ]
    others = [("npz:b.npz", four), ("npz:twice.npz", three), ("npz:twice.npz", four)]
    frame = rows([np.nan] * len(diverged) + [0.9] * len(others), classes=None)
    frame["failure_class"] = ["nan"] * len(diverged) + [None] * len(others)
    frame["dataset"] = [row[0] for row in [*diverged, *others]]
    frame["transition"] = [row[1] for row in [*diverged, *others]]
    expected = [chance for _, _, chance in diverged] + [0.9] * len(others)
    np.testing.assert_allclose(statistics.accuracy(frame, "last"), expected)


def test_a_diverged_trial_of_unknown_chance_is_left_out_and_that_is_told():
    frame = rows([np.nan, 0.5], failure_class=["nan", None], dataset="npz:own.npz", classes=None)
    assert statistics.compare(frame, rows([0.8, 0.7]), "last").n == 1
    sentence = rule_sentence("last", frame)
    assert sentence.endswith("1 diverged trial left out: nothing tells how many classes there are.")
    assert "chance" not in sentence and not statistics.at_chance(frame).any()


def test_an_unknown_selection_rule_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'best'.*last, last10, val_selected, best_test"):
        statistics.accuracy(rows([0.9]), "best")


def test_arm_table_by_hand():
    def arm(name, labels, accuracies):
        return rows(accuracies, arm=name, labels=labels)

    trials = pd.concat(
        [arm("full", 40, [0.8, 0.9]), arm("part", 40, [0.65, 0.75]), arm("full", 100, [0.95])], ignore_index=True
    )
    trials["arm"] = pd.Categorical(trials["arm"], ["part", "full"], ordered=True)
    trials["labels"] = pd.Categorical(trials["labels"], [100, 40], ordered=True)
    table = statistics.arm_table(trials, "full", ["labels"], "last")
    assert table[["labels", "arm", "n"]].to_numpy().tolist() == [[100, "full", 1], [40, "part", 2], [40, "full", 2]]
    assert table["mean"].tolist() == pytest.approx([0.95, 0.7, 0.85])
    assert table["against_difference"].tolist() == pytest.approx([np.nan, -0.15, np.nan], nan_ok=True)
    half = scipy.stats.t.ppf(0.975, 1) * 0.05
    assert table["high"].tolist() == pytest.approx([np.nan, 0.7 + half, 0.85 + half], nan_ok=True)


def test_only_diverged_trials_of_earlier_versions_need_a_transition_matrix():
    """Of 10,000 trials with 100 classes reading them all would take ten seconds, for each figure and table."""
    rows = pd.DataFrame({"failure_class": [None, "nan", "nan"], "accuracy_last": [0.7, None, None]}, index=[3, 3, 4])
    rows["transition"] = ["never read", json.dumps(np.eye(4).tolist()), "never read"]
    rows = rows.assign(classes=[None, None, 5], dataset="digits", data_hash="hash")
    scores = statistics.accuracy(rows, "last")
    assert scores.tolist() == [0.7, 0.25, 0.2] and scores.index.equals(rows.index)
