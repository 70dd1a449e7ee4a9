"""The test set class by class, and suspected labels: what figures, tables and the page say of known results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analysis import load
from analysis.classes import TestSet, test_set
from analysis.notebook import LoadedStudy
from analysis.report.build import build
from analysis.results import LoadError
from analysis.tables.classes import calibration_table, confused_table, hardest_table
from lnl.storage import kept
from lnl.storage.kept import Outputs
from lnl.storage.schema import BELIEFS
from lnl.storage.store import Store
from tests import simulated

NAMES = ["cat", "dög", "a long name of a class"]
PANEL = "frozen_head"  # of full, frozen_head, stopped_gradient


def simulate(folder: Path, classes: int, names: list[str] | None = None, replicates: int = 4) -> LoadedStudy:
    plan = simulated.plan(replicates, panels=[PANEL])
    simulation = simulated.Simulation(folder, classes=classes)
    simulation.submit(plan)
    simulation.run(plan["trials"], class_names=json.dumps(names) if names else None, classes=classes)
    return load(folder, simulated.STUDY)


def measured_in(study: LoadedStudy) -> TestSet:
    measured = test_set(study)
    assert measured is not None
    return measured


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> LoadedStudy:
    return simulate(tmp_path_factory.mktemp("few"), 3, NAMES, replicates=5)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> LoadedStudy:
    return simulate(tmp_path_factory.mktemp("many"), 30)


def test_accuracy_by_class_is_the_mean_over_replicates(study: LoadedStudy) -> None:
    """Of 100 images of a class 80 + replicate are right, 20 fewer of class 1; the mean over replicates 0 to 4: 82."""
    frame = measured_in(study).accuracy()
    of_full = frame[frame["arm"] == "full"]
    assert of_full["class"].tolist() == NAMES and set(frame["n"]) == {5} and set(frame["images"]) == {100}
    assert of_full["mean"].tolist() == pytest.approx([0.82, 0.62, 0.82])
    half = 2.776445 * np.std([0.80, 0.81, 0.82, 0.83, 0.84], ddof=1) / 5**0.5  # t of four degrees of freedom
    assert (of_full["high"] - of_full["low"]).tolist() == pytest.approx([2 * half] * 3, rel=1e-5)
    assert frame.loc[(frame["arm"] == "frozen_head") & (frame["class"] == "cat"), "mean"].item() == 0


def test_confusion_is_a_share_of_the_true_class(study: LoadedStudy) -> None:
    measured = measured_in(study)
    assert measured.arms == ["full", "frozen_head", "stopped_gradient"]
    expected = [[0.82, 0.18, 0], [0, 0.62, 0.38], [0.18, 0, 0.82]]
    np.testing.assert_allclose(measured.confusion("full"), expected)
    np.testing.assert_allclose(measured.confusion("frozen_head")[0], [0, 0, 1])


def test_calibration_is_the_stored_error_and_pooled_bins(study: LoadedStudy) -> None:
    measured = measured_in(study)
    row = measured.calibration().set_index("arm").loc["full"]
    assert row["error"] == pytest.approx(0.12) and row["n"] == 5 and row["low"] < 0.12 < row["high"]
    assert row["confidence"] == pytest.approx(0.7) and row["accuracy"] == pytest.approx((0.82 * 2 + 0.62) / 3)
    bins = measured.bins("full")
    assert bins["images"].tolist() == [750, 750] and bins["confidence"].tolist() == pytest.approx([0.5, 0.9])
    assert bins["accuracy"].tolist() == pytest.approx([row["accuracy"]] * 2)
    table = calibration_table(measured)
    assert table.rows[0][:5] == ["full", "5", "75.33", "70.00", "12.00"]


@pytest.mark.slow
def test_figures_of_few_classes(study: LoadedStudy) -> None:
    plots = study.plot_classes()
    assert list(plots) == ["accuracy", "reliability", "confusion"]
    assert all("n = 5 replicates" in plot.caption and "base setting" in plot.caption for plot in plots.values())
    written = [text.get_text() for text in plots["accuracy"].figure.axes[0].texts]
    assert written[:3] == ["82.0", "62.0", "82.0"] and len(written) == 9
    ticks = [label.get_text() for label in plots["accuracy"].figure.axes[0].get_xticklabels()]
    assert ticks == ["cat", "dög", "a long name o…"]
    matrix = [text.get_text() for text in plots["confusion"].figure.axes[0].texts]
    assert matrix == ["82", "18", "62", "38", "18", "82"], "an empty cell has no number"
    assert plots["reliability"].figure.axes[0].get_title(loc="left") == "full: 12.0 %"
    assert set(plots["confusion"].drawn["true"]) == set(NAMES)


def test_many_classes_are_tables_of_the_worst(many: LoadedStudy) -> None:
    assert list(many.plot_classes()) == ["reliability"]
    measured = measured_in(many)
    assert measured.classes == tuple(map(str, range(30))), "rows of earlier versions have no names"
    confused = confused_table(measured).rows
    assert confused[0] == ["full", "1", "2", "38.50"], "the most frequent pair of the first arm"
    assert ["frozen head", "0", "2", "100.00"] in confused and len(confused) == 30
    hardest = hardest_table(measured).rows
    assert hardest[0][:4] == ["full", "1", "4", "61.50"] and hardest[10][:4] == ["frozen head", "0", "4", "0.00"]


@pytest.mark.slow
def test_arms_on_other_classes_are_left_out_and_named(tmp_path: Path) -> None:
    plan = simulated.plan(1, panels=[PANEL])
    simulation = simulated.Simulation(tmp_path, classes=3)
    simulation.submit(plan)
    for entry in plan["trials"]:
        names = ["a", "b", "c"] if entry["arm"] == "frozen_head" else NAMES
        simulation.trial(**entry, class_names=json.dumps(names))
    measured = measured_in(load(tmp_path, simulated.STUDY))
    assert measured.left_out == ("frozen_head",) and measured.arms == ["full", "stopped_gradient"]
    assert "because their classes are others: frozen head." in page(tmp_path)


def page(folder: Path) -> str:
    index = build(folder, simulated.STUDY)
    assert isinstance(index, Path)
    return index.read_text(encoding="utf-8")


@pytest.mark.slow
def test_results_of_earlier_versions_have_no_such_section(tmp_path: Path) -> None:
    study = simulate(tmp_path, 0)
    assert test_set(study) is None and study.plot_classes() == {}
    assert "Class by class" not in (source := page(tmp_path)) and "Suspected labels" not in source


# ------------------------------------------------------------------------------------------------------------ suspects


def keep_beliefs(folder: Path, arm: str, replicate: int, *, files: bool, knows: bool, count: int = 60) -> None:
    """Beliefs in which labels are suspected in the order of their probabilities, every second one rightly."""
    given, true = [0] * count, [number % 2 if knows else None for number in range(count)]
    columns = {
        "subset": ["labelled"] * count,
        "index": list(range(count)),
        "file": [f"cat/{number}.png" if files else None for number in range(count)],
        "given": given,
        "true": true,
        "predicted": [2] * count,
        "given_probability": [number / count for number in range(count)],
        "clean": [number / count / 2 for number in range(count)],
        "proposed": [1, *[None] * (count - 1)],
        "ranked_by": ["clean"] * count,
    }
    schema = pa.schema(
        [field for field in BELIEFS if field.name not in ("trial", "attempt", "epoch", "schema_version")]
    )
    arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in schema]
    trial = simulated.trial_id(arm, {}, replicate)
    outputs = Outputs(beliefs=pa.table(arrays, schema=schema))
    kept.write(Store(folder), simulated.STUDY, trial, 1, 5, outputs)


def test_suspected_labels_are_those_of_the_first_trial_that_has_kept_them(tmp_path: Path) -> None:
    study = simulate(tmp_path, 3, NAMES)
    keep_beliefs(tmp_path, "full", 2, files=True, knows=True)
    keep_beliefs(tmp_path, "full", 3, files=True, knows=True)
    table = study.table_suspects("full")
    assert len(table.rows) == 50
    assert table.header == ["image", "given label", "true label", "rather", "clean"]
    assert table.rows[0] == ["cat/0.png", "cat", "cat", "dög", "0"], "a proposed label comes before a predicted one"
    assert table.rows[3] == ["cat/3.png", "cat", "dög", "a long name of a class", "0.025"]
    assert "(replicate 2)" in table.caption and "25 of these 50 are wrong, of all 60 30" in table.caption
    with pytest.raises(
        LoadError, match="No trial of arm 'frozen_head' has kept its beliefs: run the study with --keep"
    ):
        study.table_suspects("frozen_head")


def test_without_the_truth_nothing_is_said_of_it(tmp_path: Path) -> None:
    study = simulate(tmp_path, 3, NAMES, replicates=1)
    keep_beliefs(tmp_path, "full", 0, files=False, knows=False, count=4)
    table = study.table_suspects("full")
    assert table.header == ["image", "given label", "rather", "clean"] and "oracle" not in table.caption
    assert table.rows[1] == ["training image 1", "cat", "a long name of a class", "0.125"]


@pytest.mark.slow
def test_the_page_shows_what_is_there(tmp_path: Path) -> None:
    simulate(tmp_path, 3, NAMES)
    keep_beliefs(tmp_path, "full", 0, files=True, knows=True)
    source = page(tmp_path)
    for name in ("accuracy", "reliability", "confusion"):
        assert f'<figure id="classes-{name}">' in source
    assert ".plot_classes()[&#34;accuracy&#34;]" in source
    suspected = source[source.index('id="suspects"') :]
    assert "cat/49.png" in suspected and "cat/50.png" not in suspected
    assert re.findall(r"<summary>(.+)</summary>", suspected)[:1] == ["full"]
