"""Every figure against the rows it was drawn from: the frame, what stands on the axes, and what the caption says."""

import ast
import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.colors import same_color

from analysis import load
from analysis.cost import read_ledger
from analysis.figures import base
from analysis.figures.base import ARM_COLOURS, Plot, arm_looks, level_looks
from analysis.figures.contrasts import VERDICT_MARKS, contrasts_figure
from analysis.figures.cost import cost_figure
from analysis.figures.curves import curve_multiples, learning_curves, metric_curves
from analysis.figures.histograms import (
    RIGHT_COLOUR,
    WRONG_COLOUR,
    _component_shares,
    _histogram_mean,
    label_histograms,
    label_means,
    last_histograms,
    quantity_name,
)
from analysis.figures.inside import EMBEDDINGS, _tsne, embeddings
from analysis.figures.panels import _panel_curves, _texts_that_fit, levels_figure
from analysis.words import difference_text, level_name, rule_sentence, setting_name
from lnl.storage.plan_record import PanelRecord
from tests import simulated

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    simulated.complete(folder, panels=["noise_and_labels", "frozen_head", "gradient", "ratios"])
    return load(folder, simulated.STUDY)


@pytest.fixture(scope="module")
def figures(study):
    return {panel: study.plot(panel) for panel in study.plan.panels}


def lines_of(axes, width):
    """Lines of one width on the axes, as (colour, x, y)."""
    return [
        (line.get_color(), line.get_xdata(), line.get_ydata()) for line in axes.lines if line.get_linewidth() == width
    ]


@pytest.mark.slow
def test_a_panel_has_the_figures_that_fit_it(figures):
    assert list(figures["noise_and_labels"]) == ["curves-mixmatch_only", "curves-alternating", "curves-full", "levels"]
    assert list(figures["frozen_head"]) == ["curves", "arms"]
    assert list(figures["gradient"]) == ["metrics", "arms"]
    assert list(figures["ratios"]) == ["curves", "levels"]


