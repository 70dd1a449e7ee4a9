"""Figures of a panel: accuracy by arm and by level, and its curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from analysis import statistics
from analysis.figures.base import (
    DARK_GREY,
    FAINT_ALPHA,
    MOST_ARMS_TOGETHER,
    PAGE_WIDTH,
    Look,
    Plot,
    Plots,
    annotate_right,
    arm_looks,
    drawing,
    legend_above,
    level_looks,
    new_figure,
    used_levels,
    within_percent,
)
from analysis.figures.contrasts import band_sentence, draw_forest, outside_sentence, pairing_sentence
from analysis.figures.curves import METHODS_LOSS, learning_curves, metric_curves, multiples_by_metric
from analysis.figures.histograms import HISTOGRAM_SUFFIX, panel_histograms
from analysis.results import Results
from analysis.words import count_sentence, factor_name, level_name, level_phrase, readable, rule_sentence, setting_name
from lnl.storage import outcomes
from lnl.storage.plan_record import PanelRecord

MOST_FACTORS = 2  # crossed in one panel: columns, and colours or ticks
LOG_AXIS_RATIO = 10  # levels that are so many times as large as others stand on a logarithmic axis


@drawing()
def levels_figure(
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
    many = scored["arm"].nunique() > MOST_ARMS_TOGETHER
    figure = (
        _arms_in_rows(frame, scored, reference, across, looks) if many else _arms_by_level(frame, scored, across, looks)
    )
    caption = (
        f"{rule_sentence(selection, trials)} {_points_sentence(trials)}; bold: mean with 95 % t interval"
        f"{_cut_sentence(frame)}; {count_sentence(frame['n'].tolist())} per point."
        + f" Dashed: the mean of {readable(reference)}. Every column has its own axis."
        * many
    )
    return Plot(figure, frame, caption)


@drawing()
def _arms_by_level(
    frame: pd.DataFrame, scored: pd.DataFrame, across: Sequence[str], looks: Mapping[Any, Look]
) -> Figure:
    factor, column_factor = across[-1], across[0] if len(across) > 1 else None
    columns = used_levels(scored, column_factor) if column_factor else [None]
    axis = _LevelAxis.of(factor, used_levels(scored, factor), used_levels(scored, "arm"), len(columns))
    figure = new_figure(3.5, min(PAGE_WIDTH, 2.4 + 3.2 * len(columns)))
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(grid, columns, strict=True):
        points, means = (rows[rows[column_factor] == column] if column_factor else rows for rows in (scored, frame))
        for arm in axis.beside:
            _draw_arm(axes, axis, points[points["arm"] == arm], means[means["arm"] == arm], looks[arm], arm)
        axis.label(axes, figure.get_figwidth() / len(columns) - 0.6)
        title = level_phrase(column_factor, column) if column_factor else ""
        axes.set_title(title, loc="left", fontweight="bold")
    grid[0].set_ylabel("test accuracy (%)")
    grid[0].yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    grid[0].set_ylim(within_percent(*grid[0].get_ylim()))
    lines = {arm: looks[arm] if axis.joined else Look(looks[arm].colour) for arm in axis.beside}
    legend_above(figure, [(readable(arm), look) for arm, look in lines.items()])
    return figure


@dataclass(frozen=True)
class _LevelAxis:
    """The horizontal axis of a factor, on which the arms stand beside each other at each level."""

    factor: str
    positions: Mapping[Any, float]  # of its levels, in order
    joined: bool  # whether lines join them: they are numbers
    scale: str  # what the axis' name says of it
    narrowest: float  # distance between two levels
    beside: Mapping[str, float]  # arm -> how far it stands from its level
    points_beside: float  # how far replicates stand from their mean

    @classmethod
    def of(cls, factor: str, levels: Sequence[Any], arms: Sequence[str], columns: int) -> _LevelAxis:
        positions, joined, scale = _level_positions(levels)
        narrowest = min(np.diff(positions), default=1.0)
        spread = narrowest * min(0.15, 0.6 / len(arms))
        beside = {arm: spread * (i - (len(arms) - 1) / 2) for i, arm in enumerate(arms)}
        points_beside = max(spread / 3, 0.012 * columns * np.ptp(positions))
        return cls(factor, dict(zip(levels, positions, strict=True)), joined, scale, narrowest, beside, points_beside)

    def x(self, levels: Iterable[Any], arm: str) -> list[float]:
        """Return where an arm's means stand."""
        return [self.positions[level] + self.beside[arm] for level in levels]

    def label(self, axes: Axes, inches: float) -> None:
        """Ticks at the levels, as far as their names fit; of numbers some may be left out, of names none."""
        places = list(self.positions.values())
        half = max(self.narrowest / 2, 0.04 * np.ptp(places)) if self.joined else 0.5
        axes.set_xlim(places[0] - half, places[-1] + half)
        texts = [level_name(self.factor, level) for level in self.positions]
        fits = _texts_that_fit(places, texts, np.ptp(axes.get_xlim()) / inches)
        shown = [text if fit or not self.joined else "" for text, fit in zip(texts, fits, strict=True)]
        upright = self.joined or all(fits)
        turned: Any = {} if upright else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(places, shown, **turned)
        axes.set_xlabel(factor_name(self.factor) + self.scale)
        axes.grid(axis="x", visible=False)


