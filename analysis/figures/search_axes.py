"""Axes and marks that the figures of searches share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.base import DARK_GREY, Look, colour_map
from analysis.searches import best_suggestion, complete_suggestions, value_name
from lnl.space import Choice, Integer, Space
from lnl.storage.plan_record import CellRecord

Style = dict[str, Any]  # of a matplotlib line
GREY = "#8a8a8a"
VALIDATION_LABEL, TEST_LABEL = "validation accuracy (%)", "test accuracy (%)"
PARAMETERS_PER_ROW = 4  # parameters side by side
STAR_MARK: Style = {
    "marker": "*",
    "markersize": 15,
    "markeredgecolor": "white",
    "markeredgewidth": 0.8,
    "linestyle": "",
}
RING_MARK: Style = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.2, "linestyle": ""}
HOLLOW_MARK: Style = {"marker": "o", "markersize": 5, "markerfacecolor": "white", "color": GREY, "linestyle": ""}
EDGE_MARK: Style = {"marker": "|", "markersize": 8, "color": GREY, "markeredgewidth": 1.2, "linestyle": ""}
BELOW_MARK: Style = {"marker": "v", "markersize": 5, "linestyle": "", "markeredgewidth": 0}


def _part_of(name: str, low: float, high: float) -> Colormap:
    """Return the part of a colour map that can be seen on white."""
    return LinearSegmentedColormap.from_list(f"{name} part", colour_map(name)(np.linspace(low, high, 64)))


BY_NUMBER = _part_of("Blues", 0.3, 1.0)
BY_ACCURACY = _part_of("YlGnBu", 0.1, 0.9)


def position(space: Space, value: Any) -> float:
    """Where a value stands on an axis: its logarithm where the space is logarithmic; of a choice its rank."""
    if isinstance(space, Choice):
        return float([json.dumps(choice) for choice in space.values].index(json.dumps(value)))
    return math.log10(value) if space.log else float(value)


def positions(rows: pd.DataFrame, key: str, space: Space) -> pd.Series:
    """Return the position of every suggestion; NaN where it has no value of that field."""
    return rows["params"].map(lambda params: position(space, params[key]) if key in params else np.nan).astype(float)


def axis_ends(space: Space) -> tuple[float, float]:
    """Return the lowest and the highest position."""
    if isinstance(space, Choice):
        return 0.0, len(space.values) - 1.0
    return position(space, space.low), position(space, space.high)


def axis_ticks(space: Space) -> tuple[list[float], list[str]]:
    """Return the positions of ticks and their names."""
    low, high = axis_ends(space)
    if isinstance(space, Choice):
        return list(range(len(space.values))), [value_name(value) for value in space.values]
    if not space.log:
        round_values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=isinstance(space, Integer)).tick_values(
            low, high
        )
        values = [float(value) for value in round_values if low - 1e-9 <= value <= high + 1e-9]
        return values, [f"{value:g}" for value in values]
    for parts in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        decades = range(math.floor(low), math.ceil(high) + 1)
        values = [part * 10.0**decade for decade in decades for part in parts]
        values = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
        if len(values) >= 3:
            break
    values = values[:: 1 + (len(values) - 1) // 5] or [space.low, space.high]
    return [math.log10(value) for value in values], [value_name(value) for value in values]


def axis_floor(values: pd.Series) -> float:
    """The lowest value that is not far below all others: an axis that showed those would show nothing else."""
    first, third = np.quantile(values, [0.25, 0.75])
    near = values[values >= first - 3 * max(third - first, 0.005)]
    return float(near.min())


def draw_complete(axes: Axes, x: pd.Series, done: pd.DataFrame, colour: Any) -> list[tuple[str, Style]]:
    """Draw complete suggestions, those with a diverged replicate as crosses."""
    entries = []
    for name, marker, chosen in (("complete", "o", done["diverged"] == 0), ("diverged", "x", done["diverged"] > 0)):
        if chosen.any():
            width = 0 if marker == "o" else 1.5
            style = {"marker": marker, "color": colour, "markersize": 5, "markeredgewidth": width, "linestyle": ""}
            axes.plot(x[chosen], 100 * done.loc[chosen, "accuracy"], alpha=0.55, **style)
            entries.append((name, style))
    return entries


def draw_own_and_best(axes: Axes, x: str, rows: pd.DataFrame, cell: CellRecord, look: Look) -> list[tuple[str, Style]]:
    """Draw the arm's own values as a ring and the winner as a star."""
    done = complete_suggestions(rows)
    own, best = done[done["own"].astype(bool)], best_suggestion(rows, cell)
    entries = []
    for name, chosen, style in (
        ("own values", own, {**RING_MARK, "color": DARK_GREY, "zorder": 4}),
        (best_name(cell), best, {**STAR_MARK, "color": look.colour, "zorder": 5}),
    ):
        if len(chosen):
            axes.plot(chosen[x], 100 * chosen["accuracy"], **style)
            entries.append((name, {**style, "markersize": min(style["markersize"], 12)}))
    return entries


