"""Histograms of what methods believe of given labels, right and wrong ones apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.stats import norm

from analysis.figures.base import (
    DARK_GREY,
    PAGE_WIDTH,
    Look,
    Plot,
    Plots,
    drawing,
    legend_above,
    new_figure,
    panels_width,
    used_levels,
    whole_ticks,
)
from analysis.figures.curves import by_replicate, draw_curves
from analysis.results import Results
from analysis.words import capitalised, count_sentence, group_name, readable
from lnl.storage.plan_record import PanelRecord

QUANTITIES = {  # of one given label, in [0, 1]
    "loss": "normalised loss",
    "clean": "clean probability",
    "coefficient": "data coefficient",
}
WEIGHING = ("ieg", "learning_to_reweight")  # methods whose `clean` is the weight of an example in the loss
HISTOGRAM_SUFFIX = "_histogram"  # end of the name of an array with counts of right and of wrong labels over [0, end]
END_SUFFIX = "_end"  # of one with that end, where it is not 1
MOST_EPOCHS = 5  # epochs side by side
RIGHT_COLOUR, WRONG_COLOUR = "#44AA99", "#882255"  # given labels; Paul Tol's muted teal and wine, which no arm uses
ORACLE_SENTENCE = " An oracle: it needs the true labels, which no method sees."


def quantity_name(quantity: str, methods: Collection[str]) -> str:
    """Name a quantity as these methods mean it: some have no probability that a label is right, but weigh examples."""
    if quantity != "clean" or not (weighing := {*methods} & {*WEIGHING}):
        return QUANTITIES[quantity]
    return "example weight" if weighing == {*methods} else f"{QUANTITIES[quantity]} or example weight"


@drawing()
def label_histograms(arrays: pd.DataFrame, quantity: str, method: str) -> Plot:
    """How right and wrong given labels are spread over a quantity, at some epochs, with the fitted mixture of losses.

    `arrays`: of one trial, from `Results.arrays`.  `quantity`: loss, clean or coefficient.  Where a quantity is far
    from [0, 1], as weights of examples and losses may be, bins end at its largest value, in every epoch at another.
    """
    name = quantity_name(quantity, {method})
    histograms = _histograms(arrays, quantity)
    by_epoch = spread_epochs(histograms.counts)
    figure = new_figure(2.5, panels_width(len(by_epoch)))
    grid = figure.subplots(1, len(by_epoch), squeeze=False)[0]
    drawn = []
    for axes, epoch in zip(grid, by_epoch, strict=True):
        drawn.append(_draw_histogram(axes, histograms, epoch, {"epoch": epoch}))
        axes.set_title(f"epoch {epoch}", loc="left", fontweight="bold")
        axes.set_xlabel(name)
    grid[0].set_ylabel("share of labels (%)")
    table = pd.concat(drawn, ignore_index=True)
    mixed = "mixture" in table
    legend_above(figure, _histogram_legend(table))
    caption = (
        f"{capitalised(name)} of the given labels after some epochs: share of all labels in each of "
        f"{len(by_epoch[min(by_epoch)][0])} bins, right and wrong ones apart; every panel has its own height"
        f"{', and its own width, up to the largest value' * bool(histograms.ends)}."
        + " Black: the mixture fitted to the losses, as normal densities; of several networks their mean." * mixed
        + ORACLE_SENTENCE
    )
    return Plot(figure, table, caption)


@drawing()
def last_histograms(arrays: pd.DataFrame, quantity: str, methods: Mapping[str, str]) -> Plot:
    """What `label_histograms` shows, of many arms: after the last epoch of each, in axes of its own.

    `arrays`: of one trial of each arm.  `methods`: arm -> its method, in the order of the axes.
    """
    name = quantity_name(quantity, set(methods.values()))
    columns = min(5, len(methods))
    bands = -(-len(methods) // columns)
    figure = new_figure(0.9 + 1.35 * bands, min(PAGE_WIDTH, 0.8 + 1.8 * columns))
    grid = figure.subplots(bands, columns, squeeze=False).ravel()
    drawn, has_ends = [], False
    for axes, arm in zip(grid, methods, strict=False):
        histograms = _histograms(arrays[arrays["arm"] == arm], quantity)
        epoch = max(histograms.counts)
        has_ends = has_ends or epoch in histograms.ends
        drawn.append(_draw_histogram(axes, histograms, epoch, {"arm": arm, "epoch": epoch}))
        axes.set_title(readable(arm), loc="left", fontsize=8, fontweight="bold")
    for axes in grid[len(methods) :]:
        axes.set_visible(False)
    figure.supxlabel(name, fontsize=9)
    figure.supylabel("share of labels (%)", fontsize=9)
    table = pd.concat(drawn, ignore_index=True)
    legend_above(figure, _histogram_legend(table))
    caption = (
        f"{capitalised(name)} of the given labels after the last epoch that recorded it, one replicate of each arm: "
        "share of all labels in each bin, right and wrong ones apart; every panel has its own height"
        f"{', and its own width, up to the largest value' * has_ends}."
        + " Black: the mixture fitted to the losses." * ("mixture" in table)
        + ORACLE_SENTENCE
    )
    return Plot(figure, table, caption)


@dataclass(frozen=True)
class _Histograms:
    """What one trial recorded of a quantity, by epoch; epochs in which no label was counted are left out."""

    counts: Mapping[int, np.ndarray]  # (2, B) of right and of wrong labels
    ends: Mapping[int, np.ndarray]  # (1,) where the bins end, if not at 1
    mixtures: Mapping[int, np.ndarray]  # the components fitted to losses, of each network


def _histograms(arrays: pd.DataFrame, quantity: str) -> _Histograms:
    """`arrays`: of one trial, from `Results.arrays`."""
    name = f"oracle/{quantity}{HISTOGRAM_SUFFIX}"
    counts = {epoch: of_epoch for epoch, of_epoch in arrays_by_epoch(arrays, name).items() if of_epoch.sum()}
    mixtures = arrays_by_epoch(arrays, "train/mixture") if quantity == "loss" else {}
    return _Histograms(counts, arrays_by_epoch(arrays, name + END_SUFFIX), mixtures)


def _draw_histogram(axes: Axes, histograms: _Histograms, epoch: int, identity: Mapping[str, str | int]) -> pd.DataFrame:
    """Draw one epoch's right and wrong labels as shares of all, and return them beside the columns of `identity`."""
    right, wrong = histograms.counts[epoch] / histograms.counts[epoch].sum()
    end = float(histograms.ends[epoch][0]) if epoch in histograms.ends else 1
    edges = np.linspace(0, end, len(right) + 1)
    frame = pd.DataFrame({**identity, "low": edges[:-1], "high": edges[1:], "right": right, "wrong": wrong})
    for share, colour in ((right, RIGHT_COLOUR), (wrong, WRONG_COLOUR)):
        if share.any():
            axes.stairs(100 * share, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(100 * share, edges, color=colour, linewidth=1.2)
    if epoch in histograms.mixtures:
        components = _component_shares(histograms.mixtures[epoch], edges)
        frame["mixture"] = components.sum(axis=0)
        centres = (edges[1:] + edges[:-1]) / 2
        axes.plot(centres, 100 * components.T, color=DARK_GREY, linewidth=0.8, linestyle="--")
        axes.plot(centres, 100 * frame["mixture"], color="black", linewidth=1.3)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    return frame


def _histogram_legend(table: pd.DataFrame) -> list[tuple[str, Look]]:
    """What the lines of histograms are; nothing that is not there."""
    shares = (("right", RIGHT_COLOUR), ("wrong", WRONG_COLOUR))
    entries = [(f"{share} given labels", Look(colour)) for share, colour in shares if table[share].any()]
    mixed = "mixture" in table
    return [*entries, *([("mixture", Look("black")), ("its components", Look(DARK_GREY, "--"))] * mixed)]


@drawing()
def label_means(histograms: pd.DataFrame, quantity: str, column: str) -> Plot:
    """Mean of a quantity over right and over wrong given labels, per epoch; axes for each level of `column`.

    `histograms`: method, replicate, epoch, array (2, B) of the quantity, the `end` of its bins, and the category named
    by `column`.
    """
    name = quantity_name(quantity, set(histograms["method"]))
    levels = used_levels(histograms, column)
    figure = new_figure(2.7, min(PAGE_WIDTH, 1.4 + 2.4 * len(levels)))
    grid = figure.subplots(1, len(levels), sharex=True, sharey=True, squeeze=False)[0]
    drawn = []
    for axes, level in zip(grid, levels, strict=True):
        here = histograms[histograms[column] == level]
        for kind, (given, colour) in enumerate((("right", RIGHT_COLOUR), ("wrong", WRONG_COLOUR))):
            values = [
                end * _histogram_mean(counts[kind]) for counts, end in zip(here["array"], here["end"], strict=True)
            ]
            lines, means = by_replicate(here.assign(value=values))
            draw_curves(axes, lines, means, Look(colour), band=True)
            identity = {column: level, "given": given}
            drawn.append(pd.DataFrame({**identity, "epoch": means.index, "mean": means, "n": lines.shape[1]}))
        axes.set_title(group_name(column, level), loc="left", fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(whole_ticks(5))
        axes.margins(x=0.02)
    if (histograms["end"] == 1).any():
        grid[0].set_ylim(-0.02, 1.02)
    grid[0].set_ylabel(f"mean {name}")
    legend_above(figure, [("right given labels", Look(RIGHT_COLOUR)), ("wrong given labels", Look(WRONG_COLOUR))])
    frame = pd.concat(drawn, ignore_index=True)
    caption = (
        f"Mean {name} of right and of wrong given labels after each epoch; band: from the lowest to "
        f"the highest replicate; {count_sentence(frame['n'].tolist())}.{ORACLE_SENTENCE}"
    )
    return Plot(figure, frame, caption)


def _histogram_mean(counts: np.ndarray) -> float:
    """Of (B,) counts over [0, 1], to half a bin; exact for a quantity that is 0 or 1.  NaN where nothing is counted."""
    return float(np.average(np.linspace(0, 1, len(counts)), weights=counts)) if counts.sum() else np.nan


def panel_histograms(study: Results, panel: PanelRecord, trials: pd.DataFrame) -> Plots:
    """What a panel asks for among its curves as oracle/coefficient_histogram: by arm, or by arm and level."""
    names, drawn = [name for name in panel.curves if name.endswith(HISTOGRAM_SUFFIX)], Plots()
    if not names or len(panel.across) > 1:
        return drawn
    arrays = study.arrays(trials["trial"].tolist())[["trial", "replicate", "epoch", "name", "array"]]
    arrays = arrays.merge(trials[["trial", "arm", "method", *panel.across]], on="trial")
    for name in names:
        quantity, rows = name.removeprefix("oracle/").removesuffix(HISTOGRAM_SUFFIX), arrays[arrays["name"] == name]
        ends = arrays[arrays["name"] == name + END_SUFFIX].set_index(["trial", "epoch"])["array"].str[0]
        places = pd.MultiIndex.from_frame(rows[["trial", "epoch"]])
        rows = rows.assign(end=ends.reindex(places).fillna(1.0).to_numpy())
        if not panel.across and len(rows):
            drawn[quantity] = label_means(rows, quantity, "arm")
        for arm in used_levels(rows, "arm") if panel.across else []:
            plot = label_means(rows[rows["arm"] == arm], quantity, panel.across[0])
            caption = f"Arm: {readable(arm)}. {plot.caption}"
            drawn[f"{quantity}-{arm}"] = Plot(plot.figure, plot.drawn.assign(arm=arm), caption)
    return drawn


def has_histograms(arrays: pd.DataFrame, quantity: str) -> bool:
    """Whether one trial's arrays have a histogram of this quantity with at least one label in it."""
    return bool(_histograms(arrays, quantity).counts)


def arrays_by_epoch(arrays: pd.DataFrame, name: str) -> dict[int, np.ndarray]:
    """The arrays of this name of one trial, by epoch."""
    rows = arrays[arrays["name"] == name].sort_values("epoch")
    return dict(zip(rows["epoch"], rows["array"], strict=True))


def spread_epochs(by_epoch: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Choose at most `MOST_EPOCHS` epochs, the first and the last among them."""
    epochs = sorted(by_epoch)
    chosen = np.unique(np.linspace(0, len(epochs) - 1, min(MOST_EPOCHS, len(epochs))).round().astype(int))
    return {epochs[i]: by_epoch[epochs[i]] for i in chosen}


def _component_shares(mixture: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of each component in each bin, the mean over networks: (networks, 2, 3), (B + 1,) -> (2, B)."""
    weight, mean, deviation = (mixture[..., part, None] for part in range(3))
    return (weight * np.diff(norm.cdf(edges, mean, deviation), axis=-1)).mean(axis=0)
