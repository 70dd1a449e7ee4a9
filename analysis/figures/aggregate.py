"""Figures across settings and of factorial ablations; numbers from `analysis.aggregate` and `analysis.factorials`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis import aggregate, statistics
from analysis.aggregate import Grid, Ranking
from analysis.factorials import Factorial, declared_factorials, effects
from analysis.figures.base import (
    DARK_GREY,
    FAINT_ALPHA,
    PAGE_WIDTH,
    Look,
    Plot,
    Plots,
    annotate_right,
    arm_looks,
    drawing,
    legend_above,
    new_figure,
    within_percent,
)
from analysis.figures.contrasts import draw_forest, outside_sentence, pairing_sentence
from analysis.figures.search_axes import GREY
from analysis.results import Results
from analysis.tables.aggregate import (
    factorial_rule_sentence,
    factorial_sentence,
    factorial_stem,
    intervals_sentence,
    scope_sentence,
    term_name,
)
from analysis.words import (
    difference_text,
    readable,
    setting_name,
)

PROFILES_PER_ROW = 5  # profiles side by side


def across_figures(study: Results, selection: str) -> Plots:
    """The figures that a study supports: across settings where arms share at least two, and of its factorials."""
    looks, figures = arm_looks(study), Plots()
    grid = aggregate.grid(study, selection)
    if grid is not None:
        figures["iqm"] = iqm_figure(grid, looks, selection)
        figures["profiles"] = profiles_figure(grid, looks, selection)
        figures["improvement"] = improvements_figure(grid, looks, selection)
        ranking = aggregate.ranking(grid)
        if ranking is not None:
            figures["ranks"] = ranks_figure(grid, ranking, looks, selection)
    for factorial in declared_factorials(study):
        frame = effects(study, factorial, selection)
        if len(frame):
            figures[factorial_stem(factorial)] = effects_figure(
                frame, factorial, looks, factorial_rule_sentence(study, factorial, selection)
            )
    return figures


# ------------------------------------------------------------------------------------------------------ across settings


@drawing()
def iqm_figure(grid: Grid, looks: Mapping[Any, Look], selection: str) -> Plot:
    """IQM of every arm, and beside it the difference to the reference arm; arms in declared order."""
    frame = aggregate.interquartile_means(grid)
    names = list(frame["arm"])
    figure = new_figure(1.0 + _pitch(names) * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.15, 1])
    for position, row in enumerate(statistics.records(frame)):
        colour = looks[row["arm"]].colour
        each = 100 * aggregate.interquartile_mean(grid.accuracies[row["arm"]])
        left.plot(each, np.full(len(each), position + 0.22), "o", color=colour, alpha=FAINT_ALPHA, markersize=4)
        left.hlines(position, 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.2)
        left.plot(100 * row["iqm"], position, "o", color=colour, markersize=6)
    _name_rows(left, [readable(arm) for arm in names])
    left.set_xlim(within_percent(*left.get_xlim()))
    left.set_xlabel("IQM of test accuracy (%)")
    renamed = {"difference_low": "low", "difference_high": "high", "pairs": "n"}
    compared = frame[["difference", *renamed, "n_against", "paired"]].rename(columns=renamed)
    draw_forest(right, compared.assign(smallest_effect=0.0), [looks[arm].colour for arm in names])
    annotate_right(right, names.index(grid.reference), "reference")
    right.set_xlabel(f"difference to {readable(grid.reference)} (points)")
    caption = (
        "Interquartile mean (IQM): mean of the middle half of a replicate's accuracies over settings. "
        f"{scope_sentence(grid, selection)} Faint points: replicates; bold: their mean with 95 % t interval; "
        "right: difference "
        f"to {readable(grid.reference)}{pairing_sentence(frame)}{outside_sentence(compared)}"
    )
    return Plot(figure, frame, caption)


@drawing()
def profiles_figure(grid: Grid, looks: Mapping[Any, Look], selection: str) -> Plot:
    """Share of runs above an accuracy: each arm has axes of its own, where it stands beside the reference."""
    frame = aggregate.profiles(grid)
    curves = {str(arm): rows for arm, rows in frame.groupby("arm", sort=False)}
    others = [arm for arm in grid.arms if arm != grid.reference]
    rows = math.ceil(len(others) / PROFILES_PER_ROW)
    columns = math.ceil(len(others) / rows)
    figure = new_figure(
        1.0 + (2.4 if columns < PROFILES_PER_ROW else 1.45) * rows, min(PAGE_WIDTH, 1.6 + 3.2 * columns)
    )
    cells = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, arm in zip(cells, others, strict=False):
        for name in (grid.reference, arm):
            curve, look = curves[name], looks[name]
            x, low, high = (100 * curve[column] for column in ("threshold", "low", "high"))
            axes.fill_between(x, low, high, step="post", color=look.colour, alpha=0.12, linewidth=0)
            axes.step(x, 100 * curve["share"], where="post", color=look.colour, linestyle=look.line, linewidth=1.6)
        axes.set_title(readable(arm), loc="left", color=looks[arm].colour)
        axes.set_ylim(-3, 103)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    for axes in cells[len(others) :]:
        axes.set_visible(False)
    for axes in cells[len(others) - columns : len(others)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel("test accuracy τ (%)", fontsize=9)
    figure.supylabel("runs above τ (%)", fontsize=9)
    legend_above(figure, [(readable(grid.reference), looks[grid.reference])])
    caption = (
        "Performance profiles: share of an arm's runs, over all settings and replicates, whose accuracy is above τ, "
        f"beside that of {readable(grid.reference)}. {scope_sentence(grid, selection)} Bands: pointwise "
        "95 % intervals (Korn and "
        "Graubard's, over replicates)."
    )
    return Plot(figure, frame, caption)


@drawing()
def improvements_figure(grid: Grid, looks: Mapping[Any, Look], selection: str) -> Plot:
    """Probability that a run of an arm is better than one of the reference: each setting faint, their mean bold."""
    frame = aggregate.improvements(grid)
    means = frame[frame["setting"].isna()]
    names = list(means["arm"])
    figure = new_figure(0.8 + _pitch(names) * len(names))
    axes = figure.subplots()
    axes.axvline(50, color=DARK_GREY, linewidth=0.9, zorder=1)
    for position, row in enumerate(statistics.records(means)):
        colour = looks[row["arm"]].colour
        each = frame.loc[(frame["arm"] == row["arm"]) & frame["setting"].notna(), "probability"]
        axes.plot(100 * each, position + 0.22 * _spread_equal(each), "o", color=colour, alpha=FAINT_ALPHA, markersize=4)
        axes.hlines(position, 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.2)
        axes.plot(100 * row["probability"], position, "o", color=colour, markersize=6)
        interval = "" if np.isnan(row["low"]) else f" [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        count = f"{row['n']}, paired" if row["paired"] else f"{row['n']} and {row['n_against']}, unpaired"
        annotate_right(axes, position, f"{100 * row['probability']:.0f}{interval}   n = {count}")
    _name_rows(axes, [readable(arm) for arm in names])
    axes.set_xlim(-3, 103)
    axes.set_xlabel(f"probability of a better run than {readable(grid.reference)} (%)")
    caption = (
        f"Probability that a run is better than one of {readable(grid.reference)}, ties as half: "
        "the share of pairs where replicates are pairs, else of all combinations (Mann and Whitney's). "
        f"{scope_sentence(grid, selection)} Faint points: settings; bold: their mean with its 95 % interval (Korn and "
        "Graubard's, over replicates), not corrected for the number of arms."
    )
    named = frame["setting"].map(setting_name, na_action="ignore")
    return Plot(figure, frame.assign(setting=named), caption)


@drawing()
def ranks_figure(grid: Grid, ranking: Ranking, looks: Mapping[Any, Look], selection: str) -> Plot:
    """Critical-difference diagram (Demšar 2006): mean ranks over settings, bars over arms that cannot be told apart."""
    arms, order = grid.arms, np.argsort(ranking.ranks, kind="stable")
    frame = pd.DataFrame({"arm": [arms[i] for i in order], "rank": ranking.ranks[order]})
    frame["groups"] = [" ".join(str(g) for g, group in enumerate(ranking.groups, 1) if i in group) for i in order]
    half, gap = (len(arms) + 1) // 2, 0.8  # the better half is named on the left
    first = 1.2 + 0.45 * len(ranking.groups)  # height of the first name
    depth = first + gap * (half - 1) + 0.5
    figure = new_figure(0.9 + 0.26 * depth)
    axes = figure.subplots()
    axes.set(xlim=(1 - 0.02 * len(arms), len(arms) + 0.02 * len(arms)), ylim=(depth, -0.4))
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=15))
    axes.set_xlabel(f"mean rank over {len(grid.settings)} settings (1: best)", labelpad=24)
    axes.spines[["left", "bottom", "right"]].set_visible(False)
    axes.spines["top"].set_visible(True)
    axes.grid(visible=False)
    axes.set_yticks([])
    for place, i in enumerate(order):
        left = place < half
        height = first + gap * (place if left else len(arms) - 1 - place)
        edge, look = (0.0 if left else 1.0), looks[arms[i]]
        end = axes.get_xlim()[0 if left else 1]
        axes.plot([ranking.ranks[i]] * 2 + [end], [-0.4, height, height], color=look.colour, linewidth=1.1)
        axes.annotate(
            f"{readable(arms[i])}  {ranking.ranks[i]:.2f}" if left else f"{ranking.ranks[i]:.2f}  {readable(arms[i])}",
            (edge, height),
            xycoords=axes.get_yaxis_transform(),
            xytext=(-4 if left else 4, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )
    for level, group in enumerate(ranking.groups):
        low, high = ranking.ranks[group[0]], ranking.ranks[group[-1]]
        axes.hlines(0.2 + 0.45 * level, low - 0.03, high + 0.03, color="black", linewidth=4, zorder=3)
    above: Any = {"color": DARK_GREY, "linewidth": 1.5, "clip_on": False}
    axes.hlines(-1.7, 1, 1 + ranking.difference, **above)
    axes.vlines([1, 1 + ranking.difference], -1.9, -1.5, **above)
    text = f"  critical difference {ranking.difference:.2f}"
    axes.annotate(text, (1 + ranking.difference, -1.7), va="center", annotation_clip=False)
    outcome = (
        "Bars join arms whose mean ranks differ by less than Nemenyi's critical difference at .05"
        if ranking.p < 1 - statistics.CONFIDENCE
        else "Friedman's test does not tell the arms apart, so one bar joins them all"
    )
    caption = (
        f"Mean ranks of {len(arms)} arms by their mean accuracy in each setting. "
        f"{scope_sentence(grid, selection)} {outcome}; "
        f"Friedman's χ² = {ranking.statistic:.2f}, p {_p_value(ranking.p)}. Settings count as independent, however "
        "alike they are."
    )
    return Plot(figure, frame, caption)


# ----------------------------------------------------------------------------------------------------------- factorials


@drawing()
def effects_figure(frame: pd.DataFrame, factorial: Factorial, looks: Mapping[Any, Look], rule: str) -> Plot:
    """Effects and interactions beside what each combination is, and would be if single effects added up."""
    forest = frame[frame["kind"] == "effect"]
    of_kind = {kind: frame[frame["kind"] == kind] for kind in ("measured", "additive", "residual")}
    combined = list(of_kind["measured"]["arm"])
    figure = new_figure(1.5 + 0.36 * len(forest) + 0.5 * len(combined))
    upper, lower = figure.subplots(2, 1, height_ratios=[1.2 + len(forest), 1.2 + 1.4 * len(combined)])
    counts = frame.assign(n_against=frame["n"], smallest_effect=0.0).rename(columns={"value": "difference"})
    effects = counts[counts["kind"] == "effect"]
    draw_forest(upper, effects, [looks[arm].colour for arm in forest["arm"]])
    _name_rows(upper, [term_name(term) for term in forest["term"]])
    upper.set_xlabel("effect on test accuracy (percentage points)")
    shifts = {"measured": -0.17, "additive": 0.17}
    for kind, shift in shifts.items():
        for position, row in enumerate(statistics.records(of_kind[kind])):
            colour = looks[row["arm"]].colour if kind == "measured" else GREY
            lower.hlines(position + shift, 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.2)
            face = colour if kind == "measured" else "white"
            lower.plot(100 * row["value"], position + shift, "o", color=colour, markerfacecolor=face, markersize=6)
    for position, row in enumerate(statistics.records(of_kind["residual"])):
        text = difference_text(row["value"], row["low"], row["high"])
        annotate_right(lower, position, f"residual {text}")
    _name_rows(lower, [readable(arm) for arm in combined])
    lower.set_xlim(within_percent(*lower.get_xlim()))
    lower.set_xlabel("test accuracy (%): filled measured, hollow if effects added up")
    caption = (
        f"{factorial_sentence(factorial, rule)} Above: effects, each averaged over the other factors; below: arms that "
        "combine factors, with what they would be if the single effects added up; residual: measured minus that. "
        f"{intervals_sentence(frame)}{outside_sentence(effects)}"
    )
    return Plot(figure, frame.assign(term=frame["term"].map(term_name)), caption)


# ---------------------------------------------------------------------------------------------------------- small parts


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _pitch(names: Sequence[str]) -> float:
    """Return the inches from row to row."""
    return 0.42 if len(names) <= 12 else 0.3


def _spread_equal(values: pd.Series) -> np.ndarray:
    """Return heights in [0.4, 1.6] that keep equal values apart."""
    return 1 + 0.6 * (values.groupby(values).cumcount() / max(values.value_counts().max() - 1, 1) * 2 - 1).to_numpy()


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"
