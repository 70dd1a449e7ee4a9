"""Figures: one function per kind, from rows to a `Plot`: the figure, the frame that it draws, and its caption.

Replicates are faint, means are bold, bars are 95 % t intervals; an arm has one colour in every figure of its study.
Frames hold fractions; the axes show percent.  No pyplot, no global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from analysis import statistics
from lnl.storage import outcomes

if TYPE_CHECKING:
    from analysis.results import Study
from analysis.figures.base import (
    DARK,
    FAINT,
    TOGETHER,
    WIDTH,
    Look,
    Plot,
    Plots,
    _annotate,
    _figure,
    _laid_out,
    _legend,
    _levels,
    _possible,
    arm_looks,
    drawing,
    level_looks,
)
from analysis.figures.contrasts import _band_sentence, _draw_forest, _pairing_sentence
from analysis.figures.curves import _multiples, learning_curves, metric_curves
from analysis.figures.inside import HISTOGRAM, _histograms
from analysis.words import _level_in_words, count_sentence, factor_name, level_name, rule_sentence, setting_name, words

MOST_FACTORS = 2  # crossed in one panel: columns, and colours or ticks
DECADE = 10  # levels that are so many times as large as others stand on a logarithmic axis


@drawing()
def levels(
    trials: pd.DataFrame, reference: str, across: Sequence[str], looks: Mapping[Any, Look], selection: str
) -> Plot:
    """Accuracy of each arm at each level of the crossed factors.

    Few arms: against the last factor, one small multiple per level of the first of two; numbers stand at their places
    (on a logarithmic axis where they span decades) and are joined, names side by side and are not.  Many arms: a row
    for each, a column for each level of the last factor.

    `trials`: rows of a panel, where `arm` and the factors are ordered categories.
    """
    frame = statistics.arm_table(trials, reference, across, selection)
    scored = trials.assign(accuracy=statistics.accuracy(trials, selection)).dropna(subset="accuracy")
    many = scored["arm"].nunique() > TOGETHER
    figure = (
        _arms_in_rows(frame, scored, reference, across, looks) if many else _arms_by_level(frame, scored, across, looks)
    )
    caption = (
        f"{rule_sentence(selection, trials)} {_points_sentence(trials)}; bold: mean with 95 % t interval"
        f"{_cut_sentence(frame)}; {count_sentence(frame['n'].tolist())} per point."
        + f" Dashed: the mean of {words(reference)}. Every column has its own axis."
        * many
    )
    return Plot(_laid_out(figure), frame, caption)


@drawing()
def _arms_by_level(
    frame: pd.DataFrame, scored: pd.DataFrame, across: Sequence[str], looks: Mapping[Any, Look]
) -> Figure:
    factor, by = across[-1], across[0] if len(across) > 1 else None
    ticks, names = _levels(scored, factor), _levels(scored, "arm")
    places, joined, scale = _places(ticks)
    room = min(np.diff(places), default=1.0)  # the narrowest
    spread = room * min(0.15, 0.6 / len(names))
    beside = {arm: spread * (i - (len(names) - 1) / 2) for i, arm in enumerate(names)}  # side by side at a level
    columns = _levels(scored, by) if by else [None]
    aside = max(spread / 3, 0.012 * len(columns) * np.ptp(places))  # replicates, of their mean
    figure = _figure(3.5, min(WIDTH, 2.4 + 3.2 * len(columns)))
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(grid, columns, strict=True):
        for arm in names:
            points, means = (
                rows[(rows["arm"] == arm) & ((rows[by] == column) if by else True)] for rows in (scored, frame)
            )
            colour = looks[arm].colour
            x = [places[ticks.index(level)] + beside[arm] for level in means[factor]]
            if joined:
                axes.plot(x, 100 * means["mean"], color=colour, linestyle=looks[arm].line, linewidth=1.2)
            axes.plot(x, 100 * means["mean"], "o", color=colour, markersize=6)
            axes.vlines(x, 100 * means["low"], 100 * means["high"], color=colour, linewidth=2.0)
            x = [places[ticks.index(level)] + beside[arm] + aside for level in points[factor]]
            _faint_points(axes, x, points["accuracy"], outcomes.diverged(points), colour, upright=True)
        half = 0.5 if not joined else max(room / 2, 0.04 * np.ptp(places))
        axes.set_xlim(places[0] - half, places[-1] + half)
        texts = [level_name(factor, level) for level in ticks]
        fits = _apart(places, texts, np.ptp(axes.get_xlim()) / (figure.get_figwidth() / len(columns) - 0.6))
        shown = [text if fit or not joined else "" for text, fit in zip(texts, fits, strict=True)]
        turned: Any = {} if joined or all(fits) else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(places, shown, **turned)  # of numbers some may be left out, of names none
        axes.set_xlabel(factor_name(factor) + scale)
        axes.grid(axis="x", visible=False)
        axes.set_title(_level_in_words(by, column) if by else "", loc="left", fontweight="bold")
    grid[0].set_ylabel("test accuracy (%)")
    grid[0].yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    grid[0].set_ylim(_possible(*grid[0].get_ylim()))
    _legend(figure, [(words(arm), looks[arm] if joined else Look(looks[arm].colour)) for arm in names])
    return figure


@drawing()
def _arms_in_rows(
    frame: pd.DataFrame, scored: pd.DataFrame, reference: str, across: Sequence[str], looks: Mapping[Any, Look]
) -> Figure:
    names = _levels(scored, "arm")
    settings = scored[list(across)].drop_duplicates().sort_values(list(across))
    columns = min(4, len(_levels(scored, across[-1])))
    bands = -(-len(settings) // columns)
    figure = _figure(0.3 + bands * (0.7 + 0.2 * len(names)))
    grid = figure.subplots(bands, columns, sharey=True, squeeze=False).ravel()
    for axes in grid[len(settings) :]:
        axes.set_visible(False)
    for i, (axes, setting) in enumerate(zip(grid, settings.itertuples(index=False, name=None), strict=False)):
        points, means = (rows[(rows[list(across)] == list(setting)).all(axis=1)] for rows in (scored, frame))
        axes.vlines(
            100 * means.loc[means["arm"] == reference, "mean"], -0.5, len(names) - 0.5, color=DARK, linestyle="--",
            linewidth=0.8, zorder=1,
        )  # fmt: skip
        for position, arm in enumerate(names):
            colour, own = looks[arm].colour, points[points["arm"] == arm]
            heights = np.full(len(own), position + 0.28)
            _faint_points(axes, heights, own["accuracy"], outcomes.diverged(own), colour, upright=False)
            row = means[means["arm"] == arm]
            axes.hlines(np.full(len(row), position), 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.0)
            axes.plot(100 * row["mean"], np.full(len(row), position), "o", color=colour, markersize=5)
        axes.set_xlim(_possible(*axes.get_xlim()))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.set_title(setting_name(dict(zip(across, setting, strict=True))), loc="left", fontsize=8, fontweight="bold")
        if i + columns >= len(settings):
            axes.set_xlabel("test accuracy (%)")
    grid[0].set_yticks(range(len(names)), [words(arm) for arm in names])
    grid[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _places(values: Sequence[Any]) -> tuple[list[float], bool, str]:
    """Where levels stand on an axis, whether they are numbers that a line may join, and what to add to its name."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) or len(values) < 2:
        return [float(place) for place in range(len(values))], False, ""
    if min(values) > 0 and max(values) / min(values) >= DECADE:
        return [float(np.log10(value)) for value in values], True, " (logarithmic)"
    return [float(value) for value in values], True, ""