@pytest.mark.slow
def test_curves_by_noise_and_labels_are_means_over_replicates(study, figures):
    plot = figures["noise_and_labels"]["curves-full"]
    rows = study.panel("noise_and_labels")[["trial", "labels", "noise.rate"]].merge(
        study.epochs(["test/accuracy"]), on="trial"
    )
    chosen = rows[(rows["arm"] == "full") & (rows["labels"] == 100) & (rows["noise.rate"] == 0.2)]
    expected = chosen.groupby("epoch")["value"].mean()
    drawn = plot.drawn.query("metric == 'test/accuracy' and labels == 100 and `noise.rate` == 0.2")
    assert drawn["epoch"].tolist() == expected.index.tolist() and (drawn["n"] == 4).all()
    np.testing.assert_allclose(drawn["mean"], expected)
    # rows: loss above accuracy; columns: labels; colours: noise
    axes = np.reshape(plot.figure.axes, (2, 3))
    assert [ax.get_title(loc="left") for ax in axes[0]] == ["40 labels", "100 labels", "400 labels"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["training loss", "test accuracy (%)"]
    means = lines_of(axes[1, 1], 1.9)
    np.testing.assert_allclose(means[1][2], 100 * expected)
    assert len(lines_of(axes[1, 1], 0.7)) == 3 * 4  # every replicate, faint
    assert [text.get_text() for text in plot.figure.legends[0].get_texts()] == [
        "10 % noise",
        "20 % noise",
        "40 % noise",
    ]
    assert len({str(colour) for colour, *_ in means}) == 3
    assert plot.caption.startswith("Arm: full.") and "n = 4 replicates" in plot.caption


@pytest.mark.slow
def test_levels_show_mean_and_interval_of_every_arm(study, figures):
    plot = figures["noise_and_labels"]["levels"]
    panel = study.panel("noise_and_labels")
    values = panel.loc[
        (panel["arm"] == "alternating") & (panel["labels"] == 40) & (panel["noise.rate"] == 0.1), "accuracy_last"
    ]
    low, high = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    (row,) = plot.drawn.query("arm == 'alternating' and labels == 40 and `noise.rate` == 0.1").to_dict("records")
    assert (row["n"], row["mean"], row["low"], row["high"]) == (4, *map(pytest.approx, (values.mean(), low, high)))
    assert len(plot.drawn) == 3 * 3 * 3
    first = plot.figure.axes[0]
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["10 %", "20 %", "40 %"]
    points = np.sort(np.concatenate([line.get_ydata() for line in first.lines if line.get_markersize() == 4]))
    forty = panel.loc[panel["labels"] == 40, "accuracy_last"]
    np.testing.assert_allclose(points, np.sort(100 * forty))  # every replicate is drawn
    assert "selection rule last" in plot.caption and "95 % t interval" in plot.caption and "n = 4" in plot.caption


@pytest.mark.slow
def test_numbers_stand_at_their_places_and_are_joined_names_are_not(study):
    def drawn(values):
        trials = study.panel("ratios")
        to = dict(zip(trials["unlabelled_ratio"].cat.categories, values, strict=True))
        levels = pd.Categorical(trials["unlabelled_ratio"].map(to), values, ordered=True)
        plot = levels_figure(trials.assign(x=levels), "full", ["x"], arm_looks(study), "last")
        (axes,) = plot.figure.axes
        dots = [
            line.get_xdata().mean() for line in axes.lines if line.get_markersize() == 6 and line.get_marker() == "o"
        ]
        joined = lines_of(axes, 1.2)
        return axes, np.mean(dots), joined

    axes, middle, joined = drawn([0.1, 0.2, 0.4, 0.5])
    np.testing.assert_allclose(axes.get_xticks(), [0.1, 0.2, 0.4, 0.5])
    assert len(joined) == 2 and axes.get_xlabel() == "x"
    assert middle == pytest.approx(0.3)  # arms stand side by side around the place itself
    axes, _, joined = drawn([50, 250, 1000, 4000])
    np.testing.assert_allclose(axes.get_xticks(), np.log10([50, 250, 1000, 4000]))
    assert len(joined) == 2 and axes.get_xlabel() == "x (logarithmic)"
    axes, _, joined = drawn(["symmetric", "asymmetric", "pair", "human"])
    np.testing.assert_allclose(axes.get_xticks(), range(4))
    assert not joined and axes.get_xlabel() == "x"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["symmetric", "asymmetric", "pair", "human"]
    assert axes.get_xticklabels()[0].get_rotation() == 0
    names = [f"a long name of a kind of noise {i}" for i in range(4)]
    axes, _, _ = drawn(names)
    assert [text.get_text() for text in axes.get_xticklabels()] == names, "a name is turned, and never left out"
    assert axes.get_xticklabels()[0].get_rotation() == 30
    axes, _, joined = drawn([0.0, 0.1, 1.0, 10.0])
    assert joined and axes.get_xlabel() == "x", "zero has no logarithm"


def test_names_of_levels_that_have_no_room_are_left_out():
    assert _texts_that_fit([0, 1, 2], ["1", "2", "3"], 1.0) == [True, True, True]
    assert _texts_that_fit([0, 0.1, 1], ["50 %", "60 %", "70 %"], 1.0) == [True, False, True]


@pytest.fixture(scope="module")
def crowd(study):
    """Twenty-four arms at three noise rates: those of `full`, each half a point worse than the one before."""
    names = [f"arm_{i}" for i in range(24)]
    of_full = study.panel("noise_and_labels").query("arm == 'full' and labels == 40").drop(columns="arm")
    trials = pd.concat(
        [of_full.assign(arm=name, accuracy_last=of_full["accuracy_last"] - 0.005 * i) for i, name in enumerate(names)]
    )
    trials["arm"] = pd.Categorical(trials["arm"], names, ordered=True)
    plan = study.plan.model_copy(update={"arms": {name: {"x": i} for i, name in enumerate(names)}})
    looks = arm_looks(dataclasses.replace(study, plan=plan))
    curves = study.epochs(["test/accuracy"]).drop(columns=["arm", "replicate"])
    return trials, curves.merge(trials[["trial", "arm", "replicate", "noise.rate"]], on="trial"), looks


@pytest.mark.slow
def test_many_arms_have_a_row_each_and_settings_a_column(crowd):
    trials, _, looks = crowd
    plot = levels_figure(trials, "arm_0", ["noise.rate"], looks, "last")
    columns = plot.figure.axes[:3]
    assert [axes.get_title(loc="left") for axes in columns] == ["10 % noise", "20 % noise", "40 % noise"]
    assert [text.get_text() for text in columns[0].get_yticklabels()][::23] == ["arm 0", "arm 23"]
    assert not plot.figure.legends
    for axes, rate in zip(columns, (0.1, 0.2, 0.4), strict=True):
        means = trials[trials["noise.rate"] == rate].groupby("arm", observed=True)["accuracy_last"].mean()
        dots = [line for line in axes.lines if line.get_markersize() == 5 and line.get_marker() == "o"]
        found = sorted((line.get_ydata()[0], line.get_xdata()[0]) for line in dots)
        assert [height for height, _ in found] == list(range(24))
        np.testing.assert_allclose([place for _, place in found], 100 * means)
        reference = axes.collections[0].get_segments()[0]
        np.testing.assert_allclose(reference[:, 0], 100 * means.iloc[0])
    both = levels_figure(trials, "arm_0", ["labels", "noise.rate"], looks, "last")
    assert both.figure.axes[2].get_title(loc="left") == "40 labels, 40 % noise"
    assert len(plot.drawn) == 24 * 3 and "Dashed: the mean of arm 0" in plot.caption


@pytest.mark.slow
def test_curves_of_many_arms_have_axes_each(study, crowd):
    _, curves, looks = crowd
    shades = level_looks(study.levels("noise.rate"))
    plot = curve_multiples(curves, "test/accuracy", shades, "noise.rate")
    shown = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert len(shown) == 24 and len(lines_of(shown[0], 1.9)) == 3
    one = curves[(curves["arm"] == "arm_7") & (curves["noise.rate"] == 0.2)].groupby("epoch")["value"].mean()
    np.testing.assert_allclose(lines_of(shown[7], 1.9)[1][2], 100 * one)
    np.testing.assert_allclose(plot.drawn.query("arm == 'arm_7' and `noise.rate` == 0.2")["mean"], one)
    base = curves[curves["noise.rate"] == 0.4]
    plot = curve_multiples(base, "test/accuracy", looks)
    shown = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert [len(lines_of(axes, 0.8)) for axes in shown] == [23] * 24  # all others, in grey
    assert len(plot.drawn) == 24 * 5 and (plot.drawn["n"] == 4).all()


@pytest.mark.slow
def test_arms_without_the_metric_have_no_axes(crowd):
    _, curves, looks = crowd
    few = curves["arm"].isin(["arm_3", "arm_7"])
    rows = curves.assign(metric=np.where(few, "oracle/memorised", "test/accuracy"))[curves["noise.rate"] == 0.4]
    plot = curve_multiples(rows, "oracle/memorised", looks)
    shown = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["arm 3", "arm 7"]
    assert set(plot.drawn["arm"]) == {"arm_3", "arm_7"}


@pytest.mark.slow
def test_losses_of_several_methods_have_an_axis_for_each(study, crowd):
    """One method's loss may be a hundred times another's: it would be the only one that is seen."""
    _, curves, looks = crowd
    methods = {"arm_0": "robmix", "arm_1": "robmix", "arm_2": "barlow_twins"}
    rows = curves[(curves["noise.rate"] == 0.4) & curves["arm"].isin(methods)].copy()
    rows.loc[rows["arm"] == "arm_2", "value"] *= 300
    plot = curve_multiples(rows, "test/accuracy", looks, methods=methods)
    first, second, other = plot.figure.axes
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[1] < other.get_ylim()[0]
    assert [len(lines_of(axes, 0.8)) for axes in plot.figure.axes] == [1, 1, 0]
    assert "Grey: the means of the other arms of the same method." in plot.caption

    panel, trials = study.plan.panels["frozen_head"], study.panel("frozen_head")
    epochs = study.epochs(["train/loss", "test/accuracy"])
    assert list(_panel_curves(study, panel, trials, epochs)) == ["curves"]
    several = trials.assign(method=trials["arm"].astype(str))
    plots = _panel_curves(study, panel, several, epochs)
    assert list(plots) == ["curves-loss", "curves"]
    assert set(plots["curves"].drawn["metric"]) == {"test/accuracy"}


@pytest.mark.slow
def test_a_panel_of_many_arms_has_figures_by_metric(tmp_path, monkeypatch):
    """Nine arms: no pair of axes holds them all."""
    plan = simulated.plan(2, panels=["combined"])
    arms = [*plan["arms"], "another", "one_more"]
    plan["arms"] |= {"another": {"x": 1}, "one_more": {"x": 2}}
    plan["panels"]["combined"] = {**plan["panels"]["combined"], "arms": arms}
    plan["trials"] = [
        {"trial": simulated.trial_id(arm, {}, replicate), "arm": arm, "setting": {}, "replicate": replicate}
        for arm in arms
        for replicate in range(2)
    ]
    monkeypatch.setattr(simulated, "inside", lambda *_: [])  # metrics alone: arrays would be drawn for each arm
    simulation = simulated.Simulation(tmp_path, inside=arms)
    simulation.submit(plan)
    simulation.run(plan["trials"])
    study = load(tmp_path, simulated.STUDY)
    assert list(study.plot("combined")) == ["curves-loss", "curves-accuracy", "arms"]
    names = list(study.plot_inside())
    assert names[:4] == [
        "selection-selection_auc",
        "selection-selection_precision",
        "selection-selection_recall",
        "labels-memorised",
    ]


@pytest.mark.slow
def test_arms_and_paired_differences(study, figures):
    plot = figures["frozen_head"]["arms"]
    scores = study.panel("frozen_head").pivot(index="replicate", columns="arm", values="accuracy_last")
    drawn = plot.drawn.set_index("arm")
    assert drawn.index.tolist() == ["full", "frozen_head", "stopped_gradient"]  # as declared
    test = scipy.stats.ttest_rel(scores["frozen_head"], scores["full"])
    low, high = test.confidence_interval()
    assert drawn.loc["frozen_head", "against_low"] == pytest.approx(low)
    assert drawn.loc["frozen_head", "against_high"] == pytest.approx(high)
    assert np.isnan(drawn.loc["full", "against_difference"])
    left, right = plot.figure.axes
    joined = lines_of(left, 0.6)
    assert len(joined) == 4  # a line per replicate
    np.testing.assert_allclose(joined[0][1], 100 * scores.loc[0, drawn.index.tolist()])
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["full", "frozen head", "stopped gradient"]
    texts = [text.get_text() for text in right.texts]
    assert "reference" in texts and any("n = 4, paired" in text for text in texts)
    assert len(right.patches) == 2  # both arms have a declared smallest effect
    assert right.patches[0].get_width() == pytest.approx(1.0)  # ± 0.5 points
    assert "paired by replicate" in plot.caption and "smallest effect" in plot.caption


@pytest.mark.slow
def test_gradients_have_a_band_of_replicates_and_a_zero_line_for_the_cosine(study, figures):
    plot = figures["gradient"]["metrics"]
    rows = study.epochs(["train/gradient_cosine"])
    rows = rows[(rows["arm"] == "full") & (rows["setting"].map(len) == 0)]
    drawn = plot.drawn[(plot.drawn["metric"] == "train/gradient_cosine") & (plot.drawn["arm"] == "full")]
    np.testing.assert_allclose(drawn["mean"], rows.groupby("epoch")["value"].mean())
    cosine = plot.figure.axes[2]
    band = cosine.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(rows["value"].min())
    assert band[:, 1].max() == pytest.approx(rows["value"].max())
    assert any(np.array_equal(line.get_ydata(), [0, 0]) for line in cosine.lines)
    assert "from the lowest to the highest replicate" in plot.caption


def test_forest_draws_the_contrasts_it_is_given(study):
    contrasts = study.contrasts()
    plot = contrasts_figure(contrasts)
    pd.testing.assert_frame_equal(plot.drawn, contrasts)
    (axes,) = plot.figure.axes
    dots = [line for line in axes.lines if line.get_markersize() == 6 and line.get_marker() != "None"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in dots], 100 * contrasts["difference"])
    assert [line.get_marker() for line in dots] == [VERDICT_MARKS[verdict][1] for verdict in contrasts["verdict"]]
    texts = [text.get_text() for text in axes.texts]
    assert set(contrasts["verdict"]) <= set(texts) and len(set(contrasts["verdict"])) > 1
    assert axes.get_yticklabels()[0].get_text() == "frozen head  −  full"


