"""Simulated searches: what was tried, what a budget buys, every figure against its rows, and the page."""

import base64
import dataclasses
import hashlib
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from analysis import load, search_curves
from analysis.figures.base import arm_looks
from analysis.figures.search_axes import axis_floor, axis_ticks, position
from analysis.report.build import build
from analysis.report.sentences import flip_sentence, search_sentences, search_warnings
from analysis.results import LoadError
from analysis.searches import parameter_names, search_stem
from analysis.tables.study import search_table
from lnl.space import Choice, Integer, Uniform
from lnl.storage.plan_record import CellRecord
from lnl.storage.store import Store
from tests import simulated
from tests.analysis.test_page import IN_A_BROWSER, assert_it_fits
from tests.analysis.test_report import text_of

FULL, FROZEN = "full_tpe", "frozen_head_tpe"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two searches, one of them over; a log parameter, a choice, one that depends on it; pruned and failed ones."""
    folder = tmp_path_factory.mktemp("searched")
    simulated.searched(folder, pruner="median")
    return folder


@pytest.fixture(scope="module")
def study(root):
    return load(root, simulated.STUDY)


@pytest.fixture(scope="module")
def suggestions(study):
    return study.suggestions()


@pytest.fixture(scope="module")
def figures(study):
    return study.plot_search(FULL)


@pytest.fixture(scope="module")
def page(root):
    return build(root, simulated.STUDY)


def of(frame, arm):
    return frame[frame["searched_arm"] == arm].reset_index(drop=True)


def empty_study(folder, cells, **search):
    """A submitted plan with these searches, and what writes its rows."""
    simulation = simulated.Simulation(folder, epochs=2)
    simulation.submit(simulated.plan(2, panels=["frozen_head"], search=simulated.search(cells, **search)))
    return simulation


def told(accuracies, tests=None, states=None, epochs=None):
    """Suggestions of one search, all of which count, as far as `best_so_far` looks at them."""
    count = len(accuracies)
    return pd.DataFrame(
        {
            "number": range(count),
            "accuracy": np.asarray(accuracies, float),
            "test": np.asarray(accuracies if tests is None else tests, float),
            "state": ["complete"] * count if states is None else states,
            "epochs": [10] * count if epochs is None else epochs,
            "counts": True,
            "own": [number == 0 for number in range(count)],
        }
    )


# ------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.slow
def test_suggestions_are_rows_with_their_values_and_their_test_accuracy(study, suggestions):
    full = of(suggestions, FULL)
    assert full["number"].tolist() == list(range(25)) and full["counts"].sum() == 24
    assert full["params"].tolist() == [simulated.drawn(number) for number in range(25)]
    assert full.loc[0, ["arm", "sampler", "setting", "state"]].tolist() == ["full", "tpe", {}, "complete"]
    assert full.loc[[5, 9, 13], "state"].tolist() == ["pruned", "failed", "pruned"]
    assert full.loc[9, "message"] == "out of memory" and not full.loc[9, "counts"]
    assert full.loc[9, ["accuracy", "test"]].isna().all()
    assert full.loc[5, "curve"] == {1: pytest.approx(0.36, abs=0.1), 2: full.loc[5, "accuracy"]}
    assert full.loc[[0, 5], "epochs"].tolist() == [5, 2]
    assert (full["seconds"] == 60).all() and full["seconds"].equals(full["spent"])
    truth = [simulated.landscape(params) for params in full.loc[full["state"] == "complete", "params"]]
    np.testing.assert_allclose(full.loc[full["state"] == "complete", "test"], truth, atol=0.02)
    winner = study.cells[0].winner
    assert full.loc[winner.number, "params"] == winner.params
    assert full.loc[winner.number, "accuracy"] == winner.values[0] == full["accuracy"].max()


def test_only_the_plans_searches_count_and_of_them_the_first_that_came_to_a_result(tmp_path):
    mine, other = simulated.cell("full"), simulated.cell("full", search="robmix_ablation/digits/full_tpe/ffffffff")
    simulation = empty_study(tmp_path, [mine], suggestions=3)
    states = ["complete", "failed", "pruned", "complete", "complete"]
    for number in (3, 1, 4, 0, 2):  # told in another order than asked
        simulation.suggest(mine, number, simulated.drawn(number), 0.5, 0.8, states[number])
        simulation.suggest(other, number, simulated.drawn(number), 0.9, 0.9)
    rows = load(tmp_path, simulated.STUDY).suggestions()
    assert rows["number"].tolist() == [0, 1, 2, 3, 4] and (rows["accuracy"].dropna() == 0.5).all()
    assert rows["counts"].tolist() == [True, False, True, True, False]


def test_test_accuracy_is_the_mean_of_the_trials_whoever_asked_for_them(tmp_path):
    """Two samplers share the trials of the arm's own values; a diverged one counts as chance; rules differ."""
    cells = [simulated.cell("full", "tpe"), simulated.cell("full", "random")]
    simulation = empty_study(tmp_path, cells, replicates=2)
    for replicate, columns in (
        (1000, {"accuracy_last": 0.8, "accuracy_best_test": 0.85}),
        (1001, {"status": "failed"}),
    ):
        failure = {"failure_class": "nan"} if columns.get("status") else {}
        simulation.trial(f"trial{replicate}", "full", {}, replicate, search=cells[0]["search"], **columns, **failure)
    simulation.trial("accident", "full", {}, 1002, status="failed", failure_class="oom")
    for one in cells:
        row = {"search": one["search"], "state": "complete", "values": [0.5], "params": json.dumps(simulated.OWN)}
        store = Store(tmp_path)
        store.write_suggestion(simulated.STUDY, {**row, "number": 0, "trials": ["trial1000", "trial1001"]})
        store.write_suggestion(simulated.STUDY, {**row, "number": 1, "trials": ["trial1000", "accident"]})
        store.write_suggestion(simulated.STUDY, {**row, "number": 2, "trials": ["trial1000", "lost"]})
    study = load(tmp_path, simulated.STUDY)
    np.testing.assert_allclose(study.suggestions()["test"], [0.45, np.nan, np.nan] * 2)
    np.testing.assert_allclose(study.suggestions("best_test")["test"], [0.475, np.nan, np.nan] * 2)


