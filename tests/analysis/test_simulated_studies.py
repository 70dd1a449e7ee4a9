"""Studies whose truth is known, from result files to verdicts: coverage, family-wise error, power, stopping, pairing.

Some studies go through result files and `analysis.results`; thousands go through the functions below it, in batches, by
`judged` and `stopped`, which the files of the first ones prove to be the same rule.  Bounds are exact binomial ones: a
right rate leaves them in one of 10,000 runs, and all draws are seeded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from numpy.typing import NDArray

from analysis import load, statistics
from analysis.results import Results
from analysis.verdicts import (
    ALPHA,
    FEWEST_REPLICATES,
    POWER,
    detectable_effect,
    holm,
    p_over_looks,
    power,
    replicates_needed,
)
from lnl.storage.schema import TRIALS
from lnl.storage.tables import write_rows
from tests import simulated

LOOKS = (4, 6, 8, 10)
SPREAD = 0.01  # of one arm's accuracy over replicates
Array = NDArray[np.float64]


# ---------------------------------------------------------------------------------------------------- known truth


def draw(
    seed: int, studies: int, effects: Sequence[float], n: int, correlation: float = 0.6, noise: str = "normal"
) -> tuple[Array, Array]:
    """Accuracies (S, m, n) of arms with these effects, and (S, 1, n) of the arm that all are compared with.

    Every two arms share their replicates' deviations with this correlation.
    """
    random = np.random.default_rng(seed)

    def deviations(*shape: int) -> Array:
        if noise == "heavy":  # Student's t with three degrees of freedom, scaled to a variance of 1
            return random.standard_t(3, shape) / np.sqrt(3)
        return random.standard_normal(shape)

    shared, own = deviations(studies, 1, n), deviations(studies, 1 + len(effects), n)
    deviation = SPREAD * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    accuracies = 0.8 + np.array([0.0, *effects])[:, None] + deviation
    if noise.startswith("images"):  # a share of so many test images
        images = int(noise.removeprefix("images"))
        accuracies = np.round(accuracies * images) / images
    return accuracies[:, 1:], accuracies[:, :1]


def spread_of_differences(correlation: float = 0.6) -> float:
    return float(SPREAD * np.sqrt(2 * (1 - correlation)))


def bounds(rate: float, count: int) -> tuple[float, float]:
    """Shares of `count` draws that an event of this chance leaves once in 10,000 times."""
    low, high = scipy.stats.binom.ppf([0.5e-4, 1 - 0.5e-4], count, rate) / count
    return float(low), float(high)


# ---------------------------------------------------------------------------------- the rule, in batches of families


def asked(arms: Array, against: Array, smallest: float) -> tuple[Array, Array, Array]:
    """Difference, p against zero, p of equivalence, each (S, m), paired."""
    difference = statistics.paired_difference(arms, against)
    within = scipy.stats.t.cdf((np.abs(difference.value) - smallest) / difference.error, difference.freedom)
    return difference.value, difference.p, within if smallest else np.full_like(within, np.nan)


def judged(difference: Array, p: Array, within: Array) -> NDArray[np.str_]:
    """Verdicts (S, m) of S families."""
    of_zero, of_equivalence = (np.apply_along_axis(holm, -1, values) for values in (p, within))
    differs = np.where(difference > 0, "helps", "hurts")
    verdict = np.where(of_zero <= ALPHA, differs, "undecided")
    return np.where(of_equivalence <= ALPHA, "equivalent", verdict)


def stopped(
    arms: Array, against: Array, smallest: float, looks: Sequence[int] = LOOKS, correct: bool = True
) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Verdicts and replicates used, (S, m), where each contrast stops as soon as it is decided."""
    shape = arms.shape[:2]
    sign, zero, equal = np.zeros(shape), np.full(shape, np.nan), np.full(shape, np.nan)
    verdict, used = np.full(shape, "undecided", dtype="<U10"), np.zeros(shape, dtype=int)
    adjusted = np.vectorize(lambda p, sides: p_over_looks([p], looks, sides), otypes=[float])
    for n in looks:
        difference, p, within = asked(arms[..., :n], against[..., :n], smallest)
        running = verdict == "undecided"
        used[running] = n
        first = running & ~(p >= zero)
        sign = np.where(first, difference, sign)
        zero = np.where(running, np.fmin(zero, p), zero)
        equal = np.where(running, np.fmin(equal, within), equal)
        corrected = (adjusted(zero, 2), adjusted(equal, 1)) if correct else (zero, equal)
        verdict = judged(sign, *corrected)
    return verdict, used