def test_a_far_larger_difference_hides_no_other(study):
    contrasts = study.contrasts().head(4).assign(
        difference=[-0.8, 0.01, -0.02, 0.005],
        low=[-0.9, 0.0, -0.03, -0.005],
        high=[-0.7, 0.02, -0.01, 0.015],
        low_holm=np.nan,
    )  # fmt: skip
    plot = contrasts_figure(contrasts)
    (axes,) = plot.figure.axes
    left, right = axes.get_xlim()
    assert -4 < left < -3 and 2 < right < 3, "the three others fill the axis"
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 6 and line.get_marker() != "None"]
    np.testing.assert_allclose(dots, [left, 1, -2, 0.5])
    assert "stands at the edge" in plot.caption and any("80.0" in text.get_text() for text in axes.texts)
    assert "at the edge" not in contrasts_figure(contrasts.iloc[1:]).caption
    equal = contrasts.assign(difference=[-0.8, 0, 0, 0], low=[-0.9, 0, 0, 0], high=[-0.7, 0, 0, 0])
    left, right = contrasts_figure(equal).figure.axes[0].get_xlim()
    assert left < -90 and right > 0, "where most arms are equal, the one that is not fills the axis"


@pytest.mark.slow
def test_an_arm_has_one_colour_in_all_figures(study, figures):
    looks = arm_looks(study)
    assert same_color(looks["full"].colour, "black")
    assert len({look.colour for look in looks.values()}) == len(looks) == 6
    for figure in (figures["frozen_head"]["curves"], figures["ratios"]["curves"], figures["gradient"]["arms"]):
        black = [line for line in figure.figure.axes[0].lines if same_color(line.get_color(), "black")]
        assert black
    curves = lines_of(figures["frozen_head"]["curves"].figure.axes[0], 1.9)
    expected = [looks[arm].colour for arm in ("full", "frozen_head", "stopped_gradient")]
    assert all(same_color(colour, look) for (colour, *_), look in zip(curves, expected, strict=True))