@pytest.mark.slow
def test_two_objectives_have_their_seconds(tmp_path):
    cell = simulated.cell()
    simulation = empty_study(tmp_path, [cell], objectives=["accuracy", "seconds"])
    for number, (accuracy, seconds) in enumerate([(0.5, 30.0), (0.6, 90.0), (0.55, 100.0), (0.4, 20.0)]):
        simulation.suggest(cell, number, simulated.drawn(number), accuracy, 0.8, seconds=seconds)
    store = Store(tmp_path)
    failed = {"search": cell["search"], "number": 4, "state": "failed", "seconds": 7.0, "params": "{}"}
    store.write_suggestion(simulated.STUDY, failed)
    study = load(tmp_path, simulated.STUDY)
    assert study.suggestions()["seconds"].tolist() == [30, 90, 100, 20, 7]
    plot = study.plot_search(FULL)["pareto"]
    assert plot.drawn.set_index("number")["front"].tolist() == [True, True, False, True]
    (front, points, *_) = plot.figure.axes[0].lines
    np.testing.assert_allclose(front.get_xdata(), [20, 30, 90])
    np.testing.assert_allclose(points.get_ydata(), [40, 50, 60])
    assert "two objectives" in " ".join(search_sentences(study))


def test_trials_of_searches_neither_left_nor_are_they_in_any_panel(study):
    assert study.left.empty and len(study.tried) == 25 + 13
    assert (study.trials["replicate"] < 1000).all() and set(study.trials["arm"]) >= {"full", FULL}
    assert study.contrasts().iloc[0][["arm", "against"]].tolist() == [FULL, "full"]


def test_a_suggestion_that_cannot_be_read_is_told_like_every_other_file(tmp_path):
    simulated.searched(tmp_path, arms=("full",), suggestions=4, replicates=2)
    broken = Store(tmp_path).suggestion_path(simulated.STUDY, simulated.cell("full")["search"], 2)
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.warns(UserWarning, match=broken.name):
        study = load(tmp_path, simulated.STUDY)
    assert list(study.unreadable) == [broken] and study.suggestions()["number"].tolist() == [0, 1, 3]


def test_a_study_without_a_search_has_none(tmp_path):
    simulated.Simulation(tmp_path).submit(simulated.plan(1, panels=["frozen_head"]))
    study = load(tmp_path, simulated.STUDY)
    assert study.cells == () and study.suggestions().empty and study.plot_search() == {}
    assert study.suggestions()["accuracy"].dtype == float and study.suggestions()["counts"].dtype == bool
    with pytest.raises(LoadError, match=r"no search 'full_tpe'.*\(none\)"):
        study.plot_search(FULL)