def _apart(places: Sequence[float], texts: Sequence[str], inch: float) -> list[bool]:
    """Which texts there is room for, from the left; `inch`: its length in units of the axis."""
    shown, free = [], -np.inf
    for place, text in zip(places, texts, strict=True):
        half = 0.5 * inch * (0.08 * len(text) + 0.06)
        shown.append(place - half >= free)
        free = place + half if shown[-1] else free
    return shown


@drawing()
def arms(
    trials: pd.DataFrame,
    reference: str,
    looks: Mapping[Any, Look],
    selection: str,
    smallest_effects: Mapping[str, float],
) -> Plot:
    """Accuracy of each arm, and beside it the difference to the reference arm; arms in declared order.

    `trials`: rows of a panel in one setting.  `smallest_effects`: arm -> the effect declared to matter, where one is.
    """
    frame = statistics.arm_table(trials, reference, [], selection)
    frame["smallest_effect"] = frame["arm"].map(smallest_effects).astype(float)
    scored = trials.assign(accuracy=statistics.accuracy(trials, selection)).dropna(subset="accuracy")
    replicates = scored.pivot(index="arm", columns="replicate", values="accuracy").reindex(frame["arm"])
    positions, names = np.arange(len(frame)), list(frame["arm"])
    below = positions + 0.22

    figure = _figure(1.0 + (0.42 if len(frame) <= TOGETHER else 0.3) * len(frame))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.15, 1])
    # a line per replicate: where the lines run parallel, pairing pays
    left.plot(100 * replicates.to_numpy(), below, color="#9a9a9a", linewidth=0.6, alpha=0.45, zorder=1)
    for position, row in enumerate(statistics.records(frame)):
        colour = looks[row["arm"]].colour
        points = scored[scored["arm"] == row["arm"]]
        heights = np.full(len(points), below[position])
        _faint_points(left, heights, points["accuracy"], outcomes.diverged(points), colour, upright=False)
        left.hlines(position, 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.2)
        left.plot(100 * row["mean"], position, "o", color=colour, markersize=6)
    left.set_yticks(positions, [words(arm) for arm in names])
    left.set_ylim(len(frame) - 0.5, -0.5)
    left.set_xlim(_possible(*left.get_xlim()))
    left.set_xlabel("test accuracy (%)")
    left.grid(axis="y", visible=False)
    compared = frame.filter(like="against_").rename(columns=lambda name: name.removeprefix("against_"))
    compared = compared.assign(smallest_effect=frame["smallest_effect"])
    _draw_forest(right, compared, [looks[arm].colour for arm in names])
    if reference in names:
        _annotate(right, names.index(reference), "reference")
    right.set_xlabel(f"difference to {words(reference)} (percentage points)")
    caption = (
        f"{rule_sentence(selection, trials)} {_points_sentence(trials)}, joined across arms by thin lines; "
        f"bold: mean with 95 % t interval{_cut_sentence(frame)}; {count_sentence(frame['n'].tolist())} per arm. "
        f"Right: difference to {words(reference)} with 95 % t interval"
        f"{_pairing_sentence(compared)}{_band_sentence(compared)}"
    )
    return Plot(_laid_out(figure), frame, caption)