def test_more_arms_than_colours_differ_by_line(study):
    plan = study.plan.model_copy(update={"arms": {"full": {}, **{f"arm{i}": {"x": i} for i in range(14)}}})
    many = arm_looks(dataclasses.replace(study, plan=plan))
    assert len({(look.colour, look.line) for look in many.values()}) == 15


def test_arms_of_one_panel_share_no_colour(study):
    names = [f"arm{i}" for i in range(14)]
    shown = ("full", *names[:2], *names[6:8], names[12])  # the palette has six colours
    panels = {"few": study.plan.panels["frozen_head"].model_copy(update={"arms": shown})}
    arms = {"full": {}, **{name: {"x": i} for i, name in enumerate(names)}}
    plan = study.plan.model_copy(update={"arms": arms, "panels": panels})
    looks = arm_looks(dataclasses.replace(study, plan=plan))
    assert len({looks[arm].colour for arm in shown}) == len(shown)
    assert len({(look.colour, look.line) for look in looks.values()}) == 15


@pytest.mark.parametrize(
    ("methods", "name"),
    [
        ({"dividemix"}, "clean probability"),
        ({"ieg"}, "example weight"),
        ({"ieg", "robmix"}, "clean probability or example weight"),
    ],
)
def test_a_weight_is_called_a_weight(methods, name):
    assert quantity_name("clean", methods) == name and quantity_name("loss", methods) == "normalised loss"


@pytest.mark.slow
def test_weights_fill_their_bins(arrays):
    """Weights of a hundred examples are about .01: of forty bins over [0, 1] all would be in the first."""
    first = arrays[arrays["name"] == "oracle/clean_histogram"].head(1)
    end = first.assign(name="oracle/clean_histogram_end", array=[np.array([0.08])])
    plot = label_histograms(pd.concat([first, end]), "clean", "ieg")
    (axes,) = plot.figure.axes
    assert axes.get_xlabel() == "example weight" and axes.get_xlim() == pytest.approx((0, 0.08))
    np.testing.assert_allclose(plot.drawn["high"], np.arange(1, 41) * 0.08 / 40)
    assert "and its own width, up to the largest value" in plot.caption
    plot = label_histograms(first, "clean", "dividemix")
    (axes,) = plot.figure.axes
    assert axes.get_xlabel() == "clean probability" and axes.get_xlim() == (0, 1)
    assert "its own width" not in plot.caption

    rows = pd.concat([first.assign(end=1.0, epoch=1), first.assign(end=0.08, epoch=2)])
    rows = rows.assign(method="ieg", arm=pd.Categorical(rows["arm"]))
    means = label_means(rows, "clean", "arm").drawn.set_index(["given", "epoch"])["mean"]
    for given in ("right", "wrong"):
        assert means[given, 2] == pytest.approx(0.08 * means[given, 1]) and means[given, 1] > 0


def test_histograms_of_many_arms_stand_in_one_figure(arrays):
    """The last epoch of each arm; a legend names wrong labels only where there are some."""
    first = arrays[arrays["name"] == "oracle/clean_histogram"].head(1)
    counts = first["array"].iloc[0]
    right_only = np.stack([counts[0], np.zeros_like(counts[1])])
    earlier = first.assign(arm="a", epoch=1)
    late = [first.assign(arm="a", epoch=7, array=[right_only]), first.assign(arm="b", epoch=3, array=[right_only])]
    plot = last_histograms(pd.concat([earlier, *late]), "clean", {"a": "dividemix", "b": "dividemix"})
    assert [axes.get_title(loc="left") for axes in plot.figure.axes] == ["a", "b"]
    assert plot.drawn.groupby("arm")["epoch"].unique().map(list).to_dict() == {"a": [7], "b": [3]}
    assert plot.drawn.groupby("arm")["right"].sum().tolist() == pytest.approx([1, 1]) and not plot.drawn["wrong"].any()
    assert [text.get_text() for text in plot.figure.legends[0].get_texts()] == ["right given labels"]
    plot = last_histograms(earlier, "clean", {"a": "dividemix"})
    assert len(plot.figure.legends[0].get_texts()) == 2 and plot.drawn["wrong"].any()


def test_an_interval_that_says_nothing_is_not_drawn(study):
    contrasts = study.contrasts().head(2).assign(low=[-1.44, -0.02], high=[1.70, 0.03], low_holm=np.nan)
    axes = contrasts_figure(contrasts).figure.axes[0]
    drawn = [segment for lines in axes.collections for segment in lines.get_segments() if len(segment)]
    assert [sorted(segment[:, 0]) for segment in drawn if not np.isnan(segment).any()] == [[-2, 3]]
    assert any("[too few replicates]" in text.get_text() for text in axes.texts)


def test_levels_take_no_colour_of_an_arm():
    shades = level_looks([0.1, 0.2, 0.4]) | level_looks(list("abcdefgh"))
    assert len({look.colour for look in shades.values()}) == 11
    colours = [matplotlib.colors.to_rgb(look.colour) for look in shades.values()]
    arms = [matplotlib.colors.to_rgb(colour) for colour in (*ARM_COLOURS, "black")]
    assert min(np.abs(np.subtract(colour, arm)).max() for colour in colours for arm in arms) > 0.1


# ----------------------------------------------------------------------------------------------------- inside a method


@pytest.fixture(scope="module")
def instructive(tmp_path_factory):
    """A study of three arms; one keeps arrays, and its first replicate diverged."""
    folder = tmp_path_factory.mktemp("results")
    simulation = simulated.Simulation(folder, epochs=7, inside=["frozen_head"])
    plan = simulated.plan(3, panels=["frozen_head"])
    simulation.submit(plan)
    for entry in plan["trials"]:
        broken = entry["arm"] == "frozen_head" and entry["replicate"] == 0
        simulation.trial(**entry, **({"status": "failed", "failure_class": "nan"} if broken else {}))
    return load(folder, simulated.STUDY)


@pytest.fixture(scope="module")
def insights(instructive):
    return instructive.plot_inside()