@pytest.mark.slow
def test_a_search_is_found_by_its_name_and_its_setting(tmp_path):
    cells = [simulated.cell("full", setting={"labels": 100}), simulated.cell("full", setting={"labels": 400})]
    cells.append(simulated.cell("frozen_head", setting={"labels": 100}))
    simulation = empty_study(tmp_path, cells, settings="each")
    for cell in cells:
        simulation.suggest(cell, 0, simulated.OWN, 0.5, 0.8)
    study = load(tmp_path, simulated.STUDY)
    assert study.plot_search(FULL, {"labels": 400})["history"].caption.startswith("full tpe, 400 labels. ")
    assert study.plot_search(FROZEN)["history"].caption.startswith("frozen head tpe, 100 labels. ")  # the only one
    with pytest.raises(LoadError, match=r"no search 'full_tpe': choose one of full_tpe in \{'labels': 100\}, full_tpe"):
        study.plot_search(FULL)
    assert list(study.plot_search()) == ["best-100-labels", "best-400-labels"]
    assert study.plot_search()["best-400-labels"].caption.startswith("Setting: 400 labels. ")


# --------------------------------------------------------------------------------------------------- what a budget buys


def in_every_order(rows, k, column):
    """The mean over all orders of what validation chooses among the first k, the default always first."""
    found = []
    for order in itertools.permutations(range(1, len(rows))):
        tried = [row for row in (0, *order)[:k] if rows["state"][row] == "complete"]
        found.append(rows[column][min(tried, key=lambda row: (-rows["accuracy"][row], row))] if tried else np.nan)
    return np.mean(found)


