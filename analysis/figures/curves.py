"""Learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    pass
from analysis.figures.base import DARK, FAINT, WIDTH, Look, Plot, Plots, _figure, _laid_out, _legend, _levels, drawing
from analysis.words import (
    _group_name,
    _level_in_words,
    _listed,
    _one_line,
    _scale,
    count_sentence,
    metric_name,
    sentence,
    words,
)


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
    columns = _levels(rows, column) if column else [None]
    # without columns of their own the metrics stand side by side
    figure = _figure(1.0 + 1.75 * len(present)) if column else _figure(3.1, min(WIDTH, 1.4 + 4.1 * len(present)))
    shape = (len(present), len(columns)) if column else (1, len(present))
    grid = figure.subplots(*shape, sharex=True, sharey="row" if column else False, squeeze=False)
    cells = grid if column else grid.T  # by metric, then by column
    drawn, lacking = [], []
    for metric, axes_of_metric in zip(present, cells, strict=True):
        of_metric = rows[rows["metric"] == metric]
        axes_of_metric[0].set_ylabel(metric_name(metric))
        for axes, level in zip(axes_of_metric, columns, strict=True):
            here = of_metric[of_metric[column] == level] if column else of_metric
            if metric.endswith("cosine"):
                axes.axhline(0, color=DARK, linewidth=0.8, zorder=1)
            for group in _levels(here, colour):
                lines, means = _by_replicate(here[here[colour] == group])
                _draw_curves(axes, lines * _scale(metric), means * _scale(metric), looks[group], band)
                identity = {"metric": metric, **({column: level} if column else {}), colour: group}
                drawn.append(pd.DataFrame({**identity, "epoch": means.index, "mean": means, "n": lines.shape[1]}))
        if without := [g for g in _levels(rows, colour) if g not in set(of_metric.dropna(subset="value")[colour])]:
            lacking.append(f"{_one_line(metric)}: {_listed(_group_name(colour, g) for g in without)}")
    for axes, level in zip(grid[0], columns, strict=False):
        axes.set_title(_level_in_words(column, level) if column else "", loc="left", fontweight="bold")
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=max(2, min(6, 18 // len(columns)))))
        axes.margins(x=0.02)
    figure.align_ylabels()
    _legend(figure, [(_group_name(colour, group), looks[group]) for group in _levels(rows, colour)])
    frame = pd.concat(drawn, ignore_index=True)
    shown = "band: from the lowest to the highest replicate" if band else "faint: replicates"
    caption = (
        f"{sentence(_listed(_one_line(metric) for metric in present))} after each epoch; {shown}; "
        f"bold: their mean, where all have a value; {count_sentence(frame['n'].tolist())}."
    )
    caption += "".join(
        f" Not recorded by any trial: {_one_line(metric)}." for metric in metrics if metric not in present
    )
    caption += "".join(f" Without {text}." for text in lacking)
    return Plot(_laid_out(figure), frame, caption)


def _draw_curves(axes: Axes, lines: pd.DataFrame, means: pd.Series, look: Look, band: bool) -> None:
    epochs = lines.index.to_numpy()
    if band:
        low, high = lines.min(axis=1), lines.max(axis=1)
        axes.fill_between(epochs, low, high, color=look.colour, alpha=0.15, linewidth=0)
    else:
        axes.plot(epochs, lines.to_numpy(), color=look.colour, linewidth=0.7, alpha=FAINT)
    axes.plot(epochs, means, color=look.colour, linestyle=look.line, linewidth=1.9)


@drawing()
def curve_multiples(rows: pd.DataFrame, metric: str, looks: Mapping[Any, Look], colour: str = "arm") -> Plot:
    """One metric per epoch, axes of its own for each arm: what `learning_curves` is for few arms.

    Coloured by arm, all other arms are grey in each; else a line for each level of `colour`.  `rows`: as there.
    """
    columns, names = 5, _levels(rows, "arm")
    bands = -(-len(names) // columns)
    figure = _figure(0.9 + 1.35 * bands)
    grid = figure.subplots(bands, columns, sharex=True, sharey=True, squeeze=False).ravel()
    drawn = []
    for arm, axes in zip(names, grid, strict=False):
        here = rows[(rows["arm"] == arm) & (rows["metric"] == metric)]
        for group in _levels(here, colour):
            lines, means = _by_replicate(here[here[colour] == group])
            look = looks[group] if colour != "arm" else Look(looks[group].colour)
            _draw_curves(axes, lines * _scale(metric), means * _scale(metric), look, band=True)
            identity = {"metric": metric, "arm": arm, colour: group}
            drawn.append(pd.DataFrame({**identity, "epoch": means.index, "mean": means, "n": lines.shape[1]}))
        axes.set_title(words(arm), loc="left", fontsize=8, fontweight="bold")
        axes.margins(x=0.03)
    frame = pd.concat(drawn, ignore_index=True)
    for arm, axes in zip(names if colour == "arm" else [], grid, strict=False):
        for _, other in frame[frame["arm"] != arm].groupby("arm", observed=True):
            axes.plot(other["epoch"], _scale(metric) * other["mean"], color="#d5d5d5", linewidth=0.8, zorder=1)
    for i, axes in enumerate(grid):
        axes.set_visible(i < len(names))
        axes.tick_params(labelbottom=i + columns >= len(names))
    grid[0].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(_one_line(metric), fontsize=9)
    if colour != "arm":
        _legend(figure, [(_group_name(colour, group), looks[group]) for group in _levels(rows, colour)])
    caption = (
        f"{sentence(_one_line(metric))} after each epoch, by arm; band: from the lowest to the highest replicate; "
        f"bold: their mean, where all have a value; {count_sentence(frame['n'].tolist())}."
        + " Grey: the means of all other arms."
        * (colour == "arm")
    )
    return Plot(_laid_out(figure), frame, caption)


def _by_replicate(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Curves as epochs × replicates, and their mean where every replicate has a value."""
    lines = rows.pivot_table(index="epoch", columns="replicate", values="value", dropna=False)
    return lines, lines.mean(axis=1, skipna=False)


def _multiples(rows: pd.DataFrame, metrics: Sequence[str], looks: Mapping[Any, Look], colour: str, kind: str) -> Plots:
    """A figure per metric that was recorded."""
    present = [metric for metric in metrics if (rows["metric"] == metric).any()]
    names = {metric: f"{kind}-{metric.rpartition('/')[2]}" for metric in present}
    return Plots({names[metric]: curve_multiples(rows, metric, looks, colour) for metric in present})