@pytest.fixture(scope="module")
def arrays(instructive):
    return instructive.arrays([instructive.trials.query("arm == 'frozen_head' and replicate == 1")["trial"].item()])


def array_of(arrays, name, epoch):
    return arrays[(arrays["name"] == name) & (arrays["epoch"] == epoch)]["array"].item()


@pytest.mark.slow
def test_inside_are_the_arms_that_recorded_something(instructive, insights):
    kinds = ["loss", "clean", "coefficient", "transition", "embeddings"]
    assert list(insights) == ["selection", "labels", *(f"{kind}-frozen_head" for kind in kinds)]
    assert all("Arm: frozen head, replicate 1." in insights[f"{kind}-frozen_head"].caption for kind in kinds)
    oracles = [plot for name, plot in insights.items() if not name.startswith("embeddings")]
    assert all("An oracle: it needs the true labels" in plot.caption for plot in oracles)
    assert instructive.plot_inside("full") == {}


@pytest.mark.slow
def test_quality_of_the_selection_by_epoch(instructive, insights):
    plot = insights["selection"]
    rows = instructive.epochs(["oracle/selection_precision"])
    drawn = plot.drawn[plot.drawn["metric"] == "oracle/selection_precision"]
    np.testing.assert_allclose(drawn["mean"], rows.groupby("epoch")["value"].mean())
    axes = plot.figure.axes
    assert [ax.get_ylabel() for ax in axes] == [
        "AUC of the clean\nprobability or weight",
        "precision of the\nclean selection (%)",
        "recall of the\nclean selection (%)",
    ]
    np.testing.assert_allclose(lines_of(axes[1], 1.9)[0][2], 100 * drawn["mean"])
    assert lines_of(axes[0], 1.9)[0][2].max() < 1.01  # an area is no percentage
    assert [ax.get_ylabel() for ax in insights["labels"].figure.axes] == ["memorised\nwrong labels (%)"]


@pytest.mark.slow
def test_losses_of_right_and_wrong_labels_with_the_mixture(arrays, insights):
    plot = insights["loss-frozen_head"]
    titles = [axes.get_title(loc="left") for axes in plot.figure.axes]
    assert titles == ["epoch 1", "epoch 3", "epoch 4", "epoch 5", "epoch 7"]  # five of seven, first and last included
    drawn = plot.drawn[plot.drawn["epoch"] == 5]
    counts = array_of(arrays, "oracle/loss_histogram", 5)
    np.testing.assert_allclose(drawn[["right", "wrong"]].T, counts / counts.sum())
    density = [
        sum(weight * scipy.stats.norm.pdf(x, mean, deviation) for weight, mean, deviation in network)
        for x in (drawn["low"] + drawn["high"]) / 2
        for network in array_of(arrays, "train/mixture", 5)[:1]
    ]
    np.testing.assert_allclose(drawn["mixture"], np.multiply(density, 1 / 40), rtol=0.03, atol=1e-5)
    np.testing.assert_allclose(plot.figure.axes[3].lines[-1].get_ydata(), 100 * drawn["mixture"])
    names = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert names == ["right given labels", "wrong given labels", "mixture", "its components"]


def test_networks_of_a_mixture_are_averaged():
    edges = np.linspace(0, 1, 41)
    first, second = [[0.6, 0.2, 0.1], [0.4, 0.7, 0.1]], [[0.5, 0.3, 0.1], [0.5, 0.8, 0.2]]
    both = _component_shares(np.array([first, second]), edges)
    apart = [_component_shares(np.array([one]), edges) for one in (first, second)]
    np.testing.assert_allclose(both, np.mean(apart, axis=0))
    np.testing.assert_allclose(apart[0].sum(axis=1), [0.6, 0.4], atol=0.02)  # but for the tails outside


@pytest.mark.slow
def test_coefficients_start_where_there_are_some(arrays, insights):
    plot = insights["coefficient-frozen_head"]
    assert plot.figure.axes[0].get_title(loc="left") == "epoch 2"  # none in epoch 1
    drawn = plot.drawn[plot.drawn["epoch"] == 7]
    assert drawn["right"].sum() + drawn["wrong"].sum() == pytest.approx(1)
    assert "mixture" not in drawn and len(plot.figure.legends[0].get_texts()) == 2


def test_mean_coefficients_of_right_and_wrong_labels(instructive, arrays):
    curves, arms = ("oracle/coefficient_histogram", "test/accuracy"), ("full", "frozen_head")
    panel = PanelRecord(title="Coefficients", arms=arms, curves=curves, reference="full")
    instructive.plan.panels["coefficients"] = panel
    drawn = instructive.plot("coefficients")
    del instructive.plan.panels["coefficients"]
    assert list(drawn) == ["curves", "coefficient", "arms"]
    plot = drawn["coefficient"]
    assert [axes.get_title(loc="left") for axes in plot.figure.axes] == ["frozen head"]  # the other arm has none
    rows = plot.drawn.query("epoch == 7").set_index("given")
    kept = instructive.arrays(instructive.trials.query("arm == 'frozen_head'")["trial"].tolist())
    kept = kept[(kept["name"] == "oracle/coefficient_histogram") & (kept["epoch"] == 7)]
    for kind, given in enumerate(("right", "wrong")):
        means = [counts[kind] @ np.arange(40) / 39 / counts[kind].sum() for counts in kept["array"]]
        assert rows.loc[given, "mean"] == pytest.approx(np.mean(means)) and rows.loc[given, "n"] == len(means)
    assert rows.loc["right", "mean"] > rows.loc["wrong", "mean"] + 0.2
    assert 1 not in plot.drawn.dropna(subset="mean")["epoch"].tolist()  # nothing is known in the first epoch
    assert "An oracle" in plot.caption and "Not recorded" not in drawn["curves"].caption


def test_a_coefficient_of_zero_or_one_has_an_exact_mean():
    assert _histogram_mean(np.array([3, *[0] * 38, 1])) == pytest.approx(0.25)
    assert np.isnan(_histogram_mean(np.zeros(40)))