@pytest.mark.parametrize(
    "rows",
    [
        told([0.5, 0.7, 0.4, 0.6, 0.9, 0.55], [0.8, 0.7, 0.9, 0.85, 0.75, 0.95]),
        told([0.5, 0.5, 0.6, 0.6, 0.6, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),  # ties go to the lower number
        told([0.9, 0.7, 0.4, 0.6], [0.8, 0.7, 0.9, 0.85]),  # nothing beats the default
        told(
            [0.5, 0.95, 0.6, 0.99, 0.8],
            [0.1, 0.2, 0.3, 0.4, 0.5],
            ["complete", "pruned", "complete", "pruned", "complete"],
        ),
        told([0.5, 0.6, 0.7, 0.4], None, ["pruned", "complete", "pruned", "complete"]),  # nothing to choose at first
        told([0.5]),
        told([0.5, 0.6]),
    ],
)
def test_expected_best_so_far_is_the_mean_over_all_orders(rows):
    frame = search_curves.best_so_far(rows)
    assert frame["suggestions"].tolist() == list(range(1, len(rows) + 1))
    for name, column in (("validation", "accuracy"), ("test", "test")):
        expected = [in_every_order(rows, k, column) for k in frame["suggestions"]]
        np.testing.assert_allclose(frame[name], expected, rtol=1e-12)
        np.testing.assert_allclose(frame[f"seen_{name}"].iloc[-1], expected[-1])  # all orders end with all of them
        assert (frame[f"{name}_low"] <= frame[name] + 1e-12).all() or frame[name].isna().any()


def test_what_was_seen_follows_the_order_and_pruned_ones_spend_without_being_chosen():
    states = ["complete", "pruned", "complete", "complete", "complete"]
    frame = search_curves.best_so_far(
        told([0.5, 0.9, 0.6, 0.55, 0.6], [0.8, 0.1, 0.7, 0.9, 0.95], states, [10, 2, 10, 10, 10])
    )
    assert frame["number"].tolist() == [0, 0, 2, 2, 2]
    assert frame["seen_validation"].tolist() == [0.5, 0.5, 0.6, 0.6, 0.6]
    assert frame["seen_test"].tolist() == [0.8, 0.8, 0.7, 0.7, 0.7]
    assert frame["epochs"].tolist() == [10, 12, 22, 32, 42]
    assert frame["expected_epochs"].tolist() == [10, 18, 26, 34, 42]


def test_of_three_others_the_interval_goes_from_three_times_the_worst_to_three_times_the_best():
    """Each of the 27 resamples has 1 / 27 > 2.5 %, so both ends of the interval are the extreme ones."""
    frame = search_curves.best_so_far(told([0.5, 0.6, 0.7, 0.8], [0.9, 0.1, 0.2, 0.3]))
    np.testing.assert_allclose(frame["validation_low"], [0.5, 0.6, 0.6, 0.6])
    np.testing.assert_allclose(frame["validation_high"], [0.5, 0.8, 0.8, 0.8])
    np.testing.assert_allclose(frame["test_low"], [0.9, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(frame["test_high"], [0.9, 0.3, 0.3, 0.3])


def test_failed_ones_and_those_beyond_the_budget_are_no_part_of_it():
    rows = told([0.5, 0.6, 0.7]).assign(counts=[True, False, True])
    assert search_curves.best_so_far(rows)["number"].tolist() == [0, 2]
    assert search_curves.best_so_far(rows.assign(counts=False)).empty


def test_a_ranking_that_depends_on_the_budget_is_found_and_said():
    tests = {
        "slow": [0.80, 0.80, 0.81, 0.84, 0.86, 0.86],
        "quick": [0.80, 0.813, 0.82, 0.842, 0.85, 0.85],
        "close": [0.80, 0.80, 0.81, 0.84, 0.858, 0.858],  # never more than half a point from slow
        "short": [0.80, 0.80, 0.80],
    }
    flips = search_curves.ranking_flips({name: pd.DataFrame({"test": values}) for name, values in tests.items()})
    assert flips[["early", "late"]].to_numpy().tolist() == [["quick", "slow"], ["quick", "close"]]
    assert flips.loc[0, ["first", "until", "since", "budget"]].tolist() == [2, 3, 5, 6]
    assert flips.loc[0, ["lead", "final_lead"]].tolist() == pytest.approx([0.013, 0.01])
    sentence = flip_sentence(flips.iloc[0])
    assert sentence == (
        "The ranking depends on the budget: quick leads slow from 2 to 3 suggestions (by 1.3 points at most), slow "
        "from 5 on (by 1.0 at 6; expected test accuracy)."
    )
    assert "leads slow up to 3 suggestions" in flip_sentence({**flips.iloc[0], "first": 1})
    assert "leads slow at 3 suggestions" in flip_sentence({**flips.iloc[0], "first": 3})
    assert search_curves.ranking_flips({}).empty


# ------------------------------------------------------------------------------------------------------------- figures


def labels_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def offsets_of(axes):
    """Places of the scattered points."""
    return np.concatenate([np.asarray(points.get_offsets()) for points in axes.collections])


@pytest.mark.slow
def test_a_search_has_the_figures_that_its_rows_allow(study, figures):
    assert list(figures) == ["history", "slice", "contour", "parallel", "curves", "importance"]
    assert all(plot.caption.startswith("full tpe. ") for plot in figures.values())
    unfinished = study.plot_search(FROZEN)
    assert list(unfinished) == ["history", "slice", "contour", "parallel", "curves"]  # no importance yet
    assert all("The search is not finished." in plot.caption for plot in unfinished.values())
    assert not any("not finished" in plot.caption for plot in figures.values())
    assert "best so far" in labels_of(unfinished["slice"].figure)


def test_history_shows_every_suggestion_and_the_best_so_far(suggestions, figures):
    plot, full = figures["history"], of(suggestions, FULL)
    done = full[full["state"] == "complete"]
    drawn = plot.drawn.set_index("number")
    np.testing.assert_allclose(drawn.loc[done["number"], "best"], done["accuracy"].cummax())
    assert drawn.loc[13, "best"] == drawn.loc[12, "best"] > drawn.loc[13, "accuracy"]  # pruned
    step, points, pruned, failed, ring, star = plot.figure.axes[0].lines
    assert step.get_drawstyle() == "steps-post"
    np.testing.assert_allclose(step.get_ydata()[:-1], 100 * done["accuracy"].cummax())
    np.testing.assert_allclose(points.get_ydata(), 100 * done["accuracy"])
    assert pruned.get_xdata().tolist() == [5, 13] and failed.get_xdata().tolist() == [9]
    assert ring.get_xdata().tolist() == [0] and star.get_ydata()[0] == pytest.approx(100 * full["accuracy"].max())
    names = ["best so far", "complete", "pruned, at its last value", "failed", "own values", "winner"]
    assert labels_of(plot.figure) == names


def test_slices_show_the_searched_value_against_both_accuracies(suggestions, figures):
    plot, full = figures["slice"], of(suggestions, FULL)
    done = full[full["state"] == "complete"]
    above, below = plot.figure.axes[:4], plot.figure.axes[4:8]
    names = [axes.get_xlabel() for axes in below]
    without = sum("method.threshold" not in params for params in done["params"])
    assert names == [
        "lambda mixmatch",
        "learning rate",
        "head update",
        f"threshold\n(absent in {without} of {len(done)})",
    ]
    values = [params["method.lambda_mixmatch"] for params in done["params"]]
    np.testing.assert_allclose(offsets_of(above[0]), np.column_stack([np.log10(values), 100 * done["accuracy"]]))
    np.testing.assert_allclose(offsets_of(below[0])[:, 1], 100 * done["test"])
    assert [tick.get_text() for tick in below[0].get_xticklabels()] == ["0.1", "1", "10"]
    assert [tick.get_text() for tick in below[2].get_xticklabels()] == ["joint", "alternating", "frozen"]
    assert len(offsets_of(above[3])) == len(done) - without

    def upright(axes, style):
        return [
            line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata()) == 2
        ]

    assert upright(above[0], "--") == [0] and upright(above[0], ":") == []  # the arm's own value is the paper's
    assert upright(above[1], "--") == [np.log10(0.002)] and upright(above[1], ":") == [-2]
    assert upright(above[2], "--") == [1]
    assert upright(above[3], "--") == [] and upright(above[3], ":") == [0.5]  # the arm has no such value
    star = max(done["accuracy"])
    assert any(line.get_marker() == "*" and line.get_ydata()[0] == pytest.approx(100 * star) for line in above[0].lines)
    conditional = plot.drawn[plot.drawn["parameter"] == "method.threshold"]
    assert conditional["value"].notna().all() and set(conditional["number"]) < set(full["number"])


@pytest.mark.slow
def test_what_lies_far_below_does_not_press_the_others_together(tmp_path):
    cell = simulated.cell()
    simulation = empty_study(tmp_path, [cell], suggestions=12)
    for number in range(12):
        simulation.suggest(cell, number, simulated.drawn(number), 0.1 if number == 7 else 0.5 + number / 100, 0.9)
    axes = load(tmp_path, simulated.STUDY).plot_search(FULL)["slice"].figure.axes[0]
    low, high = axes.get_ylim()
    assert 48 < low < 50 and 61 < high < 62
    drawn = np.sort(offsets_of(axes)[:, 1])
    assert low < drawn[0] < 50 and drawn[1] == pytest.approx(50)  # under all others, but in sight
    assert axis_floor(pd.Series([0.1, 0.5, 0.51, 0.52, 0.53])) == 0.5
    assert axis_floor(pd.Series([0.1, 0.2, 0.3, 0.4, 0.5])) == 0.1


@pytest.mark.slow
def test_contour_lies_over_the_two_most_important_numbers(suggestions, figures, tmp_path):
    plot, full = figures["contour"], of(suggestions, FULL)
    done = full[full["state"] == "complete"]
    assert (plot.figure.axes[0].get_xlabel(), plot.figure.axes[0].get_ylabel()) == ("lambda mixmatch", "learning rate")
    np.testing.assert_allclose(plot.drawn["x"], [np.log10(p["method.lambda_mixmatch"]) for p in done["params"]])
    np.testing.assert_allclose(plot.drawn["accuracy"], done["accuracy"])
    cell = simulated.cell()
    simulation = empty_study(tmp_path, [cell], suggestions=20)
    for number in range(7):
        simulation.suggest(cell, number, simulated.drawn(number), 0.5 + number / 100, 0.9)
    assert "contour" not in load(tmp_path, simulated.STUDY).plot_search(FULL)  # seven do not make a surface
    simulation.suggest(cell, 7, simulated.drawn(7), 0.5, 0.9)
    assert "contour" in load(tmp_path, simulated.STUDY).plot_search(FULL)


@pytest.mark.slow
def test_points_on_a_line_or_in_one_place_make_no_surface(tmp_path):
    for name, shift in (("line", 0.1), ("place", 0.0)):
        cell = simulated.cell()
        simulation = empty_study(tmp_path / name, [cell], suggestions=20)
        for number in range(9):
            params = {**simulated.OWN, "method.lambda_mixmatch": 10 ** (number * shift)}
            params["method.optimizer.learning_rate"] = 0.001 * 10 ** (number * shift)
            simulation.suggest(cell, number, params, 0.5, 0.9)
        drawn = load(tmp_path / name, simulated.STUDY).plot_search(FULL)
        assert list(drawn) == ["history", "slice", "parallel"]


def test_parallel_coordinates_are_lines_through_the_values(suggestions, figures):
    plot, full = figures["parallel"], of(suggestions, FULL)
    axes = plot.figure.axes[0]
    names = [tick.get_text().replace("\n", " ") for tick in axes.get_xticklabels()]
    assert names == ["lambda mixmatch", "learning rate", "head update", "threshold", "validation accuracy (%)"]
    segments = axes.collections[0].get_segments()
    done = full[full["state"] == "complete"].sort_values("accuracy", kind="stable")
    assert len(segments) == len(done)
    for segment, params in zip(segments, done["params"], strict=True):
        assert segment[0, 1] == pytest.approx((np.log10(params["method.lambda_mixmatch"]) + 1) / 2)
        assert segment[2, 1] == ["joint", "alternating", "frozen"].index(params["method.head_update"]) / 2
        assert (segment[3, 1] < 0) == ("method.threshold" not in params)
    np.testing.assert_allclose(segments[-1][-1], [4, 1])  # the best one ends at the top
    assert "absent" in [text.get_text() for text in axes.texts]


def test_importance_and_learning_curves(study, suggestions, figures):
    bars = figures["importance"].figure.axes[0].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [50, 40, 10, 0])
    curves, full = figures["curves"], of(suggestions, FULL)
    one = curves.drawn[curves.drawn["number"] == 3]
    np.testing.assert_allclose(one["accuracy"], list(full.loc[3, "curve"].values()))
    ends = curves.drawn.groupby("number")["epoch"].max()
    assert ends[[5, 13]].tolist() == [2, 2] and (ends.drop([5, 13]) == 5).all() and 9 in full["number"].to_numpy()
    assert set(labels_of(curves.figure)) == {"winner", "own values", "complete", "pruned"}


def test_a_budgets_worth_is_drawn_for_all_searches_of_a_setting(study, suggestions):
    drawn = study.plot_search()
    assert list(drawn) == ["best", "best-epochs"]  # some were pruned
    frame = drawn["best"].drawn
    expected = search_curves.best_so_far(of(suggestions, FROZEN))
    mine = frame[frame["arm"] == FROZEN].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine[list(search_curves.BEST_SO_FAR_COLUMNS)], expected, check_dtype=False)
    validation, test = drawn["best"].figure.axes
    looks = arm_looks(study)
    (bold,) = [line for line in test.lines if line.get_linewidth() == 1.9 and len(line.get_xdata()) == 12]
    assert same_color(bold.get_color(), looks[FROZEN].colour)
    np.testing.assert_allclose(bold.get_ydata(), 100 * expected["test"])
    assert validation.get_ylabel() == "validation accuracy (%)" and test.get_xlabel() == "suggestions"
    epochs = drawn["best-epochs"].figure.axes[0]
    assert epochs.get_xlabel() == "epochs trained"
    assert max(line.get_xdata()[-1] for line in epochs.lines) == 22 * 5 + 2 * 2
    assert "Dodge" in drawn["best"].caption and "bootstrap" in drawn["best"].caption