# -------------------------------------------------------------------------------------------- the same rule, from files


def submit(
    root: Path,
    accuracies: Mapping[str, Sequence[float]],
    declared: Mapping[str, str],
    smallest: float,
    looks: Sequence[int] = (),
    hours: int = 0,
    changes: Mapping[tuple[str, int], Mapping[str, Any]] | None = None,
) -> Results:
    """Write a plan and the finished trials of its arms (contrasts: arm -> against), and load them.

    `changes`: columns of single rows, by arm and replicate; None: planned, and no row.
    """
    changes = changes or {}
    planned = [
        {"trial": f"{arm}-{replicate}", "arm": arm, "setting": {}, "replicate": replicate}
        for arm, values in accuracies.items()
        for replicate in range(len(values))
    ]
    rows = [
        {
            **{"trial": entry["trial"], "attempt": 1, "preset": "digits", "arm": entry["arm"], "setting": "{}"},
            **{"replicate": entry["replicate"], "status": "ok", "data_hash": "digits"},
            **{"noise_hash": f"noise {entry['replicate']}", "split_hash": f"split {entry['replicate']}"},
            **{"accuracy_last": accuracies[entry["arm"]][entry["replicate"]]},
            **changes.get((entry["arm"], entry["replicate"]), {}),
        }
        for entry in planned
        if changes.get((entry["arm"], entry["replicate"]), {}) is not None
    ]
    contrasts = [
        {"arm": arm, "against": against, "direction": "any", "smallest_effect": smallest}
        for arm, against in declared.items()
    ]
    plan = simulated.plan(panels=[])
    plan |= {"arms": {arm: {} for arm in accuracies}, "contrasts": contrasts, "trials": planned, "looks": list(looks)}
    simulated.Simulation(root).submit(plan, hours)
    write_rows(root / "trials" / f"study={simulated.STUDY}" / f"all{hours}.parquet", TRIALS, rows)
    return load(root, simulated.STUDY)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 6, 10])
def test_files_give_the_estimates_and_verdicts_of_the_batch(tmp_path, n):
    """Six arms against one, paired and not, at known truth: every column that the rates below are made of."""
    effects = [0.0, 0.03, -0.03, 0.001, 0.01, -0.002]
    arms, against = draw(n, 1, effects, n)
    accuracies = {"full": against[0, 0], **{f"arm{i}": values for i, values in enumerate(arms[0])}}
    declared = {f"arm{i}": "full" for i in range(len(effects))}
    frame = submit(tmp_path / "paired", accuracies, declared, 0.012).contrasts()
    difference, p, within = asked(arms, against, 0.012)
    assert frame["paired"].all() and (frame["n"] == n).all()
    np.testing.assert_allclose(frame["difference"], difference[0], rtol=1e-9)
    np.testing.assert_allclose(frame["p"], p[0], rtol=1e-9)
    np.testing.assert_allclose(frame["p_equivalence"], within[0], rtol=1e-9)
    assert frame["verdict"].tolist() == judged(difference, p, within)[0].tolist()
    estimate = statistics.paired_difference(arms, against)
    np.testing.assert_allclose(frame[["low", "high"]], np.stack([estimate.low[0], estimate.high[0]], -1), rtol=1e-9)
    # one other draw of noise, in one replicate of the arm that all are compared with: no pairs at all, and said so
    other = {("full", 1): {"noise_hash": "another draw"}}
    frame = submit(tmp_path / "unpaired", accuracies, declared, 0.012, changes=other).contrasts()
    estimate = statistics.welch_difference(arms, against)
    assert not frame["paired"].any() and frame["reason"].str.contains("noise hashes differ").all()
    np.testing.assert_allclose(frame["p"], estimate.p[0], rtol=1e-9)
    np.testing.assert_allclose(frame[["low", "high"]], np.stack([estimate.low[0], estimate.high[0]], -1), rtol=1e-9)
    assert frame["correlation"].isna().all()
    assert (
        frame["verdict"].tolist()
        == judged(estimate.value, estimate.p, frame["p_equivalence"].to_numpy()[None])[0].tolist()
    )


