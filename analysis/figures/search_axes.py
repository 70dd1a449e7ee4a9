"""Axes, marks and names that figures of searches share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis import words as words_module
from analysis.figures.base import DARK, Look, colour_map
from analysis.words import factor_name, words
from lnl.space import Choice, Integer, Space
from lnl.storage.plan_record import CellRecord

if TYPE_CHECKING:
    pass

SAMPLERS = {"tpe": "TPE", "random": "random search", "qmc": "QMC", "cmaes": "CMA-ES", "gp": "GP", "nsga2": "NSGA-II"}
Style = dict[str, Any]  # of a matplotlib line
GREY = "#8a8a8a"
VALIDATION, TEST = "validation accuracy (%)", "test accuracy (%)"
COLUMNS = 4  # parameters side by side
STAR: Style = {"marker": "*", "markersize": 15, "markeredgecolor": "white", "markeredgewidth": 0.8, "linestyle": ""}
RING: Style = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.2, "linestyle": ""}
HOLLOW: Style = {"marker": "o", "markersize": 5, "markerfacecolor": "white", "color": GREY, "linestyle": ""}
EDGE: Style = {"marker": "|", "markersize": 8, "color": GREY, "markeredgewidth": 1.2, "linestyle": ""}
BELOW: Style = {"marker": "v", "markersize": 5, "linestyle": "", "markeredgewidth": 0}


def _part_of(name: str, low: float, high: float) -> Colormap:
    """The part of a colour map that can be seen on white."""
    return LinearSegmentedColormap.from_list(f"{name} part", colour_map(name)(np.linspace(low, high, 64)))


BY_NUMBER = _part_of("Blues", 0.3, 1.0)
BY_ACCURACY = _part_of("YlGnBu", 0.1, 0.9)


def name_of(cell: CellRecord) -> str:
    """`robmix_tpe`: the arm and its sampler, also where the arm's own values won."""
    return f"{cell.arm}_{cell.sampler}"


def title(cell: CellRecord) -> str:
    """`robmix tpe, 20 % noise`."""
    return words(name_of(cell)) + (f", {words_module.setting_name(cell.setting)}" if cell.setting else "")


def stem(cell: CellRecord) -> str:
    """What its figures are named by."""
    return name_of(cell) + "".join(f"-{factor}-{level}" for factor, level in cell.setting.items())


def names(parameters: Sequence[str]) -> dict[str, str]:
    """Dotted field -> words: the last part, or all of them where two would be called the same."""
    short = {key: factor_name(key) for key in parameters}
    twice = [name for name in short.values() if list(short.values()).count(name) > 1]
    return {
        key: words(key.removeprefix("method.")).replace(".", " ") if name in twice else name
        for key, name in short.items()
    }


def value_name(value: Any) -> str:
    """Three digits of a number."""
    if isinstance(value, float):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return "none" if value is None else str(value)


def params_name(params: Mapping[str, Any]) -> str:
    """`learning rate 0.01, threshold 0.5`."""
    shown = names(list(params))
    return ", ".join(f"{shown[key]} {value_name(value)}" for key, value in params.items())


def shown(suggestions: pd.DataFrame, cell: CellRecord) -> pd.DataFrame:
    """A cell's suggestions that count, and those that failed on the way."""
    rows = suggestions[suggestions["search"] == cell.search]
    return rows[rows["counts"] | (rows["state"] == "failed")].sort_values("number", ignore_index=True)


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """Those that were trained to their end."""
    return rows[(rows["state"] == "complete") & rows["accuracy"].notna()]


def leader(rows: pd.DataFrame, cell: CellRecord) -> pd.DataFrame:
    """The winner's row, or the best so far where there is none yet; empty where nothing is complete."""
    done = complete(rows)
    if cell.winner:
        return done[done["number"] == cell.winner.number]
    return done.sort_values(["accuracy", "number"], ascending=[False, True]).head(1)


def searched(rows: pd.DataFrame, cell: CellRecord) -> list[str]:
    """Fields that any suggestion has, the most important first."""
    tried = {key for params in rows["params"] for key in params}
    keys = [key for key in cell.space if key in tried]
    return sorted(keys, key=lambda key: -cell.importance.get(key, 0.0))


def place(space: Space, value: Any) -> float:
    """Where a value stands on an axis: its logarithm where the space is logarithmic; of a choice its rank."""
    if isinstance(space, Choice):
        return float([json.dumps(choice) for choice in space.values].index(json.dumps(value)))
    return math.log10(value) if space.log else float(value)


def places(rows: pd.DataFrame, key: str, space: Space) -> pd.Series:
    """Of every suggestion; NaN where it has no value of that field."""
    return rows["params"].map(lambda params: place(space, params[key]) if key in params else np.nan).astype(float)


def ends(space: Space) -> tuple[float, float]:
    """The lowest and the highest place."""
    if isinstance(space, Choice):
        return 0.0, len(space.values) - 1.0
    return place(space, space.low), place(space, space.high)