@pytest.mark.slow
def test_a_searched_arm_has_one_colour_before_and_after_its_search_is_over(study):
    looks = arm_looks(study)
    arms = {name: study.plan.arms[name] for name in simulated.plan(1, ["frozen_head"])["arms"]}
    before = dataclasses.replace(study, plan=study.plan.model_copy(update={"arms": arms}))
    assert arm_looks(before) == looks
    assert len({(look.colour, look.line) for look in looks.values()}) == len(looks) == 5
    history = study.plot_search(FULL)["history"].figure.axes[0]
    confirmed = study.plot("search")["arms"].figure.axes[0]
    assert same_color(history.lines[0].get_color(), looks[FULL].colour)
    assert any(same_color(line.get_color(), looks[FULL].colour) for line in confirmed.lines)


@pytest.mark.slow
def test_many_searches_get_axes_of_their_own(tmp_path):
    cells = [simulated.cell(f"arm_{i}") for i in range(7)]
    simulation = empty_study(tmp_path, cells, suggestions=3)
    for i, cell in enumerate(cells):
        for number in range(3):
            simulation.suggest(cell, number, simulated.drawn(number, i), 0.5 + number / 100, 0.8 + number / 100)
    plot = load(tmp_path, simulated.STUDY).plot_search()["best"]
    visible = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in visible] == [f"arm {i} tpe" for i in range(7)]
    (_, *grey) = visible[2].collections + [line for line in visible[2].lines if line.get_color() == "#d5d5d5"]
    assert len(grey) == 7 and "Grey: all other searches." in plot.caption


