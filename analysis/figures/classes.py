"""Figures of the test set class by class: accuracy, calibration, confusion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from analysis.classes import MOST_CLASSES, TestSet, test_set
from analysis.figures.base import (
    DARK_GREY,
    PAGE_WIDTH,
    Plot,
    Plots,
    arm_looks,
    colour_map,
    drawing,
    new_figure,
)
from analysis.results import Results
from analysis.words import count_sentence, readable

LONGEST_CLASS = 14  # characters of a class's name on an axis
BESIDE_DIAGRAMS, BESIDE_MATRICES = 4, 3  # in a row


def class_figures(study: Results) -> Plots:
    """What was measured on the test set at the last epoch: figures by name, those that show classes for at most 20."""
    measured, plots = test_set(study), Plots()
    if measured is None:
        return plots
    if len(measured.classes) <= MOST_CLASSES:
        plots["accuracy"] = class_accuracy(measured)
    plots["reliability"] = reliability(study, measured)
    if len(measured.classes) <= MOST_CLASSES:
        plots["confusion"] = confusion(measured)
    return plots


@drawing()
def class_accuracy(measured: TestSet) -> Plot:
    """Accuracy of each arm (row) on each class (column), the mean over replicates."""
    frame = measured.accuracy()
    arms, classes = measured.arms, measured.classes
    values = 100 * frame["mean"].to_numpy().reshape(len(arms), len(classes))
    width = min(PAGE_WIDTH, 2.8 + 0.62 * len(classes))
    figure = new_figure(1.3 + 0.3 * len(arms), width)
    axes = figure.subplots()
    low = min(50.0, float(np.nanmin(values)))
    image = axes.imshow(values, cmap=colour_map("Blues"), vmin=low, vmax=100, aspect="auto")
    _name_cells(axes, classes, [_short(readable(arm), 28) for arm in arms], (width - 2.8) / len(classes))
    axes.set_xlabel("class")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            shade = "white" if value > low + 0.55 * (100 - low) else "black"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color=shade)
    figure.colorbar(image, ax=axes, label="accuracy (%)", aspect=6 + len(arms))
    caption = (
        "Accuracy on the test images of each class at the last epoch, base setting; mean over replicates, "
        f"{count_sentence(frame['n'].tolist())}; its rows have 95 % intervals."
    )
    return Plot(_with_room(figure), frame, caption)


@drawing()
def reliability(study: Results, measured: TestSet) -> Plot:
    """Accuracy against confidence in bins of confidence, axes for each arm, all replicates together."""
    looks, table = arm_looks(study), measured.calibration()
    errors = dict(zip(table["arm"], table["error"], strict=True))
    rows, columns = _grid(len(measured.arms), BESIDE_DIAGRAMS)
    figure = new_figure(0.5 + 2.35 * rows, min(PAGE_WIDTH, 0.6 + 2.25 * columns))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    drawn = []
    for axes, arm in zip(grid.flat, measured.arms, strict=False):
        bins = measured.bins(arm)
        share = bins["images"] / bins["images"].sum()
        axes.plot([0, 100], [0, 100], color=DARK_GREY, linewidth=0.8, linestyle="--")
        axes.vlines(100 * bins["confidence"], 100 * bins["confidence"], 100 * bins["accuracy"], color="#bbbbbb")
        axes.scatter(
            *(100 * bins[["confidence", "accuracy"]].to_numpy().T), s=12 + 220 * share, color=looks[arm].colour,
            alpha=0.75, linewidth=0, clip_on=False, zorder=3,
        )  # fmt: skip
        axes.set_title(f"{_short(readable(arm), 20)}: {100 * errors[arm]:.1f} %", loc="left", fontweight="bold")
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        axes.xaxis.set_major_locator(MultipleLocator(25))
        axes.yaxis.set_major_locator(MultipleLocator(25))
        drawn.append(bins)
    _label_outer(grid, len(measured.arms), "confidence (%)", "accuracy (%)")
    caption = (
        "Calibration on the test set at the last epoch, base setting: accuracy of the images of each of 15 equal bins "
        "of confidence (the probability of the predicted class) against their mean confidence, all replicates "
        "together; a dot's area is the bin's share of the images. On the dashed line a method is as often right as it "
        "is sure; below it is too sure. Beside its name: the expected calibration error (Guo et al. 2017), the mean "
        f"distance to the line over images; mean over replicates, {count_sentence(table['n'].tolist())}."
    )
    return Plot(_with_room(figure), pd.concat(drawn, ignore_index=True), caption)


@drawing()
def confusion(measured: TestSet) -> Plot:
    """P(predicted | true) of each arm, all replicates together."""
    rows, columns = _grid(len(measured.arms), BESIDE_MATRICES)
    names, count = [_short(name) for name in measured.classes], len(measured.classes)
    room = 0.07 * max(map(len, names))  # inches of a name
    figure = new_figure(0.5 + room + 2.75 * rows, min(PAGE_WIDTH, 1.2 + room + 2.7 * columns))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    size, drawn = 6.5 if count <= 10 else 5.0, []
    for axes, arm in zip(grid.flat, measured.arms, strict=False):
        share = measured.confusion(arm)
        image = axes.imshow(100 * share, cmap=colour_map("Blues"), norm=PowerNorm(0.5, 0, 100))
        _name_cells(axes, names, names, 2.4 / count)
        axes.set_title(_short(readable(arm), 28), loc="left", fontweight="bold")
        for (i, j), value in np.ndenumerate(share if count <= 12 else np.empty((0, 0))):
            if value >= 0.005:
                shade = "white" if value > 0.35 else "black"
                axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=size, color=shade)
        true, predicted = (index.ravel() for index in np.indices(share.shape))
        frame = {"arm": arm, "true": np.take(measured.classes, true), "predicted": np.take(measured.classes, predicted)}
        drawn.append(pd.DataFrame({**frame, "share": share.ravel()}))
    _label_outer(grid, len(measured.arms), "predicted class", "true class")
    figure.colorbar(
        image, ax=grid, label="share of the true class (%)", shrink=0.85 / rows, ticks=[0, 1, 5, 20, 50, 100]
    )
    counts = measured.rows.groupby("arm", observed=True).size().tolist()
    caption = (
        "Confusion matrix of the test set at the last epoch, base setting: of the images of each true class (row) the "
        "share that is predicted as each class (column), in percent; shades go by its square root, which shows errors; "
        f"mean over replicates, {count_sentence(counts)}."
    )
    return Plot(_with_room(figure), pd.concat(drawn, ignore_index=True), caption)


def _with_room(figure: Figure) -> Figure:
    """Leave room at the sides: names of cells are wider in a picture than the layout takes them for."""
    figure.set_layout_engine("constrained", w_pad=0.12)
    return figure


def _grid(panels: int, beside: int) -> tuple[int, int]:
    """Rows and columns of so many panels, at most so many beside each other."""
    return math.ceil(panels / beside), min(panels, beside)


def _label_outer(grid: np.ndarray, panels: int, below: str, left: str) -> None:
    """Name the axes at the edge of a grid, and hide those without a panel."""
    columns = grid.shape[1]
    for position, axes in enumerate(grid.flat):
        axes.set_visible(position < panels)
        if position % columns == 0:
            axes.set_ylabel(left)
        if position + columns >= panels:
            axes.set_xlabel(below)
            axes.tick_params(labelbottom=True)


def _name_cells(axes: Axes, columns: Sequence[str], rows: Sequence[str], width: float) -> None:
    """Name the columns, which are so many inches wide, and the rows of a matrix."""
    short = [_short(name) for name in columns]
    is_turned = 0.075 * max(map(len, short)) > width
    axes.set_xticks(range(len(short)), short, rotation=90 if is_turned else 0, fontsize=7.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=7.5)
    axes.grid(visible=False)


def _short(name: str, longest: int = LONGEST_CLASS) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
