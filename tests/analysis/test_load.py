"""Loading a simulated results folder: what is there, what is missing, what left, what cannot be read."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from analysis import load, results
from analysis.results import LoadError
from lnl.storage.plan_record import PLANNED_COLUMNS
from tests import simulated


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    simulated.complete(folder)
    return folder


@pytest.fixture(scope="module")
def study(root):
    return load(root, simulated.STUDY)


@pytest.mark.slow
def test_every_planned_trial_is_there_once(study):
    planned = pd.DataFrame(study.plan.trial_rows(), columns=PLANNED_COLUMNS)
    assert study.trials["trial"].tolist() == planned["trial"].tolist()
    assert study.trials["setting"].tolist() == planned["setting"].tolist()
    assert study.missing.empty and study.left.empty and study.unreadable == {}
    assert study.preset == "digits" and study.plan.question.startswith("Which parts")


def test_a_panel_holds_its_arms_and_its_settings_only(study):
    panel = study.panel("ratios")
    assert set(panel["arm"]) == {"mixmatch_only", "full"}
    assert len(panel) == 2 * 4 * 4  # arms, ratios with the base, replicates
    assert list(panel["unlabelled_ratio"].cat.categories) == [1, 5, 20, "all"]
    assert (panel["labels"] == 40).all()
    crossed = study.panel("noise_and_labels")
    assert len(crossed) == 3 * 3 * 3 * 4
    assert list(crossed["arm"].cat.categories) == ["mixmatch_only", "alternating", "full"]
    base = crossed[(crossed["labels"] == 40) & (crossed["noise.rate"] == 0.4)]
    assert set(base["setting"].map(str)) == {"{}"}
    assert set(study.panel("frozen_head")["setting"].map(str)) == {"{}"}


def test_the_base_level_stands_among_the_declared_ones_by_size(study):
    study.plan.factors["method.temperature"] = [0.1, 1.0]
    study.plan.base_levels["method.temperature"] = 0.5
    assert study.levels("method.temperature") == [0.1, 0.5, 1.0]


def test_an_unknown_panel_names_the_known_ones(study):
    with pytest.raises(LoadError, match=r"no panel 'frozen'.*noise_and_labels, frozen_head"):
        study.panel("frozen")


def test_epochs_are_those_of_the_metrics_asked_for(study):
    epochs = study.epochs(["test/accuracy", "train/gradient_cosine"])
    assert set(epochs["metric"]) == {"test/accuracy", "train/gradient_cosine"}
    accuracies = epochs[epochs["metric"] == "test/accuracy"]
    assert len(accuracies) == len(study.trials) * 5
    last = accuracies[accuracies["epoch"] == 5].set_index("trial")["value"]
    np.testing.assert_array_equal(last[study.trials["trial"]], study.trials["accuracy_last"])
    assert study.epochs([]).empty


def test_the_noise_of_refined_labels_begins_with_that_of_the_given_ones(tmp_path, monkeypatch):
    simulated.complete(tmp_path, panels=["frozen_head"], inside=["full"])
    monkeypatch.setattr(results, "REFINED_ACCURACY", "oracle/memorised")  # which the simulation has
    study = load(tmp_path, simulated.STUDY)
    accuracy = study.epochs(["oracle/memorised"]).set_index(["trial", "epoch"])["value"]
    assert not accuracy.empty
    noise = study.epochs(["oracle/refined_noise"]).set_index(["trial", "epoch"])["value"]
    given = study.trials.set_index("trial")["noise_realised"]
    for trial in {trial for trial, _ in accuracy.index}:
        assert noise[trial, 0] == given[trial]
        np.testing.assert_allclose(noise[trial].loc[1:], 1 - accuracy[trial])
    assert len(noise) == len(accuracy) + accuracy.index.get_level_values("trial").nunique()
    both = study.epochs(["oracle/refined_noise", "oracle/memorised", "test/accuracy"])
    assert set(both["metric"]) == {"oracle/refined_noise", "oracle/memorised", "test/accuracy"}


def test_arrays_have_their_shapes_and_their_trials(tmp_path):
    simulated.complete(tmp_path, panels=["frozen_head"], inside=["full"])
    study = load(tmp_path, simulated.STUDY)
    wanted = study.trials.query("arm == 'full'")["trial"].iloc[1]
    arrays = study.arrays([wanted, study.trials.query("arm == 'frozen_head'")["trial"].iloc[0]])
    assert set(arrays["trial"]) == {wanted} and set(arrays["replicate"]) == {1}
    shapes = {name: {array.shape for array in rows["array"]} for name, rows in arrays.groupby("name")}
    assert shapes["oracle/loss_histogram"] == {(2, 40)} and shapes["train/mixture"] == {(2, 2, 3)}
    last = arrays[(arrays["name"] == "train/transition") & (arrays["epoch"] == 5)]["array"].item()
    np.testing.assert_allclose(last, simulated.symmetric(0.44), rtol=1e-6)
    assert study.arrays([]).empty
    with pytest.raises(LoadError, match="no arm 'half': choose one of full, frozen_head"):
        study.plot_inside("half")


def test_contrasts_find_the_simulated_effects(study):
    contrasts = study.contrasts().set_index("arm")
    assert contrasts["paired"].all() and (contrasts["n"] == 4).all()
    assert contrasts.loc["reversed_gradient", "high"] < -0.15
    base = study.panel("combined").pivot(index="replicate", columns="arm", values="accuracy_last")
    for arm, row in contrasts.iterrows():
        assert row["difference"] == pytest.approx((base[arm] - base["full"]).mean())
    assert contrasts["smallest_effect"].tolist() == [0.005] * 3 + [0.0]


def test_contrasts_of_arms_outside_the_preset_are_left_out(tmp_path):
    simulated.complete(tmp_path, panels=["frozen_head"], contrasts=simulated.CONTRASTS)
    assert load(tmp_path, simulated.STUDY).contrasts()["arm"].tolist() == ["frozen_head", "stopped_gradient"]


def test_the_selection_rule_is_the_plans_unless_given(tmp_path):
    simulated.complete(tmp_path, panels=["frozen_head"], selection="best_test")
    study = load(tmp_path, simulated.STUDY)
    assert set(study.contrasts()["selection"]) == {"best_test"}
    best, last = study.contrasts()["difference"], study.contrasts("last")["difference"]
    assert not np.allclose(best, last)
    with pytest.raises(ValueError, match="Unknown selection rule"):
        study.contrasts("best")


def test_failures_and_trials_not_run_are_missing_with_their_reason(tmp_path):
    simulation, plan = simulated.Simulation(tmp_path), simulated.plan(panels=["frozen_head"])
    simulation.submit(plan)
    ran, broke, diverged, *_ = plan["trials"]
    simulation.trial(**ran)
    simulation.trial(**broke, status="failed", failure_class="oom", failure_message="out of memory")
    simulation.trial(**diverged, status="failed", failure_class="nan")
    study = load(tmp_path, simulated.STUDY)
    assert set(study.trials["trial"]) == {ran["trial"], diverged["trial"]}
    missing = study.missing.set_index("trial")
    assert missing.loc[broke["trial"], ["status", "failure_class"]].tolist() == ["failed", "oom"]
    assert (missing["status"] == "not run").sum() == len(plan["trials"]) - 3


def test_a_finished_attempt_counts_over_a_later_failed_one(tmp_path):
    simulation, plan = simulated.Simulation(tmp_path), simulated.plan(panels=["frozen_head"])
    simulation.submit(plan)
    first = plan["trials"][0]
    simulation.trial(**first, attempt=1, status="failed", failure_class="preempted")
    simulation.trial(**first, attempt=2)
    simulation.trial(**first, attempt=3, status="failed", failure_class="oom")
    study = load(tmp_path, simulated.STUDY)
    assert study.trials["attempt"].tolist() == [2]
    assert study.epochs(["test/accuracy"])["epoch"].tolist() == [1, 2, 3, 4, 5]


def test_the_newest_plan_counts_and_names_the_arms(tmp_path):
    simulation, old = simulated.Simulation(tmp_path), simulated.plan(panels=["frozen_head"])
    simulation.submit(old)
    simulation.run(old["trials"])
    renamed = {"full": "whole"}
    kept = [entry for entry in old["trials"] if entry["arm"] != "stopped_gradient"]
    new = {**old, "trials": [{**entry, "arm": renamed.get(entry["arm"], entry["arm"])} for entry in kept]}
    simulation.submit(new, hours=1)
    study = load(tmp_path, simulated.STUDY)
    assert set(study.trials["arm"]) == {"whole", "frozen_head"}
    assert set(study.left["arm"]) == {"stopped_gradient"} and len(study.left) == 4
    assert study.missing.empty


def test_presets_are_studies_of_their_own(tmp_path):
    simulation = simulated.Simulation(tmp_path)
    digits, smoke = (
        simulated.plan(panels=["frozen_head"]),
        simulated.plan(1, panels=["frozen_head"], preset="smoke", trials=[]),
    )
    simulation.submit(digits, hours=1)  # by a machine whose clock is ahead
    simulation.submit(smoke)
    simulation.run(digits["trials"])
    assert load(tmp_path, simulated.STUDY).preset == "smoke"
    assert load(tmp_path, simulated.STUDY).left.empty  # the trials of another preset did not leave this one
    assert len(load(tmp_path, simulated.STUDY, "digits").trials) == 12


def test_a_study_that_is_not_there_names_those_that_are(root, tmp_path):
    with pytest.raises(LoadError, match=r"'noise_rates'.*robmix_ablation \(digits\)"):
        load(root, "noise_rates")
    with pytest.raises(LoadError, match=r"preset 'paper'.*robmix_ablation \(digits\)"):
        load(root, simulated.STUDY, "paper")
    with pytest.raises(LoadError, match="no study has been submitted there"):
        load(tmp_path / "nowhere", simulated.STUDY)


def test_unreadable_files_are_told_and_their_trials_missing(tmp_path):
    plan = simulated.complete(tmp_path, panels=["frozen_head"])
    first, second = plan["trials"][:2]
    lost_row = tmp_path / f"trials/study={simulated.STUDY}/{first['trial']}-1.parquet"
    lost_curve = tmp_path / f"epochs/study={simulated.STUDY}/{second['trial']}-1.parquet"
    lost_row.write_bytes(lost_row.read_bytes()[:100])
    lost_curve.write_bytes(b"")
    with pytest.warns(UserWarning, match=lost_row.name):
        study = load(tmp_path, simulated.STUDY)
    assert list(study.unreadable) == [lost_row]
    assert study.missing["trial"].tolist() == [first["trial"]]
    with pytest.warns(UserWarning, match=lost_curve.name):
        epochs = study.epochs(["test/accuracy"])
    assert list(study.unreadable) == [lost_row, lost_curve]
    assert second["trial"] not in set(epochs["trial"])
    study.epochs(["test/accuracy"])  # told once


def test_files_of_attempts_that_do_not_count_are_not_opened(tmp_path):
    simulation, plan = simulated.Simulation(tmp_path, inside=["full"]), simulated.plan(panels=["frozen_head"])
    simulation.submit(plan)
    first, second, *_ = (entry for entry in plan["trials"] if entry["arm"] == "full")
    simulation.trial(**first, attempt=1, status="failed", failure_class="oom")
    simulation.trial(**first, attempt=2)
    simulation.trial(**second)
    for table in ("epochs", "arrays"):
        (tmp_path / table / f"study={simulated.STUDY}" / f"{first['trial']}-1.parquet").write_bytes(b"")
    (tmp_path / "arrays" / f"study={simulated.STUDY}" / f"{second['trial']}-1.parquet").write_bytes(b"")
    study = load(tmp_path, simulated.STUDY)
    assert set(study.epochs(["test/accuracy"])["trial"]) == {first["trial"], second["trial"]}
    assert set(study.arrays([first["trial"]])["trial"]) == {first["trial"]} and study.unreadable == {}


def test_only_metrics_of_that_split_are_given(study):
    """`test/loss` is not there, though `train/loss` and `test/accuracy` are."""
    assert study.epochs(["test/loss"]).empty
    assert set(study.epochs(["train/loss", "test/accuracy"])["metric"]) == {"train/loss", "test/accuracy"}


def test_a_plan_without_any_row_yet(tmp_path):
    simulated.Simulation(tmp_path).submit(simulated.plan())
    study = load(tmp_path, simulated.STUDY)
    assert study.trials.empty and len(study.missing) == len(study.plan.trials)
    assert study.panel("noise_and_labels").empty and study.epochs(["test/accuracy"]).empty
    assert study.contrasts()["difference"].isna().all()
    assert study.plot("frozen_head") == {}


@pytest.mark.slow
def test_analysis_needs_neither_torch_nor_ray():
    heavy = "{'torch', 'torchvision', 'ray', 'optuna', 'matplotlib.pyplot'}"
    code = f"import sys, analysis.report.build; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8")
    assert done.stdout.strip() == "[]"


def test_loading_needs_no_library_that_draws_or_tests():
    """What figures and verdicts need is imported when the first one is asked for."""
    heavy = "{'matplotlib', 'scipy', 'sklearn', 'jinja2', 'torch', 'ray', 'optuna'}"
    code = f"import sys; from analysis import load; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8")
    assert done.stdout.strip() == "[]"
