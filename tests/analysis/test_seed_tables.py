"""Tables as the seed documents have them: known answers from rows that are written by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from analysis import load
from analysis.tables.seed_documents import (
    _caption_end,
    _cells_by_group,
    arm_metrics_table,
    levels_table,
    measured_metrics,
    seed_tables,
)
from tests import simulated

METRICS = ("train/loss", "test/accuracy")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two arms at three ratios; one trial of `full` diverged."""
    folder = tmp_path_factory.mktemp("results")
    simulation, plan = simulated.Simulation(folder, epochs=12), simulated.plan(panels=["ratios"])
    simulation.submit(plan)
    for entry in plan["trials"]:
        broken = entry["arm"] == "full" and entry["replicate"] == 0 and entry["setting"] == {"unlabelled_ratio": 5}
        simulation.trial(**entry, **({"status": "failed", "failure_class": "nan"} if broken else {}))
    return load(folder, simulated.STUDY)


def losses(study, arm, ratio, epochs):
    """Mean training loss over these epochs, a value per replicate."""
    rows = study.epochs(["train/loss"])
    rows = rows[
        (rows["arm"] == arm) & rows["setting"].map(lambda setting: setting.get("unlabelled_ratio", "all") == ratio)
    ]
    return rows[rows["epoch"].isin(epochs)].groupby("replicate")["value"].mean()


def test_an_arm_has_a_row_per_level_and_a_column_per_metric(study):
    table = arm_metrics_table(study, "ratios", "mixmatch_only", "last", METRICS)
    assert table.header == ["labelled : unlabelled", "training loss", "test accuracy (%)"]
    assert [row[0] for row in table.rows] == ["1 : 1", "1 : 5", "1 : 20", "all"]
    values = losses(study, "mixmatch_only", 5, [12])
    low, high = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    assert table.rows[1][1] == f"{values.mean():.3f} ± {(high - low) / 2:.3f}"
    row = table.frame.query("unlabelled_ratio == 5 and metric == 'train/loss'").iloc[0]
    assert (row["n"], row["mean"], row["low"], row["high"]) == (4, *map(pytest.approx, (values.mean(), low, high)))
    accuracies = study.panel("ratios").query("arm == 'mixmatch_only' and unlabelled_ratio == 5")["accuracy_last"]
    assert table.rows[1][2].startswith(f"{100 * accuracies.mean():.1f} ± ")
    assert table.caption.startswith("Arm: mixmatch only. Labelled and unlabelled images.")
    assert "selection rule last" in table.caption and "from the same epochs" in table.caption
    assert table.markdown() == arm_metrics_table(study, "ratios", "mixmatch_only", "last", METRICS).markdown()


def test_replicates_that_agree_have_no_interval_and_still_a_plus_minus(study):
    trials = study.panel("ratios").query("arm == 'mixmatch_only'").assign(accuracy_last=0.5)
    alone = trials["unlabelled_ratio"].eq(1) & trials["replicate"].gt(0)
    trials.loc[trials["unlabelled_ratio"] == 5, "accuracy_last"] = [0.4, 0.5, 0.6, 0.5]
    frame = measured_metrics(study, trials[~alone], ["unlabelled_ratio"], "last", ["test/accuracy"])
    cells = [cells[0] for _, cells in _cells_by_group(frame, ["unlabelled_ratio"], [{"metric": "test/accuracy"}])]
    half = scipy.stats.t.ppf(0.975, 3) * np.std([40, 50, 60, 50], ddof=1) / 2
    assert cells == ["50.0", f"50.0 ± {half:.1f}", "50.0 ± 0", "50.0 ± 0"]
    assert _caption_end("last", trials, frame).endswith("± 0: all replicates agree, as few of them can by chance.")
    assert "± 0:" not in _caption_end("last", trials, frame[frame["low"].notna()])


def test_a_metric_is_of_the_epochs_that_the_rule_looks_at(study):
    table = arm_metrics_table(study, "ratios", "mixmatch_only", "last10", METRICS)
    row = table.frame.query("unlabelled_ratio == 5 and metric == 'train/loss'").iloc[0]
    assert row["mean"] == pytest.approx(losses(study, "mixmatch_only", 5, range(3, 13)).mean())
    trials = study.trials.query("arm == 'mixmatch_only'").assign(epoch_val_selected=4.0, accuracy_val_selected=0.5)
    frame = measured_metrics(study, trials, ["arm"], "val_selected", METRICS).set_index("metric")
    rows = study.epochs(["train/loss", "test/accuracy"]).query("arm == 'mixmatch_only'")
    chosen = rows[(rows["epoch"] == 4) & (rows["metric"] == "train/loss")]["value"]
    assert frame.loc["train/loss", "mean"] == pytest.approx(chosen.mean())
    best = rows[rows["metric"] == "test/accuracy"].set_index(["trial", "epoch"])["value"].unstack().idxmax(axis=1)
    wide = rows[rows["metric"] == "train/loss"].set_index(["trial", "epoch"])["value"]
    frame = measured_metrics(study, trials, ["arm"], "best_test", METRICS).set_index("metric")
    assert frame.loc["train/loss", "mean"] == pytest.approx(np.mean([wide[pair] for pair in best.items()]))