@pytest.mark.slow
def test_files_of_a_sequential_study_give_the_verdicts_of_the_batch(tmp_path):
    """Only arms of undecided contrasts get more replicates, as a driver would; arms stop at different looks."""
    arms, against = draw(47, 1, [0.03, 0.014, 0.0], LOOKS[-1])
    expected, used = stopped(arms, against, 0.012)
    assert expected[0].tolist() == ["helps", "undecided", "equivalent"] and used[0].tolist() == [4, 10, 6]
    reached, written = {f"arm{i}": LOOKS[0] for i in range(3)}, {}
    for hours, n in enumerate(LOOKS):
        accuracies = {"full": against[0, 0, :n], **{arm: arms[0, int(arm[3:]), :k] for arm, k in reached.items()}}
        before = {(arm, k): None for arm in accuracies for k in range(written.get(arm, 0))}
        study = submit(tmp_path, accuracies, dict.fromkeys(reached, "full"), 0.012, LOOKS, hours, before)
        frame, written = study.contrasts().set_index("arm"), {arm: len(values) for arm, values in accuracies.items()}
        further = [arm for arm in reached if frame.loc[arm, "verdict"] == "undecided" and n < LOOKS[-1]]
        if not further:
            break
        reached |= dict.fromkeys(further, LOOKS[hours + 1])
    assert frame["verdict"].tolist() == expected[0].tolist()
    assert list(reached.values()) == used[0].tolist() == frame["looked"].tolist()
    decided = frame["verdict"] != "undecided"
    assert frame.loc[decided, "look"].tolist() == used[0][decided].tolist()


def test_pairing_halves_the_interval_and_its_correlation_is_the_true_one(tmp_path):
    """Twelve arms of 60 replicates with a correlation of .8; the last one has other splits."""
    arms, against = draw(0, 1, [0.0] * 12, 60, correlation=0.8)
    accuracies = {"full": against[0, 0], **{f"arm{i}": values for i, values in enumerate(arms[0])}}
    other = {("arm11", replicate): {"split_hash": f"other {replicate}"} for replicate in range(60)}
    declared = {f"arm{i}": "full" for i in range(12)}
    frame = submit(tmp_path, accuracies, declared, 0.0, changes=other).contrasts()
    paired = frame.iloc[:-1]
    assert paired["paired"].all() and not frame["paired"].iloc[-1]
    np.testing.assert_allclose(np.tanh(np.arctanh(paired["correlation"]).mean()), 0.8, atol=0.06)
    width = frame["high"] - frame["low"]
    assert width.iloc[:-1].mean() / width.iloc[-1] == pytest.approx(np.sqrt(1 - 0.8), abs=0.08)
    assert paired["deviation"].mean() == pytest.approx(spread_of_differences(0.8), rel=0.1)


def test_diverged_lost_and_missing_runs_of_files(tmp_path):
    """A diverged run is an outcome at chance, one out of memory is none, and one that has not run is waited for."""
    arms, against = draw(1, 1, [0.05] * 4, 6)
    accuracies = {"full": against[0, 0], **dict(zip(["well", "diverged", "lost", "waiting"], arms[0], strict=True))}
    failed = {"status": "failed", "accuracy_last": None}
    changes = {
        ("diverged", 5): {**failed, "failure_class": "nan", "transition": json.dumps(np.eye(4).tolist())},
        ("lost", 5): {**failed, "failure_class": "oom"},
        ("waiting", 5): None,
    }
    study = submit(
        tmp_path, accuracies, dict.fromkeys(["well", "diverged", "lost", "waiting"], "full"), 0.0, changes=changes
    )
    frame = study.contrasts().set_index("arm")
    assert frame["n"].tolist() == [6, 6, 5, 5]
    at_chance = np.append(arms[0, 1, :5], 1 / 4)
    expected = scipy.stats.ttest_rel(at_chance, against[0, 0])
    assert frame.loc["diverged", "difference"] == pytest.approx((at_chance - against[0, 0]).mean())
    assert frame.loc["diverged", "p"] == pytest.approx(expected.pvalue)
    assert frame["verdict"].tolist() == ["helps", "undecided", "helps", "no verdict"]
    assert "not run" in frame.loc["waiting", "why"] and "without a partner" in frame.loc["lost", "reason"]