def of_panel(study: Study, name: str, selection: str, epochs: pd.DataFrame) -> Plots:
    """All figures of a panel that have rows.  `epochs`: from `study.epochs`, with at least the panel's curves.

    Raises ValueError where more factors are crossed than a figure can show.
    """
    panel = study.plan.panels[name]
    across, reference = list(panel.across), panel.reference
    if len(across) > MOST_FACTORS:
        raise ValueError(
            f"Figures show at most {MOST_FACTORS} crossed factors; {name!r} crosses {len(across)}: see its table."
        )
    trials = study.panel(name)
    looks = arm_looks(study)
    rows = trials[["trial", "arm", *across]].merge(epochs.drop(columns="arm"), on="trial")
    plots = Plots()
    for kind, draw in (("curves", learning_curves), ("metrics", metric_curves)):
        wanted = [
            metric
            for metric in panel.curves
            if metric.endswith(("loss", "accuracy")) == (kind == "curves") and not metric.endswith(HISTOGRAM)
        ]
        if not rows["metric"].isin(wanted).any():
            continue
        if len(across) == 2:  # a figure per arm: columns by the first factor, colours by the second
            shades = level_looks(study.levels(across[1]))
            for arm, of_arm in rows.groupby("arm", observed=True):
                plot = draw(of_arm, wanted, across[1], shades, across[0])
                caption = f"Arm: {words(str(arm))}. {plot.caption}"
                plots[f"{kind}-{arm}"] = Plot(plot.figure, plot.drawn.assign(arm=arm), caption)
        elif trials["arm"].nunique() > TOGETHER:
            colour, shades = (across[0], level_looks(study.levels(across[0]))) if across else ("arm", looks)
            plots |= _multiples(rows, wanted, shades, colour, kind)
        elif across and trials["arm"].nunique() == 1:
            plots[kind] = draw(rows, wanted, across[0], level_looks(study.levels(across[0])))
        else:
            plots[kind] = draw(rows, wanted, "arm", looks, across[0] if across else None)
    plots |= _histograms(study, panel, trials)
    if statistics.accuracy(trials, selection).isna().all():
        return plots
    if across:
        plots["levels"] = levels(trials, reference, across, looks, selection)
    else:
        declared = {c.arm: c.smallest_effect for c in study.plan.contrasts if c.against == reference}
        plots["arms"] = arms(trials, reference, looks, selection, declared)
    return plots


def _faint_points(
    axes: Axes, at: ArrayLike, accuracies: pd.Series, failed: pd.Series, colour: Any, upright: bool
) -> None:
    """Replicates, diverged ones as crosses; accuracy runs upwards if `upright`, else to the right."""
    for marker, chosen in (("o", ~failed.to_numpy(bool)), ("x", failed.to_numpy(bool))):
        values, places = 100 * accuracies.to_numpy()[chosen], np.asarray(at)[chosen]
        x, y = (places, values) if upright else (values, places)
        width = 0 if marker == "o" else 1.5
        axes.plot(x, y, marker, color=colour, alpha=FAINT, markersize=4 + width, markeredgewidth=width)


def _points_sentence(trials: pd.DataFrame) -> str:
    return "Faint points: replicates" + " (crosses: diverged)" * bool(outcomes.diverged(trials).any())


def _cut_sentence(frame: pd.DataFrame) -> str:
    outside = (frame["low"] < -0.03) | (frame["high"] > 1.03)
    return ", cut outside 0 to 100 %" if outside.any() else ""