def test_arms_by_levels_and_metrics(study):
    table = levels_table(study, "ratios", "last", METRICS)
    assert table.header[:3] == ["arm", "1 : 1, training loss", "1 : 1, test accuracy (%)"] and len(table.header) == 9
    assert [row[0] for row in table.rows] == ["mixmatch only", "full"]
    of_arm = arm_metrics_table(study, "ratios", "full", "last", METRICS)
    assert table.rows[1][1:] == [cell for row in of_arm.rows for cell in row[1:]]  # the same, laid out otherwise
    assert table.caption.startswith("Labelled and unlabelled images. Test accuracy")


def test_a_diverged_trial_is_chance_and_measures_nothing_else(study):
    frame = levels_table(study, "ratios", "last", METRICS).frame
    frame = frame.query("arm == 'full' and unlabelled_ratio == 5").set_index("metric")
    assert (frame.loc["train/loss", "n"], frame.loc["test/accuracy", "n"]) == (3, 4)
    kept = study.panel("ratios").query("arm == 'full' and unlabelled_ratio == 5 and status == 'ok'")["accuracy_last"]
    assert frame.loc["test/accuracy", "mean"] == pytest.approx((kept.sum() + 0.1) / 4)


@pytest.mark.slow
def test_columns_of_noise_tell_what_was_realised(tmp_path):
    simulated.complete(tmp_path, panels=["noise_and_labels"])
    study = load(tmp_path, simulated.STUDY)
    table = levels_table(study, "noise_and_labels", "last")
    assert table.header[1:3] == ["40, 10 % (10.0 % wrong)", "40, 20 % (20.0 % wrong)"]
    assert len(table.rows) == 3 and len(table.rows[0]) == 10


@pytest.mark.slow
def test_a_panel_has_the_tables_that_fit_it(study, tmp_path):
    assert list(seed_tables(study, "ratios", "last")) == ["ratios-levels"]
    plan = simulated.plan(2, panels=["ratios", "frozen_head"])
    simulation = simulated.Simulation(tmp_path)
    simulation.submit(plan)
    simulation.run(plan["trials"], accuracy_val_selected=0.8, epoch_val_selected=3)
    validated = load(tmp_path, simulated.STUDY)
    tables = seed_tables(validated, "ratios", "val_selected")
    assert list(tables) == ["ratios-levels", "ratios-mixmatch_only", "ratios-full"], "no trial recorded the other's"
    assert tables["ratios-full"].header[1:] == ["training loss", "test accuracy (%)"]
    assert seed_tables(validated, "frozen_head", "last") == {}, "it crosses nothing"
    for path in (tmp_path / "epochs").rglob("*.parquet"):
        rows = pq.read_table(path)
        split, metric = (rows.column(name).to_pylist() for name in ("split", "metric"))
        losses = [(split[i], metric[i]) == ("train", "loss") for i in range(len(rows))]
        accuracies = rows.filter(losses).set_column(
            rows.column_names.index("metric"), rows.schema.field("metric"), [["accuracy"] * sum(losses)]
        )
        pq.write_table(pa.concat_tables([rows, accuracies]), path)
    tables = seed_tables(load(tmp_path, simulated.STUDY), "ratios", "val_selected")
    assert list(tables) == ["ratios-levels", "ratios-training", "ratios-mixmatch_only", "ratios-full"]
    assert tables["ratios-training"].header[1] == "1 : 1, training accuracy (%)"
    assert "selection rule val_selected" in tables["ratios-full"].caption


def test_what_nobody_measured_is_empty_and_an_absent_arm_is_refused(study):
    table = arm_metrics_table(study, "ratios", "full", "last")
    assert table.header[1:] == [
        "training accuracy (%)",
        "validation accuracy (%)",
        "training loss",
        "test accuracy (%)",
    ]
    assert table.rows[0][1] == table.rows[0][2] == "" and table.rows[0][3]
    with pytest.raises(ValueError, match="no arm 'frozen_head': choose one of mixmatch_only, full"):
        arm_metrics_table(study, "ratios", "frozen_head", "last")