@pytest.mark.slow
def test_estimated_beside_realised_transition_matrix(insights):
    plot = insights["transition-frozen_head"]
    estimated, realised = simulated.symmetric(0.4 + 0.2 / 7), simulated.symmetric(0.4)
    shown = [axes.images[0].get_array() for axes in plot.figure.axes[:2]]
    np.testing.assert_allclose(shown[0], estimated, rtol=1e-6)
    np.testing.assert_allclose(shown[1], realised)
    error = np.abs(estimated - realised).mean()
    assert plot.figure.axes[0].get_title(loc="left") == f"estimated, epoch 7: error {error:.3f}"
    row = plot.drawn.query("true == 3 and given == 5").iloc[0]
    assert (row["estimated"], row["realised"]) == pytest.approx((estimated[3, 5], 0.4 / 9))


@pytest.mark.slow
def test_embeddings_by_epoch_on_the_same_axes(arrays, insights):
    plot = insights["embeddings-frozen_head"]
    panels = plot.figure.axes
    assert len(panels) == 5 and len({axes.get_xlim() + axes.get_ylim() for axes in panels}) == 1
    assert np.abs(plot.drawn[["x", "y"]]).max().max() < panels[0].get_xlim()[1]
    drawn = plot.drawn[plot.drawn["epoch"] == 7]
    assert drawn["class"].tolist() == array_of(arrays, "test/embedding_labels", 7).tolist()
    spread = drawn.groupby("class")[["x", "y"]].std().to_numpy().max()
    assert spread < drawn[["x", "y"]].std().min() / 2  # features are far apart by then
    silhouettes = plot.drawn.groupby("epoch")["silhouette"].first()
    assert silhouettes[7] > 0.5 > silhouettes[0]
    assert [axes.get_title(loc="left") for axes in panels] == ["before training", *(f"epoch {n}" for n in (2, 4, 5, 7))]
    assert panels[-1].get_xlabel() == f"silhouette {silhouettes[7]:.2f}"
    looks = {(line.get_color(), line.get_marker()) for line in panels[0].lines[1:]}
    assert len(looks) == 10 and len(plot.figure.legends[0].get_texts()) == 10


@pytest.mark.slow
def test_embeddings_of_several_networks_have_a_row_each_and_the_names_of_their_classes():
    """Document 002, Figure 5 and the text beside it: three networks, from before training on."""
    draw, arrays = np.random.default_rng(0), {}
    for network in ("convnet_002", "wide_resnet45_2"):
        kept = {(name, 1): draw.normal(size=(30, 4)) for name in EMBEDDINGS[:2]} | {
            (EMBEDDINGS[2], 1): np.arange(30) % 3
        }
        arrays[network] = pd.DataFrame(
            [{"epoch": epoch, "name": name, "array": array} for (name, epoch), array in kept.items()]
        )
    plot = embeddings(arrays, ["airplane", "bird", "car"])
    assert [text.get_text() for text in plot.figure.legends[0].get_texts()] == ["airplane", "bird", "car"]
    assert [axes.get_title(loc="left") for axes in plot.figure.axes] == ["before training", "epoch 1", "", ""]
    assert [axes.get_ylabel() for axes in plot.figure.axes] == ["convnet 002", "", "wide resnet45 2", ""]
    assert plot.drawn.groupby("row").size().to_dict() == {"convnet_002": 60, "wide_resnet45_2": 60}
    older = arrays["convnet_002"].query(
        "name != 'test/embeddings_before'"
    )  # of a version that kept none before training
    assert set(embeddings(arrays | {"older": older}, list("abc")).drawn["row"]) == {"convnet_002", "wide_resnet45_2"}


def test_an_epoch_starts_from_the_places_of_the_one_before(monkeypatch):
    """t-SNE leaves the orientation and the middle open: they are taken from the epoch before."""
    points, calls = np.random.default_rng(0).normal(size=(40, 2)) * 7, []
    points -= points.mean(axis=0)
    turned = points @ np.array([[0.6, -0.8], [0.8, 0.6]]) + [3, 9]

    class Recorder:
        def __init__(self, **settings):
            calls.append(settings)

        def fit_transform(self, features):
            return points.copy() if len(calls) == 1 else turned.copy()

    monkeypatch.setattr("sklearn.manifold.TSNE", Recorder)
    placed = _tsne({epoch: np.zeros((40, 5)) for epoch in (1, 50)})
    for epoch in (1, 50):
        np.testing.assert_allclose(placed[epoch], points, atol=1e-9)
    assert isinstance(calls[0]["init"], str) and calls[0]["perplexity"] == 13
    np.testing.assert_allclose(calls[1]["init"], 1e-4 * points / points.std())
    assert calls[0]["random_state"] == calls[1]["random_state"] == 0


def test_classes_without_a_colour_of_their_own_are_grey():
    rows = {
        "test/embeddings": np.random.default_rng(0).normal(size=(25, 3)),
        "test/embedding_labels": np.arange(25.0),
    }
    arrays = pd.DataFrame([{"epoch": 1, "name": name, "array": array} for name, array in rows.items()])
    plot = embeddings({"a network": arrays}, list(map(str, range(25))))
    names = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert names == [*map(str, range(20)), "others"]
    assert len(plot.figure.axes[0].lines[0].get_xdata()) == 5


def test_right_and_wrong_labels_take_no_colour_of_an_arm():
    arms = [matplotlib.colors.to_rgb(colour) for colour in (*ARM_COLOURS, "black")]
    for colour in (RIGHT_COLOUR, WRONG_COLOUR):
        assert min(np.abs(np.subtract(matplotlib.colors.to_rgb(colour), arm)).max() for arm in arms) > 0.1


def test_signs_that_no_font_has_are_named_once_and_drawn_where_a_font_has_them(monkeypatch):
    @base.drawing()
    def titled(title):
        figure = base.new_figure(1, 2)
        figure.subplots().set_title(title)
        return Plot(figure, pd.DataFrame(), "A caption.")

    def with_fonts(*names):
        monkeypatch.setattr(base, "WIDE_FONTS", names)
        base.fonts.cache_clear()
        base._known_signs.cache_clear()

    with_fonts()
    assert titled("accuracy − 95 % ± λ").caption == "A caption."
    boxed = titled("猫 and 犬")
    assert boxed.caption == f"A caption. {base.BOXES}: 猫 犬. Install one, such as Noto Sans CJK."
    again = Plot(boxed.figure, boxed.drawn, f"Arm: full. {boxed.caption}")
    assert again.caption == f"Arm: full. {boxed.caption}"
    assert titled("⌕").caption != "A caption."
    boxed = titled("⌕").png()
    with_fonts("no such font", "STIXGeneral")  # one of matplotlib's own, with a sign that the plain one lacks
    assert base.fonts() == ("DejaVu Sans", "STIXGeneral")
    drawn = titled("⌕")
    assert drawn.caption == "A caption." and drawn.png() != boxed
    monkeypatch.undo()
    with_fonts(*base.WIDE_FONTS)


