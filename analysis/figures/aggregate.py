"""Figures and tables across settings, and of factorial ablations; numbers from `analysis.aggregate`.

As in `analysis.figures.panels`: rows in, a `Plot` out; frames hold fractions, axes show percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis import aggregate, statistics
from analysis import words as words_module
from analysis.aggregate import Factorial, Grid, Ranking
from analysis.figures import base as figures_base
from analysis.figures.base import (
    DARK,
    FAINT,
    WIDTH,
    Look,
    Plot,
    Plots,
    _annotate,
    _figure,
    _laid_out,
    _legend,
    _possible,
    drawing,
)
from analysis.figures.contrasts import _draw_forest, _pairing_sentence
from analysis.figures.search_axes import GREY
from analysis.results import in_base
from analysis.tables.table import Table, interval, percent
from analysis.words import _listed, plural, words

if TYPE_CHECKING:
    from analysis.results import Study

COLUMNS = 5  # profiles side by side
MOST_NAMED = 6  # arms that were left out, in one sentence


def of_study(study: Study, selection: str) -> Plots:
    """The figures that a study supports: across settings where arms share at least two, and of its factorials."""
    looks, figures = figures_base.arm_looks(study), Plots()
    grid = aggregate.grid(study, selection)
    if grid is not None:
        figures["iqm"] = interquartile_means(grid, looks, selection)
        figures["profiles"] = profiles(grid, looks, selection)
        figures["improvement"] = improvements(grid, looks, selection)
        ranking = aggregate.ranking(grid)
        if ranking is not None:
            figures["ranks"] = ranks(grid, ranking, looks, selection)
    for factorial in aggregate.declared_factorials(study):
        frame = aggregate.effects(study, factorial, selection)
        if len(frame):
            figures[_stem(factorial)] = effects(frame, factorial, looks, _rule(study, factorial, selection))
    return figures


def tables_of(study: Study, selection: str) -> dict[str, Table]:
    """The same numbers as tables: `settings` across settings, and one for each factorial."""
    tables = {}
    grid = aggregate.grid(study, selection)
    if grid is not None:
        tables["settings"] = settings_table(grid, selection)
    for factorial in aggregate.declared_factorials(study):
        frame = aggregate.effects(study, factorial, selection)
        if len(frame):
            tables[_stem(factorial)] = effects_table(frame, factorial, _rule(study, factorial, selection))
    return tables


# ------------------------------------------------------------------------------------------------------ across settings


@drawing()
def interquartile_means(grid: Grid, looks: Mapping[Any, Look], selection: str) -> Plot:
    """IQM of every arm, and beside it the difference to the reference arm; arms in declared order."""
    frame = aggregate.interquartile_means(grid)
    names = list(frame["arm"])
    figure = _figure(1.0 + _pitch(names) * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.15, 1])
    for position, row in enumerate(statistics.records(frame)):
        colour = looks[row["arm"]].colour
        each = 100 * aggregate.interquartile_mean(grid.accuracies[row["arm"]])
        left.plot(each, np.full(len(each), position + 0.22), "o", color=colour, alpha=FAINT, markersize=4)
        left.hlines(position, 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.2)
        left.plot(100 * row["iqm"], position, "o", color=colour, markersize=6)
    _name_rows(left, [words(arm) for arm in names])
    left.set_xlim(_possible(*left.get_xlim()))
    left.set_xlabel("IQM of test accuracy (%)")
    renamed = {"difference_low": "low", "difference_high": "high", "pairs": "n"}
    compared = frame[["difference", *renamed, "n_against", "paired"]].rename(columns=renamed)
    _draw_forest(right, compared.assign(smallest_effect=0.0), [looks[arm].colour for arm in names])
    _annotate(right, names.index(grid.reference), "reference")
    right.set_xlabel(f"difference to {words(grid.reference)} (points)")
    caption = (
        "Interquartile mean (IQM): mean of the middle half of a replicate's accuracies over settings. "
        f"{_scope(grid, selection)} Faint points: replicates; bold: their mean with 95 % t interval; right: difference "
        f"to {words(grid.reference)}{_pairing_sentence(frame)}"
    )
    return Plot(_laid_out(figure), frame, caption)


@drawing()
def profiles(grid: Grid, looks: Mapping[Any, Look], selection: str) -> Plot:
    """Share of runs above an accuracy: each arm has axes of its own, where it stands beside the reference."""
    frame = aggregate.profiles(grid)
    curves = {str(arm): rows for arm, rows in frame.groupby("arm", sort=False)}
    others = [arm for arm in grid.arms if arm != grid.reference]
    rows = math.ceil(len(others) / COLUMNS)
    columns = math.ceil(len(others) / rows)
    figure = _figure(1.0 + (2.4 if columns < COLUMNS else 1.45) * rows, min(WIDTH, 1.6 + 3.2 * columns))
    cells = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, arm in zip(cells, others, strict=False):
        for name in (grid.reference, arm):
            curve, look = curves[name], looks[name]
            x, low, high = (100 * curve[column] for column in ("threshold", "low", "high"))
            axes.fill_between(x, low, high, step="post", color=look.colour, alpha=0.12, linewidth=0)
            axes.step(x, 100 * curve["share"], where="post", color=look.colour, linestyle=look.line, linewidth=1.6)
        axes.set_title(words(arm), loc="left", color=looks[arm].colour)
        axes.set_ylim(-3, 103)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    for axes in cells[len(others) :]:
        axes.set_visible(False)
    for axes in cells[len(others) - columns : len(others)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel("test accuracy τ (%)", fontsize=9)
    figure.supylabel("runs above τ (%)", fontsize=9)
    _legend(figure, [(words(grid.reference), looks[grid.reference])])
    caption = (
        "Performance profiles: share of an arm's runs, over all settings and replicates, whose accuracy is above τ, "
        f"beside that of {words(grid.reference)}. {_scope(grid, selection)} Bands: pointwise 95 % intervals (Korn and "
        "Graubard's, over replicates)."
    )
    return Plot(_laid_out(figure), frame, caption)


@drawing()
def improvements(grid: Grid, looks: Mapping[Any, Look], selection: str) -> Plot:
    """Probability that a run of an arm is better than one of the reference: each setting faint, their mean bold."""
    frame = aggregate.improvements(grid)
    means = frame[frame["setting"].isna()]
    names = list(means["arm"])
    figure = _figure(0.8 + _pitch(names) * len(names))
    axes = figure.subplots()
    axes.axvline(50, color=DARK, linewidth=0.9, zorder=1)
    for position, row in enumerate(statistics.records(means)):
        colour = looks[row["arm"]].colour
        each = frame.loc[(frame["arm"] == row["arm"]) & frame["setting"].notna(), "probability"]
        axes.plot(100 * each, position + 0.22 * _fan(each), "o", color=colour, alpha=FAINT, markersize=4)
        axes.hlines(position, 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.2)
        axes.plot(100 * row["probability"], position, "o", color=colour, markersize=6)
        interval = "" if np.isnan(row["low"]) else f" [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        count = f"{row['n']}, paired" if row["paired"] else f"{row['n']} and {row['n_against']}, unpaired"
        _annotate(axes, position, f"{100 * row['probability']:.0f}{interval}   n = {count}")
    _name_rows(axes, [words(arm) for arm in names])
    axes.set_xlim(-3, 103)
    axes.set_xlabel(f"probability of a better run than {words(grid.reference)} (%)")
    caption = (
        f"Probability that a run is better than one of {words(grid.reference)}, ties as half: "
        "the share of pairs where replicates are pairs, else of all combinations (Mann and Whitney's). "
        f"{_scope(grid, selection)} Faint points: settings; bold: their mean with its 95 % interval (Korn and "
        "Graubard's, over replicates), not corrected for the number of arms."
    )
    named = frame["setting"].map(words_module.setting_name, na_action="ignore")
    return Plot(_laid_out(figure), frame.assign(setting=named), caption)


@drawing()
def ranks(grid: Grid, ranking: Ranking, looks: Mapping[Any, Look], selection: str) -> Plot:
    """Critical-difference diagram (Demšar 2006): mean ranks over settings, bars over arms that cannot be told apart."""
    arms, order = grid.arms, np.argsort(ranking.ranks, kind="stable")
    frame = pd.DataFrame({"arm": [arms[i] for i in order], "rank": ranking.ranks[order]})
    frame["groups"] = [" ".join(str(g) for g, group in enumerate(ranking.groups, 1) if i in group) for i in order]
    half, gap = (len(arms) + 1) // 2, 0.8  # the better half is named on the left
    first = 1.2 + 0.45 * len(ranking.groups)  # height of the first name
    depth = first + gap * (half - 1) + 0.5
    figure = _figure(0.9 + 0.26 * depth)
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
            f"{words(arms[i])}  {ranking.ranks[i]:.2f}" if left else f"{ranking.ranks[i]:.2f}  {words(arms[i])}",
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
    above: Any = {"color": DARK, "linewidth": 1.5, "clip_on": False}
    axes.hlines(-1.7, 1, 1 + ranking.difference, **above)
    axes.vlines([1, 1 + ranking.difference], -1.9, -1.5, **above)
    text = f"  critical difference {ranking.difference:.2f}"
    axes.annotate(text, (1 + ranking.difference, -1.7), va="center", annotation_clip=False)
    outcome = (
        "Bars join arms whose mean ranks differ by less than Nemenyi's critical difference at .05"
        if ranking.p < 1 - statistics.LEVEL
        else "Friedman's test does not tell the arms apart, so one bar joins them all"
    )
    caption = (
        f"Mean ranks of {len(arms)} arms by their mean accuracy in each setting. {_scope(grid, selection)} {outcome}; "
        f"Friedman's χ² = {ranking.statistic:.2f}, p {_p(ranking.p)}. Settings count as independent, however "
        "alike they are."
    )
    return Plot(_laid_out(figure), frame, caption)


def settings_table(grid: Grid, selection: str) -> Table:
    """IQM, difference to the reference, probability of improvement and, where there are enough, mean ranks."""
    frame = aggregate.interquartile_means(grid)
    better = aggregate.improvements(grid)
    better = better.loc[better["setting"].isna(), ["arm", "probability", "low", "high"]]
    frame = frame.merge(better, on="arm", how="left", suffixes=("", "_better"))
    ranking = aggregate.ranking(grid)
    if ranking is not None:
        frame["rank"] = ranking.ranks
    rows = [
        [
            words(row["arm"]),
            str(row["n"]),
            percent(row["iqm"]),
            interval(row["low"], row["high"]),
            *(
                ["reference", "", ""]
                if row["arm"] == grid.reference
                else [
                    words_module.difference_text(row["difference"], row["difference_low"], row["difference_high"]),
                    f"yes, n = {row['pairs']:g}"
                    if row["paired"]
                    else f"no ({row['reason']}), n = {row['pairs']:g} and {row['n_against']:g}",
                    f"{percent(row['probability'])} {interval(row['low_better'], row['high_better'])}".strip(),
                ]
            ),
            *([f"{row['rank']:.2f}"] if ranking is not None else []),
        ]
        for row in statistics.records(frame)
    ]
    reference = words(grid.reference)
    header = ["arm", "n", "IQM (%)", "95 % interval", f"difference to {reference} (points)", "paired"]
    header += [f"better than {reference} (% of runs)", *(["mean rank"] if ranking is not None else [])]
    caption = (
        f"Arms over settings. {_scope(grid, selection)} IQM: mean of the middle half of a replicate's accuracies over "
        "settings; its intervals are Student's t over replicates, those of shares Korn and Graubard's; 95 %, not "
        "corrected for the number of arms."
    )
    return Table(caption, header, rows, frame)


# ----------------------------------------------------------------------------------------------------------- factorials


@drawing()
def effects(frame: pd.DataFrame, factorial: Factorial, looks: Mapping[Any, Look], rule: str) -> Plot:
    """Effects and interactions beside what each combination is, and would be if single effects added up."""
    forest = frame[frame["kind"] == "effect"]
    of_kind = {kind: frame[frame["kind"] == kind] for kind in ("measured", "additive", "residual")}
    combined = list(of_kind["measured"]["arm"])
    figure = _figure(1.5 + 0.36 * len(forest) + 0.5 * len(combined))
    upper, lower = figure.subplots(2, 1, height_ratios=[1.2 + len(forest), 1.2 + 1.4 * len(combined)])
    counts = frame.assign(n_against=frame["n"], smallest_effect=0.0).rename(columns={"value": "difference"})
    _draw_forest(upper, counts[counts["kind"] == "effect"], [looks[arm].colour for arm in forest["arm"]])
    _name_rows(upper, [_term(term) for term in forest["term"]])
    upper.set_xlabel("effect on test accuracy (percentage points)")
    shifts = {"measured": -0.17, "additive": 0.17}
    for kind, shift in shifts.items():
        for position, row in enumerate(statistics.records(of_kind[kind])):
            colour = looks[row["arm"]].colour if kind == "measured" else GREY
            lower.hlines(position + shift, 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.2)
            face = colour if kind == "measured" else "white"
            lower.plot(100 * row["value"], position + shift, "o", color=colour, markerfacecolor=face, markersize=6)
    for position, row in enumerate(statistics.records(of_kind["residual"])):
        text = words_module.difference_text(row["value"], row["low"], row["high"])
        _annotate(lower, position, f"residual {text}")
    _name_rows(lower, [words(arm) for arm in combined])
    lower.set_xlim(_possible(*lower.get_xlim()))
    lower.set_xlabel("test accuracy (%): filled measured, hollow if effects added up")
    caption = (
        f"{_about(factorial, rule)} Above: effects, each averaged over the other factors; below: arms that "
        "combine factors, with what they would be if the single effects added up; residual: measured minus that. "
        f"{_intervals(frame)}"
    )
    return Plot(_laid_out(figure), frame.assign(term=frame["term"].map(_term)), caption)


def effects_table(frame: pd.DataFrame, factorial: Factorial, rule: str) -> Table:
    """Effects and interactions, then the additivity residual of every arm that combines factors."""
    shown = frame[frame["kind"].isin(["effect", "residual"])]
    accuracies = {kind: frame[frame["kind"] == kind].set_index("arm")["value"] for kind in ("measured", "additive")}
    rows = [
        [
            _term(row["term"]) if row["kind"] == "effect" else words(row["arm"]),
            ["", "effect", "interaction of two", f"interaction of {len(row['term'])}"][min(len(row["term"]), 3)]
            if row["kind"] == "effect"
            else f"additivity residual: {percent(accuracies['measured'][row['arm']])} instead of "
            f"{percent(accuracies['additive'][row['arm']])}",
            words_module.difference_text(row["value"], row["low"], row["high"]),
            "" if np.isnan(row["p"]) else f"{row['p']:.4f}" if row["p"] >= 1e-4 else "< 0.0001",
        ]
        for row in statistics.records(shown)
    ]
    caption = f"{_about(factorial, rule)} {_intervals(frame)}"
    return Table(caption, ["factors or arm", "quantity", "value (points)", "p"], rows, frame)


# ---------------------------------------------------------------------------------------------------------- small parts


def _stem(factorial: Factorial) -> str:
    return "factorial-" + "-".join(factorial.factors)


def _term(term: Sequence[str]) -> str:
    return " × ".join(map(words, term))


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _pitch(names: Sequence[str]) -> float:
    """Inches from row to row."""
    return 0.42 if len(names) <= 12 else 0.3


def _fan(values: pd.Series) -> np.ndarray:
    """Heights in [0.4, 1.6] that keep equal values apart."""
    return 1 + 0.6 * (values.groupby(values).cumcount() / max(values.value_counts().max() - 1, 1) * 2 - 1).to_numpy()


def _scope(grid: Grid, selection: str) -> str:
    """What is aggregated under which rule, and what was left out and why."""
    factors = list(dict.fromkeys(words_module.factor_name(factor) for setting in grid.settings for factor in setting))
    counts = [len(table) for table in grid.accuracies.values()]
    text = (
        f"{words_module.rule_sentence(selection, grid.trials)} Over {len(grid.settings)} "
        f"settings ({_listed(factors)}), each with the same weight; {words_module.count_sentence(counts)} of each arm."
    )
    if len(grid.left_arms) > MOST_NAMED:
        text += f" {len(grid.left_arms)} arms left out, because they lack a replicate with all of these settings."
    elif grid.left_arms:
        text += f" Arms left out, because they lack a replicate with all of these settings: {_names(grid.left_arms)}."
    if grid.left_settings:
        text += " Settings left out, because some of these arms lack them: "
        text += "; ".join(map(words_module.setting_name, grid.left_settings)) + "."
    if grid.left_runs:
        text += f" {grid.left_runs} {plural('run', grid.left_runs)} of replicates that lack a setting left out."
    return text


def _names(arms: Sequence[str]) -> str:
    return _listed(map(words, arms))


def _rule(study: Study, factorial: Factorial, selection: str) -> str:
    base = in_base(study.trials)
    return words_module.rule_sentence(selection, base[base["arm"].isin(factorial.arms)])


def _about(factorial: Factorial, rule: str) -> str:
    return (
        f"Factorial of {_names(factorial.factors)}: all {len(factorial.arms)} combinations, starting from "
        f"{words(factorial.arms[0])}, in the base setting. {rule} An interaction × is how much the effect of one "
        "factor changes with the other."
    )


def _intervals(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    way = "replicate by replicate" if first["paired"] else "unpaired (Satterthwaite)"
    why = first["reason"]
    return f"95 % t intervals, {way}: {why}; n = {first['n']}; not corrected for the number of effects."


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"