@pytest.mark.slow
def test_more_than_four_searches_are_folded_on_the_page(tmp_path):
    cells = [simulated.cell(f"arm_{i}") for i in range(5)]
    simulation = empty_study(tmp_path, cells)
    simulation.suggest(cells[0], 0, simulated.OWN, 0.5, 0.8)
    source = build(tmp_path, simulated.STUDY).read_text(encoding="utf-8")
    assert source.count('<details class="part"') == source.count("<summary><h3>") == 5


@pytest.mark.slow
def test_diverged_suggestions_are_crosses(tmp_path):
    cell = simulated.cell()
    simulation = empty_study(tmp_path, [cell])
    for number in range(3):
        simulation.suggest(cell, number, simulated.drawn(number), 0.5, 0.8, diverged=int(number == 1))
    plot = load(tmp_path, simulated.STUDY).plot_search(FULL)["history"]
    (cross,) = [line for line in plot.figure.axes[0].lines if line.get_marker() == "x"]
    assert cross.get_xdata().tolist() == [1] and "diverged" in labels_of(plot.figure)


def test_ticks_are_round_and_inside():
    def of_range(low, high, log, kind=Uniform):
        return axis_ticks(kind(low, high, log))

    places, texts = of_range(0.0005, 0.05, True)
    assert texts == ["0.001", "0.003", "0.01", "0.03"]
    np.testing.assert_allclose(places, np.log10([0.001, 0.003, 0.01, 0.03]))
    assert of_range(1e-6, 1e-1, True)[1] == ["1e-6", "0.0001", "0.01"]
    assert of_range(1, 30, True, Integer)[1] == ["1", "3", "10", "30"]
    assert of_range(0.2, 0.3, True)[1] == ["0.2", "0.3"]
    assert of_range(0.1, 0.9, False)[1] == ["0.2", "0.4", "0.6", "0.8"]
    assert of_range(1, 3, False, Integer)[1] == ["1", "2", "3"]
    choice = Choice((1, True, None, 0.00012))
    assert axis_ticks(choice)[1] == ["1", "True", "none", "0.00012"]
    assert position(choice, True) == 1 and position(choice, 1) == 0