# ------------------------------------------------------------------------------------------------ rates, in batches


@pytest.mark.parametrize("n", [4, 6, 10])
def test_intervals_cover_the_truth(n):
    """Paired ones in 95 %; Welch's, an approximation, in at least 94 % and, at four replicates, up to 96.2 %."""
    studies, effect = 20_000, 0.004
    arms, against = draw(n, studies, [effect], n)
    estimate = statistics.paired_difference(arms, against)
    low, high = bounds(0.95, studies)
    assert low <= np.mean((estimate.low <= effect) & (effect <= estimate.high)) <= high
    arms, against = draw(n, studies, [effect], n, correlation=0.0)
    for spread in (1, 3):  # of the one over that of the other
        estimate = statistics.welch_difference(arms, 0.8 + spread * (against - 0.8))
        covered = np.mean((estimate.low <= effect) & (effect <= estimate.high))
        assert bounds(0.945, studies)[0] <= covered <= bounds(0.96, studies)[1]


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 6, 10])
@pytest.mark.parametrize("effects", [(0.0,) * 4, (0.03, 0.0, 0.0, 0.0), (0.03, -0.03, 0.001, 0.0)])
def test_family_wise_error_of_helps_and_hurts(effects, n):
    """Four arms that share one they are compared with; true effects must not let the others through."""
    studies = 8_000
    difference, p, within = asked(*draw(n, studies, effects, n), 0.0)
    true = np.sign(effects)
    claimed = (judged(difference, p, within) == "helps") * 1 - (judged(difference, p, within) == "hurts") * 1
    wrong = ((claimed != 0) & (claimed != true)).any(axis=1)
    assert wrong.mean() <= bounds(ALPHA, studies)[1]
    if not any(effects):  # uncorrected, the same studies would err: the test can fail
        assert (p <= ALPHA).any(axis=1).mean() > 0.1


@pytest.mark.parametrize("noise", ["heavy", "images360", "images100"])
def test_family_wise_error_where_differences_are_not_normal(noise):
    """Heavy tails and coarse accuracies: five and a half percent at most, of four arms at six replicates."""
    studies = 8_000
    difference, p, within = asked(*draw(1, studies, [0.0] * 4, 6, noise=noise), 0.0)
    assert (judged(difference, p, within) != "undecided").any(axis=1).mean() <= bounds(0.055, studies)[1]


@pytest.mark.parametrize("n", [4, 6, 10])
@pytest.mark.parametrize("effects", [(0.02,) * 4, (0.02, -0.02, 0.0, 0.0)])
def test_family_wise_error_of_equivalent(effects, n):
    """Arms exactly at the margin are not smaller than what matters; those without an effect may be called so."""
    studies = 8_000
    verdict = judged(*asked(*draw(n, studies, effects, n), 0.02))
    at_margin = np.array(effects) != 0
    wrong = (verdict[:, at_margin] == "equivalent").any(axis=1)
    assert 0.01 < wrong.mean() <= bounds(ALPHA, studies)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "smallest"), [(0.01, 0.0), (0.015, 0.0), (0.0, 0.012), (0.004, 0.02)])
def test_power_as_planned(effect, smallest):
    """The replicates that are said to be needed decide in 80 % of studies, and one fewer in less."""
    studies, deviation = 10_000, spread_of_differences()
    needed = int(replicates_needed(effect, deviation, smallest))

    def decided(n: int) -> float:
        difference, p, within = asked(*draw(0, studies, [effect], n), smallest)
        return float(np.mean(judged(difference, p, within) != "undecided"))

    expected = float(power(effect, needed, deviation, smallest))
    assert expected >= POWER
    assert decided(needed) >= bounds(expected, studies)[0]
    if not smallest:
        assert decided(needed) <= bounds(expected, studies)[1]
        fewer = float(power(effect, needed - 1, deviation))
        assert fewer < POWER and decided(needed - 1) <= bounds(fewer, studies)[1]


@pytest.mark.parametrize("n", [4, 6, 10])
def test_the_detectable_effect_is_detected_in_four_of_five_studies(n):
    studies = 20_000
    effect = detectable_effect(spread_of_differences(), n)
    difference, p, within = asked(*draw(n, studies, [effect], n), 0.0)
    low, high = bounds(0.8, studies)
    assert low <= np.mean(judged(difference, p, within) == "helps") <= high


