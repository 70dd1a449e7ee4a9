"""Learning curves: metrics by epoch, with the replicates behind their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import measures
from analysis.figures.base import (
    DARK_GREY,
    FAINT_ALPHA,
    PAGE_WIDTH,
    Look,
    Plot,
    Plots,
    drawing,
    legend_above,
    new_figure,
    used_levels,
    whole_ticks,
)
from analysis.words import (
    capitalised,
    count_sentence,
    group_name,
    level_phrase,
    listed,
    metric_in_text,
    metric_name,
    readable,
)

METHODS_LOSS = "train/loss"  # every method's own: those of two are no like quantities
BESIDE = 0.1  # of an epoch, between points of one epoch


def learning_curves(
    rows: pd.DataFrame, metrics: Sequence[str], colour: str, looks: Mapping[Any, Look], column: str | None = None
) -> Plot:
    """Metrics per epoch, one column per level of `column`: replicates faint, the mean of each level of `colour` bold.

    `rows`: replicate, epoch, metric, value, and the categories named by `colour` and `column`.
    """
    return _curves(rows, metrics, colour, looks, column, band=False)


def metric_curves(
    rows: pd.DataFrame, metrics: Sequence[str], colour: str, looks: Mapping[Any, Look], column: str | None = None
) -> Plot:
    """As `learning_curves` for metrics that jump: the replicates as a band from the lowest to the highest."""
    return _curves(rows, metrics, colour, looks, column, band=True)


@drawing()
def _curves(
    rows: pd.DataFrame,
    metrics: Sequence[str],
    colour: str,
    looks: Mapping[Any, Look],
    column: str | None,
    band: bool,
) -> Plot:
    present = [metric for metric in metrics if (rows["metric"] == metric).any()]
    columns = used_levels(rows, column) if column else [None]
    figure, cells = _curve_axes(present, len(columns), stacked=column is not None)
    drawn: list[pd.DataFrame] = []
    for metric, axes_of_metric in zip(present, cells, strict=True):
        of_metric = rows[rows["metric"] == metric]
        axes_of_metric[0].set_ylabel(metric_name(metric))
        for axes, level in zip(axes_of_metric, columns, strict=True):
            here = of_metric[of_metric[column] == level] if column else of_metric
            if metric.endswith("cosine"):
                axes.axhline(0, color=DARK_GREY, linewidth=0.8, zorder=1)
            identity = {"metric": metric, **({column: level} if column else {})}
            drawn += _draw_groups(axes, here, metric, colour, looks, band, identity)
    for axes, level in zip(cells[0] if column else cells[:, 0], columns, strict=False):
        axes.set_title(level_phrase(column, level) if column else "", loc="left", fontweight="bold")
    for axes in cells[-1] if column else cells[:, 0]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(whole_ticks(max(2, min(6, 18 // len(columns)))))
        axes.margins(x=0.5 if rows["epoch"].nunique() == 1 else 0.02)
    figure.align_ylabels()
    frame = pd.concat(drawn, ignore_index=True)
    present_groups = set(frame.loc[frame["mean"].notna(), colour])
    named = [group for group in used_levels(rows, colour) if group in present_groups]
    legend_above(figure, [(group_name(colour, group), looks[group]) for group in named])
    shown = "band: from the lowest to the highest replicate" if band else "faint: replicates"
    caption = (
        f"{capitalised(listed(map(metric_in_text, present)))} after each epoch; {shown}; "
        f"bold: their mean, where all have a value; {count_sentence(frame['n'].tolist())}."
        f"{''.join(_lacking_sentences(rows, metrics, colour))}"
    )
    return Plot(figure, frame, caption)


@drawing()
def _curve_axes(metrics: Sequence[str], columns: int, stacked: bool) -> tuple[Figure, np.ndarray]:
    """Axes by metric, then by column; metrics without columns of their own stand side by side."""
    if stacked:
        figure = new_figure(1.0 + 1.75 * len(metrics))
        return figure, figure.subplots(len(metrics), columns, sharex=True, sharey="row", squeeze=False)
    figure = new_figure(3.1, min(PAGE_WIDTH, 1.4 + 4.1 * len(metrics)))
    return figure, figure.subplots(1, len(metrics), sharex=True, sharey=False, squeeze=False).T


def _draw_groups(
    axes: Axes,
    rows: pd.DataFrame,
    metric: str,
    colour: str,
    looks: Mapping[Any, Look],
    band: bool,
    identity: Mapping[str, Any],
) -> Iterator[pd.DataFrame]:
    """The curves of each level of `colour`; yields the means that are drawn, with the columns of `identity`.

    Points of a single epoch stand side by side.
    """
    groups, alone = used_levels(rows, colour), rows["epoch"].nunique() == 1
    for place, group in enumerate(groups):
        lines, means = by_replicate(rows[rows[colour] == group])
        beside = BESIDE * (place - (len(groups) - 1) / 2) if alone else 0.0
        scale, places = measures.scale(metric), lines.index + beside
        draw_curves(axes, scale * lines.set_axis(places), scale * means.set_axis(places), looks[group], band)
        columns = {"epoch": means.index, "mean": means, "n": lines.shape[1]}
        yield pd.DataFrame({**identity, colour: group, **columns})


def _lacking_sentences(rows: pd.DataFrame, metrics: Sequence[str], colour: str) -> Iterator[str]:
    """Yield which metrics no trial recorded, then which groups lack one."""
    present = set(rows["metric"])
    yield from (f" Not recorded by any trial: {metric_in_text(name)}." for name in metrics if name not in present)
    for metric in metrics:
        of_metric = rows[rows["metric"] == metric].dropna(subset="value")
        without = [group for group in used_levels(rows, colour) if group not in set(of_metric[colour])]
        if metric in present and without:
            yield f" Without {metric_in_text(metric)}: {listed(group_name(colour, group) for group in without)}."


def draw_curves(axes: Axes, lines: pd.DataFrame, means: pd.Series, look: Look, band: bool) -> None:
    """Draw replicates, faint or as a band, and their mean in bold; of one epoch as points, as there is no line."""
    epochs, marker = lines.index.to_numpy(), "o" if len(lines) == 1 else ""
    if band:
        low, high = lines.min(axis=1), lines.max(axis=1)
        axes.fill_between(epochs, low, high, color=look.colour, alpha=0.15, linewidth=0)
        axes.vlines(epochs[:1] if marker else [], low[:1], high[:1], color=look.colour, alpha=FAINT_ALPHA, linewidth=3)
    else:
        faint: Any = {"color": look.colour, "linewidth": 0.7, "alpha": FAINT_ALPHA}
        axes.plot(epochs, lines.to_numpy(), marker=marker, markersize=4, **faint)
    axes.plot(epochs, means, color=look.colour, linestyle=look.line, linewidth=1.9, marker=marker, markersize=6)


@drawing()
def curve_multiples(
    rows: pd.DataFrame, metric: str, looks: Mapping[Any, Look], colour: str = "arm", methods: Mapping[str, str] = {}
) -> Plot:
    """One metric per epoch, axes of its own for each arm: what `learning_curves` is for few arms.

    Coloured by arm, the other arms are grey in each; else a line for each level of `colour`.  `rows`: as there.
    `methods`: arm -> its method, for a metric that is of another kind with another method: only arms of one method
    share their vertical axis then, and are grey behind each other.
    """
    rows = rows[rows["metric"] == metric]
    names = used_levels(rows, "arm")  # that recorded it
    methods = {arm: methods.get(arm, "") for arm in names}
    apart = len(set(methods.values())) > 1
    columns = min(5, len(names))
    bands = -(-len(names) // columns)
    figure = new_figure(0.9 + (1.35 if bands > 1 else 1.7) * bands, min(PAGE_WIDTH, 0.8 + 1.8 * columns))
    grid = figure.subplots(bands, columns, sharex=True, sharey=not apart, squeeze=False).ravel()
    first_of = {methods[arm]: axes for arm, axes in reversed(list(zip(names, grid, strict=False)))}
    drawn: list[pd.DataFrame] = []
    for arm, axes in zip(names, grid, strict=False):
        if apart and first_of[methods[arm]] is not axes:
            axes.sharey(first_of[methods[arm]])
        here = rows[rows["arm"] == arm]
        for group in used_levels(here, colour):
            lines, means = by_replicate(here[here[colour] == group])
            look = looks[group] if colour != "arm" else Look(looks[group].colour)
            draw_curves(axes, lines * measures.scale(metric), means * measures.scale(metric), look, band=True)
            identity = {"metric": metric, "arm": arm, colour: group}
            drawn.append(pd.DataFrame({**identity, "epoch": means.index, "mean": means, "n": lines.shape[1]}))
        axes.set_title(readable(arm), loc="left", fontsize=8, fontweight="bold")
        axes.margins(x=0.03)
    frame = pd.concat(drawn, ignore_index=True)
    for arm, axes in zip(names if colour == "arm" else [], grid, strict=False):
        alike = frame["arm"].map(methods) == methods[arm]
        for _, other in frame[alike & (frame["arm"] != arm)].groupby("arm", observed=True):
            marker = "o" if len(other) == 1 else ""
            means = measures.scale(metric) * other["mean"]
            axes.plot(other["epoch"], means, color="#d5d5d5", linewidth=0.8, marker=marker, markersize=4, zorder=1)
    for i, axes in enumerate(grid):
        axes.set_visible(i < len(names))
        axes.tick_params(labelbottom=i + columns >= len(names))
    grid[0].xaxis.set_major_locator(whole_ticks(3))
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(metric_in_text(metric), fontsize=9)
    if colour != "arm":
        legend_above(figure, [(group_name(colour, group), looks[group]) for group in used_levels(rows, colour)])
    others = "the other arms of the same method" if apart else "all other arms"
    caption = (
        f"{capitalised(metric_in_text(metric))} after each epoch, by arm; "
        "band: from the lowest to the highest replicate; "
        f"bold: their mean, where all have a value; {count_sentence(frame['n'].tolist())}."
        + " Every method has a loss of its own kind, and an axis for it." * apart
        + f" Grey: the means of {others}." * (colour == "arm" and len(first_of) < len(names))
    )
    return Plot(figure, frame, caption)


def by_replicate(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Curves as epochs × replicates, and their mean where every replicate has a value."""
    lines = rows.pivot_table(index="epoch", columns="replicate", values="value", dropna=False)
    return lines, lines.mean(axis=1, skipna=False)


def multiples_by_metric(
    rows: pd.DataFrame,
    metrics: Sequence[str],
    looks: Mapping[Any, Look],
    colour: str,
    kind: str,
    methods: Mapping[str, str] = {},
) -> Plots:
    """Draw a figure for each metric that was recorded.  `methods`: arm -> its method, as each has its own loss."""
    present = [metric for metric in metrics if (rows["metric"] == metric).any()]
    names = {metric: f"{kind}-{metric.rpartition('/')[2]}" for metric in present}
    return Plots(
        {
            names[metric]: curve_multiples(rows, metric, looks, colour, methods if metric == METHODS_LOSS else {})
            for metric in present
        }
    )