def test_names_of_fields_are_short_unless_two_would_be_the_same():
    named = parameter_names(["method.optimizer.learning_rate", "method.head.learning_rate", "noise.rate", "probe"])
    assert list(named.values()) == ["optimizer learning rate", "head learning rate", "noise rate", "probe"]
    cell = CellRecord.model_validate(simulated.cell("full", setting={"labels": 40}))
    assert search_stem(cell) == "full_tpe-labels-40"


# --------------------------------------------------------------------------------------------------------------- page


@pytest.mark.slow
def test_the_page_tells_how_values_were_chosen_and_what_is_not_comparable(page, root):
    text = text_of(page)
    assert "Values were chosen by accuracy on noisy validation labels, at the last epoch, on 1 replicate" in text
    assert "(number 1000); each search made 24 suggestions, the arm's own values the first." in text
    assert "confirmed on the study's 4 replicates, which no search has seen" in text
    assert (
        "Not finished, and drawn as far as it is: frozen head tpe (12 of 24). Running the study again goes on" in text
    )
    assert "Budgets differ: frozen head tpe with fewer than 24 suggestions that count." in text
    assert "Compare searches up to 12 suggestions only." in text
    assert text.index("full tpe against full") < text.index("Values were chosen") < text.rindex("Searched values")
    assert f'load("{root}", "robmix_ablation", "digits").plot_search("full_tpe", selection="last")' in text
    source = page.read_text(encoding="utf-8")
    assert '<a href="#suggestions">Search</a>' in source and '<details class="part"' not in source
    assert "Arms that left" not in text