# -------------------------------------------------------------------------------------------------- rates over looks


@pytest.mark.slow
def test_stopping_keeps_its_error_and_naive_peeking_would_not():
    studies = 10_000
    arms, against = draw(0, studies, [0.0], 10)
    low, high = bounds(0.05, studies)
    verdict, used = stopped(arms, against, 0.0)
    assert low <= np.mean(verdict != "undecided") <= high
    assert used.mean() > 9.7  # nothing to find: nearly all go to the last look
    naive, _ = stopped(arms, against, 0.0, correct=False)
    assert np.mean(naive != "undecided") > 0.11
    peeking, _ = stopped(arms, against, 0.0, looks=range(3, 11), correct=False)
    low, high = bounds(0.165, studies)
    assert low <= np.mean(peeking != "undecided") <= high


@pytest.mark.slow
@pytest.mark.parametrize("effects", [(0.0,) * 3, (0.03, 0.015, 0.0), (0.03, 0.0, 0.0)])
def test_stopping_keeps_its_error_over_a_family_whose_arms_stop_at_different_looks(effects):
    studies = 3_000
    verdict, used = stopped(*draw(0, studies, effects, 10), 0.0)
    null = np.array(effects) == 0
    assert (verdict[:, null] != "undecided").any(axis=1).mean() <= bounds(0.05, studies)[1]
    if not null.all():
        assert used[:, 0].mean() < used[:, -1].mean() - 2


@pytest.mark.slow
def test_stopping_for_equivalence_keeps_its_error():
    """Two arms at the margin, two within it: one false "equivalent" in at most 5 % of studies, and the others found."""
    studies = 3_000
    verdict, used = stopped(*draw(1, studies, [0.012, -0.012, 0.0, 0.0], 10), 0.012)
    wrong = (verdict[:, :2] == "equivalent").any(axis=1).mean()
    assert 0.005 < wrong <= bounds(0.05, studies)[1]
    assert np.isin(verdict[:, 2:], ["helps", "hurts"]).any(axis=1).mean() <= bounds(0.05, studies)[1]
    assert (verdict[:, 2:] == "equivalent").mean() > 0.5 and used.mean() < 9.5


def test_stopping_finds_large_effects_early():
    """Of 1.5 standard deviations, with four looks: found in .956 of studies, after 6.5 replicates (earlier survey)."""
    studies = 5_000
    verdict, used = stopped(*draw(2, studies, [1.5 * spread_of_differences()], 10), 0.0)
    low, high = bounds(0.956, studies)
    assert low <= np.mean(verdict == "helps") <= high
    assert used.mean() == pytest.approx(6.46, abs=0.12)


def test_unpaired_looks_err_no_more_often():
    """The null of the looks is that of paired differences; Welch's p over the same looks stays below it."""
    studies = 10_000
    arms, against = draw(5, studies, [0.0], 10, correlation=0.0)
    p = np.stack([statistics.welch_difference(arms[..., :n], against[..., :n]).p[:, 0] for n in LOOKS])
    adjusted = [p_over_looks(one, LOOKS) for one in p.T]
    assert np.mean(np.array(adjusted) <= 0.05) <= bounds(0.05, studies)[1]


def test_lost_runs_leave_the_error_of_looks_where_it_is():
    """Each replicate is lost by accident with a chance of .15, so that looks hold fewer than they declare."""
    studies = 10_000
    arms, against = draw(6, studies, [0.0], 10)
    differences = np.where(np.random.default_rng(0).random((studies, 10)) < 0.15, np.nan, (arms - against)[:, 0])
    p = []
    for n in LOOKS:
        held = np.isfinite(differences[:, :n]).sum(axis=1)
        at_all = pd.DataFrame(differences[:, :n].T)
        t = at_all.mean() / (at_all.std() / np.sqrt(held))
        p.append(np.where(held >= FEWEST_REPLICATES, 2 * scipy.stats.t.sf(t.abs(), np.maximum(held - 1, 1)), np.nan))
    adjusted = np.array([p_over_looks(one, LOOKS) for one in np.stack(p, axis=1)])
    assert np.mean(adjusted <= 0.05) <= bounds(0.05, studies)[1]