def ticks(space: Space) -> tuple[list[float], list[str]]:
    """Places and their names."""
    low, high = ends(space)
    if isinstance(space, Choice):
        return list(range(len(space.values))), [value_name(value) for value in space.values]
    if not space.log:
        found = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=isinstance(space, Integer)).tick_values(
            low, high
        )
        values = [float(value) for value in found if low - 1e-9 <= value <= high + 1e-9]
        return values, [f"{value:g}" for value in values]
    for parts in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        decades = range(math.floor(low), math.ceil(high) + 1)
        values = [part * 10.0**decade for decade in decades for part in parts]
        values = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
        if len(values) >= 3:
            break
    values = values[:: 1 + (len(values) - 1) // 5] or [space.low, space.high]
    return [math.log10(value) for value in values], [value_name(value) for value in values]


def floor(values: pd.Series) -> float:
    """The lowest value that is not far below all others: an axis that showed those would show nothing else."""
    first, third = np.quantile(values, [0.25, 0.75])
    near = values[values >= first - 3 * max(third - first, 0.005)]
    return float(near.min())


def _marks(axes: Axes, x: pd.Series, done: pd.DataFrame, colour: Any) -> list[tuple[str, Style]]:
    """Complete suggestions, those with a diverged replicate as crosses."""
    entries = []
    for name, marker, chosen in (("complete", "o", done["diverged"] == 0), ("diverged", "x", done["diverged"] > 0)):
        if chosen.any():
            width = 0 if marker == "o" else 1.5
            style = {"marker": marker, "color": colour, "markersize": 5, "markeredgewidth": width, "linestyle": ""}
            axes.plot(x[chosen], 100 * done.loc[chosen, "accuracy"], alpha=0.55, **style)
            entries.append((name, style))
    return entries


def _default_and_star(axes: Axes, x: str, rows: pd.DataFrame, cell: CellRecord, look: Look) -> list[tuple[str, Style]]:
    """The arm's own values as a ring, the winner as a star."""
    done = complete(rows)
    own, best = done[done["own"].astype(bool)], leader(rows, cell)
    entries = []
    for name, chosen, style in (
        ("own values", own, {**RING, "color": DARK, "zorder": 4}),
        (_star_name(cell), best, {**STAR, "color": look.colour, "zorder": 5}),
    ):
        if len(chosen):
            axes.plot(chosen[x], 100 * chosen["accuracy"], **style)
            entries.append((name, {**style, "markersize": min(style["markersize"], 12)}))
    return entries


def _own_and_paper(axes: Axes, key: str, cell: CellRecord, entries: dict[str, tuple[str, Style]]) -> None:
    """Vertical lines at the arm's own value, and at the paper's where that is another one and in the space."""
    space, own = cell.space[key], cell.default.get(key)
    if key in cell.default:
        style: Style = {"color": DARK, "linestyle": "--", "linewidth": 1.0}
        axes.axvline(place(space, own), zorder=1.5, **style)
        entries["own"] = ("own value", style)
    paper = cell.paper.get(key)
    if key in cell.paper and paper != own and _inside(space, paper):
        style = {"color": DARK, "linestyle": ":", "linewidth": 1.3}
        axes.axvline(place(space, paper), zorder=1.5, **style)
        entries["paper"] = ("the paper's value", style)


def _inside(space: Space, value: Any) -> bool:
    if isinstance(space, Choice):
        return json.dumps(value) in [json.dumps(choice) for choice in space.values]
    return isinstance(value, int | float) and space.low <= value <= space.high


def _limits(values: pd.Series) -> tuple[float, float]:
    return (floor(values), float(values.max())) if len(values) else (0.0, 1.0)


def _with_room(space: Space) -> tuple[float, float]:
    low, high = ends(space)
    room = 0.5 if isinstance(space, Choice) else 0.04 * (high - low)
    return low - room, high + room


def _x_axis(axes: Axes, space: Space) -> None:
    positions, texts = ticks(space)
    long = isinstance(space, Choice) and sum(map(len, texts)) > 24
    turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(positions, texts, **turned)
    axes.set_xlim(*_with_room(space))
    axes.grid(axis="x", visible=not isinstance(space, Choice))


def _tick(axes: Axes, x: float, y: float, text: str) -> None:
    """A value beside its upright axis."""
    axes.plot([x - 0.02, x], [y, y], color=DARK, linewidth=0.8, zorder=1)
    box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6}
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5, zorder=6, bbox=box)


def _folded(name: str) -> str:
    """On two lines where it is long."""
    middle = len(name) // 2
    breaks = [i for i, letter in enumerate(name) if letter == " "]
    if len(name) < 12 or not breaks:
        return name
    at = min(breaks, key=lambda i: abs(i - middle))
    return f"{name[:at]}\n{name[at + 1 :]}"


def _star_name(cell: CellRecord) -> str:
    return "winner" if cell.winner else "best so far"


def _unfinished(cell: CellRecord) -> str:
    return "" if cell.winner else " The search is not finished."


def _legend_of_marks(figure: Figure, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Above the axes."""
    handles = [
        Line2D([], [], **{key: value for key, value in style.items() if key != "zorder"}) for _, style in entries
    ]
    labels = [name for name, _ in entries]
    figure.legend(handles, labels, loc="outside upper left", ncols=len(entries), handlelength=1.6, columnspacing=1.4)