def test_the_audit_table_adds_up(study, suggestions):
    table = search_table(study, suggestions, "last")
    row = dict(zip(table.header, table.rows[0], strict=True))
    full = of(suggestions, FULL)
    best = full.loc[study.cells[0].winner.number]
    assert (row["arm"], row["sampler"], row["complete / pruned / failed"]) == ("full", "TPE", "22 / 2 / 1")
    assert row["epochs"] == str(22 * 5 + 2 * 2 + 5) and row["time"] == "25 min"
    assert row["own values: validation (%)"] == f"{100 * full.loc[0, 'accuracy']:.2f}"
    assert row["test (%)"] == f"{100 * full.loc[0, 'test']:.2f}"
    assert row["winner"] == str(best["number"]) and row["its test (%)"] == f"{100 * best['test']:.2f}"
    assert f"lambda mixmatch {best['params']['method.lambda_mixmatch']:.3g}, learning rate" in row["its values"]
    assert table.rows[1][2] == "11 / 1 / 1 so far" and table.rows[1][7].endswith(" so far")
    assert "noisy validation labels" in table.caption and "flatter" in table.caption
    latex = table.latex("suggestions")
    assert {line.count("&") for line in latex.splitlines() if " & " in line} == {len(table.header) - 1}


@pytest.mark.slow
def test_figures_are_on_the_page_and_beside_it(page):
    source = page.read_text(encoding="utf-8")
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"', source)
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    stems = re.findall(r'<figure id="([^"]+)">', source)
    assert len(stems) == len(set(stems))
    assert {"suggestions-best", "suggestions-full_tpe-slice", "suggestions-frozen_head_tpe-curves"} <= set(stems)
    names = {path.name for path in page.parent.iterdir()}
    assert {f"{stem}.png" for stem in stems} | {"suggestions.md", "suggestions.tex"} <= names


@pytest.mark.slow
@IN_A_BROWSER
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_of_a_search_fits_a_phone_and_a_desk(page, width):
    assert_it_fits(page, width)


@pytest.mark.slow
def test_the_same_rows_give_the_same_bytes(page, root, tmp_path):
    again = build(root, simulated.STUDY, output=tmp_path)
    first = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in page.parent.iterdir()}
    assert first == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in again.parent.iterdir()}


@pytest.mark.slow
def test_a_search_without_any_suggestion_yet(tmp_path):
    empty_study(tmp_path, [simulated.cell("full"), simulated.cell("frozen_head")])
    text = text_of(build(tmp_path, simulated.STUDY))
    assert text.count("No suggestion of this search is complete yet.") == 2
    assert "drawn as far as they are: full tpe (0 of 6); frozen head tpe (0 of 6)" in text and "Budgets" not in text


def test_a_search_of_which_everything_failed_or_was_pruned(tmp_path):
    cell = simulated.cell()
    simulation = empty_study(tmp_path, [cell])
    simulation.suggest(cell, 0, simulated.OWN, 0.5, None, "failed", message="out of memory")
    simulation.suggest(cell, 1, simulated.drawn(1), 0.5, 0.7, "pruned")
    text = text_of(build(tmp_path, simulated.STUDY))
    assert "0 / 1 / 1 so far" in text and "No suggestion of this search is complete yet." in text


def test_winners_that_are_the_arms_own_values_and_mixed_code_are_said(tmp_path):
    won = {"winner": {"number": 0, "params": simulated.OWN, "values": [0.9]}, "finished": 2}
    cell = simulated.cell("full", **won)
    simulation = empty_study(tmp_path, [cell], suggestions=2)
    simulation.suggest(cell, 0, simulated.OWN, 0.9, 0.95)
    simulation.suggest(cell, 1, simulated.drawn(1), 0.5, 0.7, code_hash="another")
    study = load(tmp_path, simulated.STUDY)
    assert "own values won" in " ".join(search_sentences(study))
    (warning,) = search_warnings(study, study.suggestions())
    assert warning == "The suggestions of full tpe come from 2 versions of the code."
    assert search_table(study, study.suggestions(), "last").rows[0][7] == "own values"


def test_rankings_that_turn_are_on_the_page(tmp_path):
    cells = [simulated.cell("full"), simulated.cell("frozen_head")]
    simulation = empty_study(tmp_path, cells, suggestions=3)
    for cell, tests in zip(cells, ([0.8, 0.81, 0.9], [0.83, 0.84, 0.85]), strict=True):
        for number, test in enumerate(tests):
            simulation.suggest(cell, number, simulated.drawn(number, len(cell["arm"])), test - 0.3, test)
    study = load(tmp_path, simulated.STUDY)
    flips = [text for text in search_warnings(study, study.suggestions()) if "ranking" in text]
    assert flips == [
        "The ranking depends on the budget: frozen head tpe leads full tpe up to 1 suggestion (by 3.0 points at most), "
        "full tpe from 2 on (by 5.0 at 3; expected test accuracy)."
    ]