# -------------------------------------------------------------------------------------------------- what goes wrong


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """One replicate diverged half way, one is not there, one arm's noise was another draw."""
    folder = tmp_path_factory.mktemp("troubled")
    simulation, plan = simulated.Simulation(folder), simulated.plan(panels=["frozen_head", "gradient"])
    simulation.submit(plan)
    for entry in plan["trials"]:
        if entry["arm"] == "frozen_head" and entry["replicate"] == 0:
            simulation.trial(**entry, status="failed", failure_class="nan")
        elif entry["arm"] == "stopped_gradient":
            simulation.trial(**entry, noise_hash=f"another draw {entry['replicate']}")
        elif not (entry["arm"] == "full" and entry["replicate"] == 3):
            simulation.trial(**entry)
    return load(folder, simulated.STUDY)


def test_diverged_trials_count_as_chance_and_are_crosses(troubled):
    plot = troubled.plot("frozen_head")["arms"]
    drawn = plot.drawn.set_index("arm")
    kept = troubled.trials.query("arm == 'frozen_head' and status == 'ok'")["accuracy_last"]
    assert drawn.loc["frozen_head", "mean"] == pytest.approx((kept.sum() + 0.1) / 4)
    crosses = [line for line in plot.figure.axes[0].lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in crosses] == [[10.0]]
    assert "1 diverged trial counted as chance" in plot.caption and "crosses: diverged" in plot.caption


def test_unpaired_differences_and_smaller_n_are_said(troubled):
    plot = troubled.plot("frozen_head")["arms"]
    texts = [text.get_text() for text in plot.figure.axes[1].texts]
    assert any("n = 3, paired" in text for text in texts)
    assert any("n = 4 and 3, unpaired" in text for text in texts)
    assert "n = 3 to 4 replicates per arm" in plot.caption and "else unpaired (Welch)" in plot.caption


def test_the_oracle_and_the_validation_labels_are_named(troubled):
    assert "an oracle" in troubled.plot("frozen_head", "best_test")["arms"].caption
    trials = troubled.trials.assign(validation_labels="noisy", accuracy_val_selected=0.5)
    assert "best accuracy on noisy validation labels" in rule_sentence("val_selected", trials)
    without = rule_sentence("val_selected", troubled.trials)  # only the diverged one has a value
    assert f"{len(troubled.trials) - 1} trials without a value" in without


def test_a_rule_without_any_value_leaves_the_figure_out(study):
    assert list(study.plot("frozen_head", "val_selected")) == ["curves"]


def test_a_mean_ends_where_a_replicate_ends(study):
    rows = study.epochs(["test/accuracy"])
    rows = rows[(rows["arm"] == "full") & (rows["setting"].map(len) == 0)].assign(arm=pd.Categorical(["full"] * 20))
    rows = rows[(rows["replicate"] != 1) | (rows["epoch"] <= 3)]
    drawn = learning_curves(rows, ["test/accuracy"], "arm", arm_looks(study)).drawn
    assert drawn["mean"].notna().tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("draw", [learning_curves, metric_curves])
def test_a_curve_of_one_epoch_is_a_point_at_a_whole_epoch(study, draw):
    rows = study.epochs(["test/accuracy"])
    rows = rows[(rows["setting"].map(len) == 0) & rows["arm"].isin(["full", "frozen_head"]) & (rows["epoch"] == 3)]
    rows["arm"] = pd.Categorical(rows["arm"], ["full", "frozen_head", "mixmatch_only"])
    axes = draw(rows, ["test/accuracy"], "arm", arm_looks(study)).figure.axes[0]
    means = [line for line in axes.lines if line.get_linewidth() == 1.9]
    places = [line.get_xdata()[0] for line in means]
    assert places[0] < 3 < places[1] and sum(places) == pytest.approx(6), "side by side"
    assert {line.get_marker() for line in means} == {"o"}
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [3]
    multiples = curve_multiples(rows, "test/accuracy", arm_looks(study)).figure.axes[0]
    assert {line.get_marker() for line in multiples.lines} == {"o"}


def test_a_legend_names_the_arms_that_have_a_line(study):
    rows = study.epochs(["test/accuracy"])
    rows = rows[(rows["setting"].map(len) == 0) & rows["arm"].isin(["full", "frozen_head"])]
    rows["arm"] = pd.Categorical(rows["arm"], ["full", "frozen_head"])
    rows["value"] = rows["value"].where(rows["arm"] != "full")
    (legend,) = metric_curves(rows, ["test/accuracy"], "arm", arm_looks(study)).figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["frozen head"]


def test_metrics_that_nobody_or_not_everybody_recorded_are_named(study):
    rows = study.epochs(["train/loss", "train/gradient_cosine"])
    rows = rows[(rows["setting"].map(len) == 0) & rows["arm"].isin(["full", "mixmatch_only"])]
    rows["arm"] = pd.Categorical(rows["arm"], ["full", "mixmatch_only"])
    metrics = ["train/loss", "train/gradient_cosine", "train/nothing"]
    caption = metric_curves(rows, metrics, "arm", arm_looks(study)).caption
    assert "Not recorded by any trial: training nothing." in caption
    assert "Without cosine of the two gradients: mixmatch only." in caption
    undefined = rows.assign(
        value=rows["value"].where((rows["arm"] != "full") | (rows["metric"] != "train/gradient_cosine"))
    )
    caption = metric_curves(undefined, metrics[:2], "arm", arm_looks(study)).caption
    assert "Without cosine of the two gradients: full and mixmatch only." in caption


