"""Figures of nights: the means of a cell, with the band in which the nights before expect them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.base import Plot, drawing
from analysis.nights.difference import Difference
from analysis.nights.night import cell_name
from analysis.nights.rule import Cell

MOST_STRIPS = 12  # strips in one figure
MOST_TICKS = 6  # nights that are named below a strip, at most
MOVE_COLOURS = {"down": "#b2182b", "up": "#2166ac", "": "#4d4d4d"}


@drawing()
def night_strips(difference: Difference, cells: Sequence[Cell] | None = None) -> Plot:
    """Small multiples, one for each of these cells (moved ones where none are given): accuracy in % by night.

    Raises ValueError where there is nothing to draw.
    """
    moved = [(row["arm"], row["setting"]) for _, row in difference.moved.iterrows()]
    chosen = list(cells if cells is not None else moved)
    if not chosen:
        raise ValueError("Nothing moved, so there is no strip to draw.")
    left_out = len(chosen) - MOST_STRIPS
    chosen = chosen[:MOST_STRIPS]
    names = list(difference.verdicts)
    frame = pd.DataFrame(
        [
            {"arm": arm, "setting": setting, "night": name, **difference.verdicts[name][arm, setting]._asdict()}
            for arm, setting in chosen
            for name in names
            if (arm, setting) in difference.verdicts[name]
        ]
    ).drop(columns="reference")
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(5.4 * columns, 2.1 * rows + 0.5), layout="constrained")
    places = {name: place for place, name in enumerate(names)}
    for axes, cell in zip(figure.subplots(rows, columns, squeeze=False, sharex=True).flat, chosen, strict=False):
        here = frame[(frame["arm"] == cell[0]) & (frame["setting"] == cell[1])]
        x = here["night"].map(places).to_numpy()
        low, expected, high = 100 * here[["low", "expected", "high"]].to_numpy(float).T
        axes.bar(x, high - low, width=1, bottom=low, color="#d9d9d9", linewidth=0)
        axes.hlines(expected, x - 0.5, x + 0.5, color="#969696", linewidth=0.8)
        axes.plot(x, 100 * here["mean"], color="#4d4d4d", linewidth=0.6)
        for direction, marker in (("", "o"), ("down", "v"), ("up", "^")):
            points = (here["moved"] == direction).to_numpy()
            size = 14 if direction == "" else 34
            axes.scatter(
                x[points], 100 * here["mean"][points], s=size, marker=marker, color=MOVE_COLOURS[direction], zorder=3
            )
        axes.set_title(cell_name(cell), fontsize=9, loc="left")
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        ticks = range(len(names) - 1, -1, -math.ceil(len(names) / MOST_TICKS))  # evenly, with tonight
        axes.set_xticks(ticks, [names[place][5:] for place in ticks], fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
    for place, axes in enumerate(figure.axes):
        axes.set_visible(place < len(chosen))
        axes.tick_params(labelbottom=place + columns >= len(chosen))  # the last one of its column
    figure.supylabel("test accuracy (%)", fontsize=9)
    caption = (
        f"{difference.title}: the mean of each night's replicates, and the band that the quiet nights before "
        "expect it in, for all cells together on 95 % of quiet nights (for tonight alone; a triangle inside moved "
        "together with the night before). Triangles: moved. Points without a band: too few nights before, or "
        "replicates."
    )
    if left_out > 0:
        caption += f" {left_out} more cells that moved are left out."
    return Plot(figure, frame, caption)