def draw_reference_lines(axes: Axes, key: str, cell: CellRecord, entries: dict[str, tuple[str, Style]]) -> None:
    """Vertical lines at the arm's own value, and at the paper's where that is another one and in the space."""
    space, own = cell.space[key], cell.default.get(key)
    if key in cell.default:
        style: Style = {"color": DARK_GREY, "linestyle": "--", "linewidth": 1.0}
        axes.axvline(position(space, own), zorder=1.5, **style)
        entries["own"] = ("own value", style)
    paper = cell.paper.get(key)
    if key in cell.paper and paper != own and _in_space(space, paper):
        style = {"color": DARK_GREY, "linestyle": ":", "linewidth": 1.3}
        axes.axvline(position(space, paper), zorder=1.5, **style)
        entries["paper"] = ("the paper's value", style)


def _in_space(space: Space, value: Any) -> bool:
    if isinstance(space, Choice):
        return json.dumps(value) in [json.dumps(choice) for choice in space.values]
    return isinstance(value, int | float) and space.low <= value <= space.high


def accuracy_limits(values: pd.Series) -> tuple[float, float]:
    """Return the lowest accuracy that is shown and the highest."""
    return (axis_floor(values), float(values.max())) if len(values) else (0.0, 1.0)


def padded_ends(space: Space) -> tuple[float, float]:
    """Return the ends of an axis, with room beside the outermost values."""
    low, high = axis_ends(space)
    room = 0.5 if isinstance(space, Choice) else 0.04 * (high - low)
    return low - room, high + room


def draw_x_axis(axes: Axes, space: Space) -> None:
    """Set ticks, limits and grid of a parameter on the horizontal axis."""
    positions, texts = axis_ticks(space)
    long = isinstance(space, Choice) and sum(map(len, texts)) > 24
    turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(positions, texts, **turned)
    axes.set_xlim(*padded_ends(space))
    axes.grid(axis="x", visible=not isinstance(space, Choice))


def draw_tick(axes: Axes, x: float, y: float, text: str) -> None:
    """Write a value beside its upright axis."""
    axes.plot([x - 0.02, x], [y, y], color=DARK_GREY, linewidth=0.8, zorder=1)
    box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6}
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5, zorder=6, bbox=box)


def folded(name: str) -> str:
    """Break a long name into two lines."""
    middle = len(name) // 2
    breaks = [i for i, letter in enumerate(name) if letter == " "]
    if len(name) < 12 or not breaks:
        return name
    at = min(breaks, key=lambda i: abs(i - middle))
    return f"{name[:at]}\n{name[at + 1 :]}"


def best_name(cell: CellRecord) -> str:
    """Return what the leading suggestion is called: a winner once its search has ended."""
    return "winner" if cell.winner else "best so far"


def unfinished_sentence(cell: CellRecord) -> str:
    """Return the sentence of a caption that says that a search goes on; empty once it has ended."""
    return "" if cell.winner else " The search is not finished."


def legend_of_marks(figure: Figure, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Draw a legend of marks above the axes."""
    handles = [
        Line2D([], [], **{key: value for key, value in style.items() if key != "zorder"}) for _, style in entries
    ]
    labels = [name for name, _ in entries]
    figure.legend(handles, labels, loc="outside upper left", ncols=len(entries), handlelength=1.6, columnspacing=1.4)
