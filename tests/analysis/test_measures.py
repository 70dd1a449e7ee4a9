"""Contrasts on other metrics than test accuracy, at known truth: values, verdicts, units, and who is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from analysis import load, statistics
from analysis.figures.contrasts import contrasts_figure
from analysis.measures import ACCURACY
from analysis.notebook import LoadedStudy
from analysis.report.sentences import verdict_in_words
from analysis.tables.study import contrasts_table
from analysis.verdicts import is_futile, replicates_needed
from lnl.cli import status
from lnl.storage.plan_record import ContrastRecord
from lnl.storage.schema import EPOCHS, TRIALS
from lnl.storage.tables import write_rows
from lnl.study.parts import Contrast
from tests import simulated

AUC, MEMORISED = "oracle/selection_auc", "oracle/memorised"
N = 6


def submit(
    root: Path,
    curves: Mapping[tuple[str, str], np.ndarray],
    contrasts: Sequence[Mapping[str, Any]],
    diverged: Sequence[tuple[str, int]] = (),
) -> LoadedStudy:
    """Write trials with these curves, (arm, metric) -> (N, epochs), and the contrasts, and load them.

    The epoch that validation selects is the first.
    """
    arms = list(dict.fromkeys(arm for arm, _ in curves))
    planned = [
        {"trial": f"{arm}-{replicate}", "arm": arm, "setting": {}, "replicate": replicate}
        for arm in arms
        for replicate in range(N)
    ]
    rows, epochs = [], []
    for entry in planned:
        arm, replicate = str(entry["arm"]), int(str(entry["replicate"]))
        accuracy = curves[arm, ACCURACY][replicate]
        ended = {"status": "ok", "accuracy_last": accuracy[-1], "epoch_val_selected": 1}
        if (arm, replicate) in diverged:
            ended = {"status": "failed", "failure_class": "nan", "classes": 10}
        rows.append(
            {
                **{"trial": entry["trial"], "attempt": 1, "preset": "digits", "arm": arm, "setting": "{}"},
                **{"replicate": replicate, "data_hash": "digits", "noise_hash": f"noise {replicate}"},
                **{"split_hash": f"split {replicate}"},
                **ended,
            }
        )
        for (of_arm, metric), values in curves.items():
            split, _, name = metric.partition("/")
            epochs += [
                {
                    **{"trial": entry["trial"], "attempt": 1, "epoch": epoch},
                    **{"split": split, "metric": name, "value": float(value)},
                }
                for epoch, value in enumerate(values[replicate], 1)
                if of_arm == arm
            ]
    plan = simulated.plan(panels=[]) | {"arms": {arm: {} for arm in arms}, "contrasts": list(contrasts)}
    simulated.Simulation(root).submit(plan | {"trials": planned, "replicates": N})
    for name, schema, content in (("trials", TRIALS, rows), ("epochs", EPOCHS, epochs)):
        write_rows(root / name / f"study={simulated.STUDY}" / "all.parquet", schema, content)
    return load(root, simulated.STUDY)


def contrast(metric: str, smallest: float = 0.0, arm: str = "new") -> dict[str, Any]:
    return {"arm": arm, "against": "old", "smallest_effect": smallest, "metric": metric}


@pytest.fixture(scope="module")
def curves():
    """Of twelve epochs: the AUC of the new arm is larger, it memorises more, and its accuracy is the same."""
    random = np.random.default_rng(4)

    def around(level: float, spread: float) -> np.ndarray:
        return level + spread * random.standard_normal((N, 12))

    return {
        ("new", ACCURACY): around(0.8, 0.01),
        ("old", ACCURACY): around(0.8, 0.01),
        ("new", AUC): around(0.93, 0.004),
        ("old", AUC): around(0.9, 0.004),
        ("new", MEMORISED): around(0.6, 0.02),
        ("old", MEMORISED): around(0.4, 0.02),
    }


@pytest.fixture(scope="module")
def study(curves, tmp_path_factory):
    declared = [contrast(AUC, 0.005), contrast(MEMORISED), contrast(ACCURACY, 0.02)]
    return submit(tmp_path_factory.mktemp("measures"), curves, declared)


def test_each_contrast_is_judged_on_its_own_metric(study, curves):
    frame = study.contrasts()
    assert frame["metric"].tolist() == [AUC, MEMORISED, ACCURACY]
    for row, metric in zip(statistics.records(frame), (AUC, MEMORISED, ACCURACY), strict=True):
        new, old = curves["new", metric][:, -1], curves["old", metric][:, -1]
        assert row["difference"] == pytest.approx((new - old).mean())
        assert row["p"] == pytest.approx(scipy.stats.ttest_rel(new, old).pvalue)
    # more is memorised, which is worse
    assert frame["verdict"].tolist()[:2] == ["helps", "hurts"]
    assert frame["difference"].tolist()[1] > 0


@pytest.mark.parametrize("rule", ["last10", "val_selected", "best_test"])
def test_a_metric_is_read_at_the_epochs_that_the_rule_chooses(study, curves, rule):
    def read(arm: str) -> np.ndarray:
        values, accuracies = curves[arm, AUC], curves[arm, ACCURACY]
        best = values[np.arange(N), accuracies.argmax(1)]
        return {"last10": values[:, -10:].mean(1), "val_selected": values[:, 0], "best_test": best}[rule]

    found = study.contrasts(rule).iloc[0]
    assert found["difference"] == pytest.approx((read("new") - read("old")).mean())


def test_a_diverged_trial_allows_no_verdict_on_another_metric(curves, tmp_path):
    declared = [contrast(AUC), contrast(ACCURACY)]
    frame = submit(tmp_path, curves, declared, diverged=[("new", 2)]).contrasts()
    assert frame["n"].tolist() == [N - 1, N]  # of accuracy it counts as chance
    assert frame["verdict"].tolist()[0] == "no verdict" and frame["why"].tolist()[1] == ""
    assert frame["why"].tolist()[0] == f"1 diverged trial has no value of {AUC}"
    assert np.isinf(frame["more"].tolist()[0]), "further replicates would change nothing"
    of_auc, of_accuracy = statistics.records(frame)
    assert is_futile(of_auc, 20, 0.05)
    assert "1 trial of new diverged and has no value" in verdict_in_words(of_auc, 2).numbers
    assert "1 trial of new diverged and counts as chance" in verdict_in_words(of_accuracy, 2).numbers


def test_a_metric_that_nobody_recorded_has_no_verdict(curves, tmp_path):
    frame = submit(tmp_path, curves, [contrast("oracle/nothing")]).contrasts()
    assert frame["n"].tolist() == [0] and frame["verdict"].tolist() == ["no verdict"]
    assert "no finished replicates" in frame["why"].tolist()[0]


def test_every_metric_has_its_unit_in_words_tables_and_figures(study):
    frame = study.contrasts()
    found, memorised, accuracy = statistics.records(frame)
    assert (
        verdict_in_words(found, 3).sentence == "new helps compared with old in AUC of the clean probability or weight"
    )
    assert verdict_in_words(found, 3).numbers.startswith(f"+{found['difference']:.4f} [")
    assert "declared to matter from 0.005;" in f"{verdict_in_words(found, 3).numbers[:-1]};"
    assert verdict_in_words(memorised, 3).numbers.startswith(f"+{100 * memorised['difference']:.2f} points")
    assert " in " not in verdict_in_words(accuracy, 3).sentence
    table = contrasts_table(study, "last")
    measures = [row[table.header.index("measure")] for row in table.rows]
    assert measures == [
        "AUC of the clean probability or weight",
        "memorised wrong labels (points)",
        "test accuracy (points)",
    ]
    assert [row[table.header.index("matters from")] for row in table.rows] == ["0.005", "", "2.00"]
    axes = contrasts_figure(frame).figure.axes
    assert [one.get_xlabel().split("  ")[0] for one in axes] == ["← worse", "← better", "← worse"]
    middle = [line.get_xdata()[0] for line in axes[0].lines if line.get_markersize() == 6]
    assert found["difference"] in middle  # as it is, not in points


def test_status_and_plan_tell_the_unit(study):
    rows = [
        {name: status._plain(value) for name, value in row.items()} for row in statistics.records(study.contrasts())
    ]
    assert status._name(rows[0]) == "new against old in AUC of the clean probability or weight"
    assert status._difference_text(rows[0], None).startswith(f"{rows[0]['difference']:+.4f} [+")
    assert "points" not in status._detectable_text(rows[0], N, 0.05)
    needed = replicates_needed(0.005, rows[0]["deviation"], alpha=0.05)
    assert status._detectable_text(rows[0], N, 0.05).endswith(f"from 0.005: which {needed:g} replicates find")
    assert "points" in status._detectable_text(rows[2], N, 0.05)
    unknown = {**rows[0], "n": 0, "deviation": None}
    assert status._detectable_text(unknown, N, 0.05).startswith("not known before 3 replicates")


def test_a_contrast_on_accuracy_is_stored_as_it_always_was():
    """So that plans keep their names, and looks that were taken are still those of the same contrasts."""
    record = ContrastRecord(arm="new", against="old")
    assert json.loads(record.model_dump_json()) == {
        **{"arm": "new", "against": "old"},
        **{"direction": "any", "smallest_effect": 0.0},
    }
    other = ContrastRecord(arm="new", against="old", metric=AUC)
    assert ContrastRecord.model_validate_json(other.model_dump_json()) == other


@pytest.mark.parametrize("metric", ["accuracy", "test/", "oracle/selection auc", "elsewhere/accuracy"])
def test_what_is_no_metric_is_refused(metric):
    with pytest.raises(ValueError, match="a contrast's metric is split/name"):
        Contrast("new", against="old", metric=metric)