def test_more_factors_than_a_figure_shows_are_refused(study):
    across = {"across": ("labels", "noise.rate", "unlabelled_ratio")}
    study.plan.panels["deep"] = study.plan.panels["ratios"].model_copy(update=across)
    with pytest.raises(ValueError, match="at most 2 crossed factors"):
        study.plot("deep")
    del study.plan.panels["deep"]


@pytest.mark.slow
def test_the_same_rows_give_the_same_bytes(troubled):
    first, second = (troubled.plot("frozen_head")["arms"] for _ in range(2))
    png = first.png()
    assert png == first.png() == second.png()
    pdf = first.pdf()
    assert pdf == second.pdf()
    assert b"CreationDate" not in pdf and b"/Type3" not in pdf


def test_a_notebook_shows_figures_with_their_captions(troubled):
    shown = troubled.plot("frozen_head")._repr_html_()
    assert shown.count("<img") == 2 and "paired by replicate" in shown


@pytest.mark.parametrize(
    ("difference", "low", "high", "text"),
    [
        (-0.0042, -0.011, 0.0026, "−0.42 [−1.10, +0.26]"),
        (0.01, np.nan, np.nan, "+1.00"),
        (-0.00001, -0.01, 0.01, "0.00 [−1.00, +1.00]"),
        (np.nan, np.nan, np.nan, "no data"),
    ],
)
def test_differences_in_words(difference, low, high, text):
    assert difference_text(difference, low, high) == text


def test_settings_with_fields_are_one_level_however_their_keys_are_ordered(tmp_path):
    """Plans keep the declared order of keys, rows are sorted: human labels would be lost from their panel."""
    kinds = [{"kind": "symmetric", "rate": 0.4}, {"kind": "human", "column": "worse"}]
    plan = simulated.plan(2, panels=["ratios"])
    plan["factors"], plan["base_levels"] = {"noise": kinds}, {"noise": kinds[0]}
    plan["panels"]["ratios"] = {**plan["panels"]["ratios"], "across": ["noise"]}
    plan["trials"] = [
        {"trial": simulated.trial_id(arm, setting, k), "arm": arm, "setting": setting, "replicate": k}
        for arm in plan["arms"]
        for setting in ({}, {"noise": kinds[1]})
        for k in range(2)
    ]
    simulation = simulated.Simulation(tmp_path)
    simulation.submit(plan)
    simulation.run(plan["trials"])
    panel = load(tmp_path, simulated.STUDY).panel("ratios")
    assert panel["noise"].value_counts().to_dict() == {"symmetric 0.4": 4, "human worse": 4}
    assert setting_name({"noise": {"column": "worse", "kind": "human"}}) == "human worse"
    assert level_name("noise", {"teacher": {"labels": 2500}, "kind": "semantic"}) == "semantic 2500"
    symmetric = {"kind": "symmetric", "rate": 0.5}
    assert level_name("noise", {"include_true": True, **symmetric}) == "symmetric 0.5 include true"
    assert level_name("noise", {**symmetric, "exact": False}) == "symmetric 0.5 no exact"


def test_settings_in_words():
    assert setting_name({}) == "base"
    assert setting_name({"labels": 40, "noise.rate": 0.1}) == "40 labels, 10 % noise"
    assert setting_name({"unlabelled_ratio": 20}) == "labelled : unlabelled 1 : 20"
    assert setting_name({"method.sharpening_temperature": 0.5}) == "sharpening temperature 0.5"
    assert setting_name({"method.lambda_mixmatch": 1.0, "probe": 50}) == "lambda mixmatch 1, 50 trusted images"


HOSTILE_RC = """
text.usetex: True
axes.facecolor: red
figure.facecolor: yellow
savefig.facecolor: blue
savefig.bbox: tight
font.size: 31
font.family: monospace
lines.linewidth: 9
image.lut: 3
axes.prop_cycle: cycler('color', ['red'])
text.parse_math: True
pdf.compression: 0
"""


def drawn(root: str) -> list[str]:
    """Digests of figures in both formats."""
    study = load(root, simulated.STUDY)
    figures = [*study.plot("frozen_head").values(), contrasts_figure(study.contrasts())]
    figures += [cost_figure(read_ledger(Path(root), simulated.STUDY))]
    return [hashlib.sha256(content).hexdigest() for plot in figures for content in (plot.png(), plot.pdf())]


@pytest.mark.slow
def test_the_users_matplotlibrc_changes_no_byte(tmp_path):
    """Not even where it asks for TeX, which this machine need not have."""
    simulation, plan = simulated.Simulation(tmp_path / "results", epochs=2), simulated.plan(2, panels=["frozen_head"])
    simulation.submit(plan)
    simulation.run(plan["trials"])
    (tmp_path / "matplotlibrc").write_text(HOSTILE_RC, encoding="utf-8")
    code = "import sys; from tests.analysis.test_plots import drawn; print(*drawn(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    command = [sys.executable, "-c", code, str(tmp_path / "results")]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == drawn(str(tmp_path / "results"))


@pytest.mark.slow
def test_every_function_that_makes_a_figure_draws_under_our_own_settings():
    """Those of searches, nights, ledgers and across settings, too."""
    makers, bare = [], []
    for path in sorted((ROOT / "analysis").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name == "new_figure":
                continue
            calls = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
            if calls & {"new_figure", "Figure"}:
                makers.append(node.name)
                bare += [f"{path.name}: {node.name}"] * ("drawing()" not in map(ast.unparse, node.decorator_list))
    assert len(makers) > 20 and not bare


def test_a_dollar_sign_in_a_name_is_one(study):
    """It was matplotlib's mathtext, whose error ended the report."""
    name = "$\\nosuch{$"
    trials = study.trials.assign(arm=study.trials["arm"].replace("frozen_head", name))
    panel = study.plan.panels["frozen_head"].model_copy(update={"arms": ("full", name, "stopped_gradient")})
    arms = {"full": {}, name: {"labels": 1}, "stopped_gradient": {"labels": 2}}
    plan = study.plan.model_copy(update={"arms": arms, "panels": {"frozen_head": panel}})
    found = dataclasses.replace(study, trials=trials, plan=plan)
    plot = found.plot("frozen_head")["arms"]
    labels = [label.get_text() for axes in plot.figure.axes for label in axes.get_yticklabels()]
    assert name in labels and plot.png().startswith(b"\x89PNG")