def _draw_arm(axes: Axes, axis: _LevelAxis, points: pd.DataFrame, means: pd.DataFrame, look: Look, arm: str) -> None:
    """An arm's means with their intervals and, faint beside them, its replicates."""
    x = axis.x(means[axis.factor], arm)
    if axis.joined:
        axes.plot(x, 100 * means["mean"], color=look.colour, linestyle=look.line, linewidth=1.2)
    axes.plot(x, 100 * means["mean"], "o", color=look.colour, markersize=6)
    axes.vlines(x, 100 * means["low"], 100 * means["high"], color=look.colour, linewidth=2.0)
    x = [place + axis.points_beside for place in axis.x(points[axis.factor], arm)]
    _faint_points(axes, x, points["accuracy"], outcomes.diverged(points), look.colour, upright=True)


@drawing()
def _arms_in_rows(
    frame: pd.DataFrame, scored: pd.DataFrame, reference: str, across: Sequence[str], looks: Mapping[Any, Look]
) -> Figure:
    names = used_levels(scored, "arm")
    settings = scored[list(across)].drop_duplicates().sort_values(list(across))
    columns = min(4, len(used_levels(scored, across[-1])))
    bands = -(-len(settings) // columns)
    figure = new_figure(0.3 + bands * (0.7 + 0.2 * len(names)))
    grid = figure.subplots(bands, columns, sharey=True, squeeze=False).ravel()
    for axes in grid[len(settings) :]:
        axes.set_visible(False)
    for i, (axes, setting) in enumerate(zip(grid, settings.itertuples(index=False, name=None), strict=False)):
        points, means = (rows[(rows[list(across)] == list(setting)).all(axis=1)] for rows in (scored, frame))
        axes.vlines(
            100 * means.loc[means["arm"] == reference, "mean"], -0.5, len(names) - 0.5, color=DARK_GREY, linestyle="--",
            linewidth=0.8, zorder=1,
        )  # fmt: skip
        for position, arm in enumerate(names):
            colour, own = looks[arm].colour, points[points["arm"] == arm]
            heights = np.full(len(own), position + 0.28)
            _faint_points(axes, heights, own["accuracy"], outcomes.diverged(own), colour, upright=False)
            row = means[means["arm"] == arm]
            axes.hlines(np.full(len(row), position), 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.0)
            axes.plot(100 * row["mean"], np.full(len(row), position), "o", color=colour, markersize=5)
        axes.set_xlim(within_percent(*axes.get_xlim()))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.set_title(setting_name(dict(zip(across, setting, strict=True))), loc="left", fontsize=8, fontweight="bold")
        if i + columns >= len(settings):
            axes.set_xlabel("test accuracy (%)")
    grid[0].set_yticks(range(len(names)), [readable(arm) for arm in names])
    grid[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _level_positions(values: Sequence[Any]) -> tuple[list[float], bool, str]:
    """Where levels stand on an axis, whether they are numbers that a line may join, and what to add to its name."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) or len(values) < 2:
        return [float(place) for place in range(len(values))], False, ""
    if min(values) > 0 and max(values) / min(values) >= LOG_AXIS_RATIO:
        return [float(np.log10(value)) for value in values], True, " (logarithmic)"
    return [float(value) for value in values], True, ""


def _texts_that_fit(places: Sequence[float], texts: Sequence[str], inch: float) -> list[bool]:
    """Which texts there is room for, from the left; `inch`: its length in units of the axis."""
    shown, free = [], -np.inf
    for place, text in zip(places, texts, strict=True):
        half = 0.5 * inch * (0.08 * len(text) + 0.06)
        shown.append(place - half >= free)
        free = place + half if shown[-1] else free
    return shown


@drawing()
def arms_figure(
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

    figure = new_figure(1.0 + (0.42 if len(frame) <= MOST_ARMS_TOGETHER else 0.3) * len(frame))
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
    left.set_yticks(positions, [readable(arm) for arm in names])
    left.set_ylim(len(frame) - 0.5, -0.5)
    left.set_xlim(within_percent(*left.get_xlim()))
    left.set_xlabel("test accuracy (%)")
    left.grid(axis="y", visible=False)
    compared = frame.filter(like="against_").rename(columns=lambda name: name.removeprefix("against_"))
    compared = compared.assign(smallest_effect=frame["smallest_effect"])
    draw_forest(right, compared, [looks[arm].colour for arm in names])
    if reference in names:
        annotate_right(right, names.index(reference), "reference")
    right.set_xlabel(f"difference to {readable(reference)} (percentage points)")
    caption = (
        f"{rule_sentence(selection, trials)} {_points_sentence(trials)}, joined across arms by thin lines; "
        f"bold: mean with 95 % t interval{_cut_sentence(frame)}; {count_sentence(frame['n'].tolist())} per arm. "
        f"Right: difference to {readable(reference)} with 95 % t interval"
        f"{pairing_sentence(compared)}{band_sentence(compared)}{outside_sentence(compared)}"
    )
    return Plot(figure, frame, caption)


def panel_figures(study: Results, name: str, selection: str, epochs: pd.DataFrame) -> Plots:
    """All figures of a panel that have rows.  `epochs`: from `Results.epochs`, with at least the panel's curves.

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
    plots = _panel_curves(study, panel, trials, epochs)
    plots |= panel_histograms(study, panel, trials)
    if statistics.accuracy(trials, selection).isna().all():
        return plots
    if across:
        plots["levels"] = levels_figure(trials, reference, across, looks, selection)
    else:
        declared = {c.arm: c.smallest_effect for c in study.plan.contrasts if c.against == reference}
        plots["arms"] = arms_figure(trials, reference, looks, selection, declared)
    return plots


def _panel_curves(study: Results, panel: PanelRecord, trials: pd.DataFrame, epochs: pd.DataFrame) -> Plots:
    """What a panel draws over the epochs; `trials`: its own, `epochs`: of `panel_figures`."""
    across, looks, plots = list(panel.across), arm_looks(study), Plots()
    rows = trials[["trial", "arm", *across]].merge(epochs.drop(columns="arm"), on="trial")
    methods = dict(zip(trials["arm"], trials["method"], strict=True))
    colour, shades = (across[0], level_looks(study.levels(across[0]))) if across else ("arm", looks)
    curves = [metric for metric in panel.curves if not metric.endswith(HISTOGRAM_SUFFIX)]
    if len(across) < MOST_FACTORS and len(set(methods.values())) > 1 and METHODS_LOSS in curves:
        curves.remove(METHODS_LOSS)
        plots |= multiples_by_metric(rows, [METHODS_LOSS], shades, colour, "curves", methods)
    for kind, draw in (("curves", learning_curves), ("metrics", metric_curves)):
        metrics = [metric for metric in curves if _is_smooth(metric) == (kind == "curves")]
        if not rows["metric"].isin(metrics).any():
            continue
        if len(across) == 2:  # a figure per arm: columns by the first factor, colours by the second
            shades = level_looks(study.levels(across[1]))
            for arm, of_arm in rows.groupby("arm", observed=True):
                plot = draw(of_arm, metrics, across[1], shades, across[0])
                caption = f"Arm: {readable(str(arm))}. {plot.caption}"
                plots[f"{kind}-{arm}"] = Plot(plot.figure, plot.drawn.assign(arm=arm), caption)
        elif trials["arm"].nunique() > MOST_ARMS_TOGETHER:
            plots |= multiples_by_metric(rows, metrics, shades, colour, kind)
        elif across and trials["arm"].nunique() == 1:
            plots[kind] = draw(rows, metrics, colour, shades)
        else:
            plots[kind] = draw(rows, metrics, "arm", looks, across[0] if across else None)
    return plots


def _is_smooth(metric: str) -> bool:
    """Whether a metric's replicates can be told apart as lines: losses and accuracies."""
    name = metric.rpartition("/")[2]
    return name.startswith("loss") or name.endswith(("loss", "accuracy"))


def _faint_points(
    axes: Axes, at: ArrayLike, accuracies: pd.Series, failed: pd.Series, colour: Any, upright: bool
) -> None:
    """Replicates, diverged ones as crosses; accuracy runs upwards if `upright`, else to the right."""
    for marker, chosen in (("o", ~failed.to_numpy(bool)), ("x", failed.to_numpy(bool))):
        values, places = 100 * accuracies.to_numpy()[chosen], np.asarray(at)[chosen]
        x, y = (places, values) if upright else (values, places)
        width = 0 if marker == "o" else 1.5
        axes.plot(x, y, marker, color=colour, alpha=FAINT_ALPHA, markersize=4 + width, markeredgewidth=width)


def _points_sentence(trials: pd.DataFrame) -> str:
    return "Faint points: replicates" + " (crosses: diverged)" * bool(outcomes.diverged(trials).any())


def _cut_sentence(frame: pd.DataFrame) -> str:
    outside = (frame["low"] < -0.03) | (frame["high"] > 1.03)
    return ", cut outside 0 to 100 %" if outside.any() else ""
