"""Figures of a search: what it tried, what that was worth, and what more of it would have bought.

A *cell* is one search of the plan: one arm in one setting with one sampler.  Rows are those of `Results.suggestions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import TriAnalyzer, Triangulation
from scipy.spatial import ConvexHull, QhullError

from analysis import search_curves, statistics
from analysis.figures.base import (
    DARK_GREY,
    PAGE_WIDTH,
    Look,
    Plot,
    Plots,
    arm_looks,
    drawing,
    legend_above,
    new_figure,
    whole_ticks,
)
from analysis.figures.search_axes import (
    BELOW_MARK,
    BY_ACCURACY,
    BY_NUMBER,
    EDGE_MARK,
    GREY,
    HOLLOW_MARK,
    PARAMETERS_PER_ROW,
    RING_MARK,
    STAR_MARK,
    TEST_LABEL,
    VALIDATION_LABEL,
    Style,
    accuracy_limits,
    axis_ends,
    axis_ticks,
    best_name,
    draw_complete,
    draw_own_and_best,
    draw_reference_lines,
    draw_tick,
    draw_x_axis,
    folded,
    legend_of_marks,
    padded_ends,
    positions,
    unfinished_sentence,
)
from analysis.results import Results
from analysis.searches import (
    best_suggestion,
    complete_suggestions,
    parameter_names,
    search_name,
    search_title,
    searched_parameters,
    searches_by_setting,
    shown_suggestions,
)
from analysis.words import readable
from lnl.space import Choice
from lnl.storage.plan_record import CellRecord

MOST_SEARCHES_TOGETHER = 6  # searches in one pair of axes; more of them get axes of their own
SURFACE_POINTS = 8  # complete suggestions that an interpolated surface needs at least


@drawing()
def history_figure(rows: pd.DataFrame, cell: CellRecord, look: Look) -> Plot:
    """Validation accuracy of every suggestion by its number, and the best so far."""
    figure = new_figure(3.0, 7.2)
    axes = figure.subplots()
    done, pruned, failed = complete_suggestions(rows), rows[rows["state"] == "pruned"], rows[rows["state"] == "failed"]
    best = done["accuracy"].cummax()
    end = rows["number"].max()
    axes.step(
        [*done["number"], end], 100 * np.append(best, best.iloc[-1:]), where="post", color=look.colour, linewidth=1.6
    )
    entries: list[tuple[str, Style]] = [("best so far", {"color": look.colour, "linewidth": 1.6})]
    entries += draw_complete(axes, done["number"], done, look.colour)
    if len(pruned):
        axes.plot(pruned["number"], 100 * pruned["accuracy"], **HOLLOW_MARK)
        entries.append(("pruned, at its last value", HOLLOW_MARK))
    if len(failed):
        axes.plot(failed["number"], np.full(len(failed), 0.02), transform=axes.get_xaxis_transform(), **EDGE_MARK)
        entries.append(("failed", EDGE_MARK))
    entries += draw_own_and_best(axes, "number", rows, cell, look)
    axes.set_xlabel("suggestion")
    axes.set_ylabel(VALIDATION_LABEL)
    axes.xaxis.set_major_locator(whole_ticks())
    axes.margins(x=0.03)
    legend_of_marks(figure, entries)
    drawn = rows[["number", "state", "accuracy", "test", "diverged"]].assign(best=best)
    drawn["best"] = drawn["best"].ffill()
    caption = "Validation accuracy of each suggestion, the mean of its replicates, in the order of the search."
    return Plot(figure, drawn, caption + unfinished_sentence(cell))


@drawing()
def slices_figure(rows: pd.DataFrame, cell: CellRecord, look: Look) -> Plot:
    """The searched value against accuracy, one column per parameter: validation above, test below."""
    keys = searched_parameters(rows, cell)
    columns = min(PARAMETERS_PER_ROW, len(keys))
    bands = -(-len(keys) // columns)
    figure = new_figure(0.9 + 3.3 * bands, min(PAGE_WIDTH, 3.2 + 2.2 * columns))
    grid = figure.subplots(2 * bands, columns, sharey=False, squeeze=False, height_ratios=[1.15, 1] * bands)
    slices = _Slices(rows, cell, look)
    names, drawn = parameter_names(keys), []
    entries: dict[str, tuple[str, Style]] = {}
    for i, key in enumerate(keys):
        x = slices.positions(key)
        pair = grid[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        for axes, metric in zip(pair, ("accuracy", "test"), strict=True):
            entries |= slices.draw(axes, metric, key, x)
            if i % columns:
                axes.tick_params(labelleft=False)
        pair[0].tick_params(labelbottom=False)
        without = int(x[slices.done.index].isna().sum())
        pair[1].set_xlabel(names[key] + (f"\n(absent in {without} of {len(slices.done)})" if without else ""))
        values = rows["params"].map(lambda params, key=key: params.get(key))
        frame = pd.DataFrame({"parameter": key, "number": rows["number"], "state": rows["state"], "value": values})
        drawn.append(frame.assign(accuracy=rows["accuracy"], test=rows["test"])[x.notna()])
    for axes in grid.T.ravel():
        axes.set_visible(axes.has_data())
    for band in range(bands):
        grid[2 * band, 0].set_ylabel("validation\naccuracy (%)")
        grid[2 * band + 1, 0].set_ylabel("test\naccuracy (%)")
    figure.align_ylabels()
    legend_of_marks(figure, [entries[name] for name in ("o", "v", "edge", "star", "own", "paper") if name in entries])
    bar = figure.colorbar(
        ScalarMappable(slices.colours, BY_NUMBER), ax=grid, shrink=0.6 / bands, aspect=28, anchor=(0, 1), pad=0.015
    )
    bar.set_label("suggestion")
    bar.locator = MaxNLocator(nbins=5, integer=True)
    caption = (
        "The searched value against accuracy, the most important parameter first; above on the validation images that "
        "chose, below on the test images, which did not."
        + " Dashed: the arm's own value." * ("own" in entries)
        + " Dotted: the paper's, where it differs." * ("paper" in entries)
    )
    return Plot(figure, pd.concat(drawn, ignore_index=True), caption + unfinished_sentence(cell))


class _Slices:
    """What the axes of all parameters share: the suggestions, their colours by number, and the limits of accuracy."""

    def __init__(self, rows: pd.DataFrame, cell: CellRecord, look: Look) -> None:
        self.rows, self.cell, self.look = rows, cell, look
        self.done, self.unfinished = complete_suggestions(rows), rows[rows["state"] != "complete"]
        self.best = best_suggestion(rows, cell)
        self.last = max(rows["number"].max(), 1)
        self.colours = Normalize(0, self.last)
        self.limits = {metric: accuracy_limits(self.done[metric].dropna()) for metric in ("accuracy", "test")}

    def positions(self, key: str) -> pd.Series:
        """Return where the suggestions stand; within a choice they stand apart, by number."""
        space = self.cell.space[key]
        x = positions(self.rows, key, space)
        return x + 0.5 * (self.rows["number"] / self.last - 0.5) if isinstance(space, Choice) else x

    def draw(self, axes: Axes, metric: str, key: str, x: pd.Series) -> dict[str, tuple[str, Style]]:
        """Draw one parameter against one metric and return the entries of the legend."""
        low, high = self.limits[metric]
        margin = 4 * (high - low) + 0.4
        below = self.done[metric] < low
        bottom = 100 * low - margin * (2.0 if below.any() else 1.0)
        entries = self._draw_complete(axes, metric, x, below, height_below=bottom + margin / 2)
        edge = self.unfinished[x[self.unfinished.index].notna()]
        if len(edge) and metric == "accuracy":
            transform = axes.get_xaxis_transform()
            axes.plot(x[edge.index], np.full(len(edge), 0.03), transform=transform, zorder=2, **EDGE_MARK)
            entries["edge"] = ("pruned or failed", EDGE_MARK)
        star = self.best[x[self.best.index].notna()]
        if len(star):
            height = 100 * star[metric].clip(lower=low)
            axes.plot(x[star.index], height, color=self.look.colour, zorder=4, **STAR_MARK)
            entries["star"] = (best_name(self.cell), {"color": self.look.colour, **STAR_MARK})
        draw_reference_lines(axes, key, self.cell, entries)
        axes.set_ylim(bottom, 100 * high + margin)
        draw_x_axis(axes, self.cell.space[key])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        return entries

    def _draw_complete(
        self, axes: Axes, metric: str, x: pd.Series, below: pd.Series, height_below: float
    ) -> dict[str, tuple[str, Style]]:
        """Complete suggestions; those below the axis as triangles at its lower end."""
        entries: dict[str, tuple[str, Style]] = {}
        for marker, chosen in (("o", self.done[metric] >= self.limits[metric][0]), ("v", below)):
            rows = self.done[chosen & x[self.done.index].notna()]
            style: Style = {"marker": marker, "s": 26, "edgecolors": "white", "linewidths": 0.5, "zorder": 3}
            style |= {"cmap": BY_NUMBER, "norm": self.colours, "alpha": 1.0 if metric == "accuracy" else 0.75}
            height = 100 * rows[metric] if marker == "o" else pd.Series(height_below, rows.index)
            axes.scatter(x[rows.index], height, c=rows["number"], **style)
            if len(rows):
                entries[marker] = (
                    ("complete", {"marker": "o", "color": BY_NUMBER(0.7), "linestyle": ""})
                    if marker == "o"
                    else ("below the axis", {**BELOW_MARK, "color": BY_NUMBER(0.7)})
                )
        return entries


@drawing()
def contour_figure(rows: pd.DataFrame, cell: CellRecord, look: Look, pair: tuple[str, str]) -> Plot:
    """Validation accuracy over two numeric parameters, interpolated linearly between the suggestions."""
    spaces = [cell.space[key] for key in pair]
    done = complete_suggestions(rows)
    frame = pd.DataFrame({"number": done["number"], "accuracy": done["accuracy"]})
    for axis, key, space in zip("xy", pair, spaces, strict=True):
        frame[axis] = positions(done, key, space)
        frame[key] = done["params"].map(lambda params, key=key: params.get(key))
    frame = frame.dropna(subset=["x", "y"])
    points = frame.groupby(["x", "y"], as_index=False)["accuracy"].mean()  # a triangulation needs each place once
    low, high = accuracy_limits(points["accuracy"])
    colours = Normalize(100 * low, 100 * max(high, low + 1e-3))
    figure = new_figure(3.7, 5.6)
    axes = figure.subplots()
    steps = MaxNLocator(nbins=12).tick_values(100 * low, 100 * high)
    height = 100 * points["accuracy"].clip(lower=low)
    unit = [np.interp(points[axis], axis_ends(space), (0, 1)) for axis, space in zip("xy", spaces, strict=True)]
    triangles = Triangulation(*unit)  # in units of the space: neither axis counts more
    flat = TriAnalyzer(triangles).get_flat_tri_mask(0.02)
    surface = Triangulation(points["x"], points["y"], triangles.triangles, flat)
    axes.tricontourf(surface, height, levels=steps, cmap=BY_ACCURACY, norm=colours, zorder=0.6)
    edge: Style = {"edgecolors": "white", "linewidths": 0.9, "zorder": 3, "s": 40}
    axes.scatter(
        frame["x"], frame["y"], c=100 * frame["accuracy"].clip(lower=low), cmap=BY_ACCURACY, norm=colours, **edge
    )
    entries = []
    for name, numbers, style in (
        (
            "own values",
            frame["number"].isin(rows.loc[rows["own"], "number"]),
            {**RING_MARK, "color": "black", "markeredgewidth": 1.8, "zorder": 4},
        ),
        (
            best_name(cell),
            frame["number"].isin(best_suggestion(rows, cell)["number"]),
            {**STAR_MARK, "color": look.colour, "zorder": 4},
        ),
    ):
        if numbers.any():
            axes.plot(frame.loc[numbers, "x"], frame.loc[numbers, "y"], **style)
            entries.append((name, {**style, "markersize": min(style["markersize"], 12)}))
    draw_x_axis(axes, spaces[0])
    shown_names, (places_of_ticks, texts) = parameter_names(pair), axis_ticks(spaces[1])
    axes.set_yticks(places_of_ticks, texts)
    axes.set_ylim(*padded_ends(spaces[1]))
    axes.set(xlabel=shown_names[pair[0]], ylabel=shown_names[pair[1]])
    legend_of_marks(figure, entries)
    figure.colorbar(ScalarMappable(colours, BY_ACCURACY), ax=axes, label=VALIDATION_LABEL, shrink=0.85, aspect=24)
    caption = (
        f"Validation accuracy over {shown_names[pair[0]]} and {shown_names[pair[1]]}, interpolated linearly between "
        f"the {len(frame)} complete suggestions that have both; the other parameters vary, too."
    )
    return Plot(figure, frame.reset_index(drop=True), caption + unfinished_sentence(cell))


@drawing()
def parallel_figure(rows: pd.DataFrame, cell: CellRecord, look: Look) -> Plot:
    """A line per complete suggestion through its values and its validation accuracy."""
    keys, done = searched_parameters(rows, cell), complete_suggestions(rows).sort_values("accuracy", kind="stable")
    low, high = accuracy_limits(done["accuracy"])
    frame = pd.DataFrame({"number": done["number"], "accuracy": done["accuracy"]})
    heights = np.empty((len(done), len(keys) + 1))
    figure = new_figure(3.4, min(PAGE_WIDTH, 2.2 + 1.35 * len(keys)))
    axes = figure.subplots()
    shown_names = parameter_names(keys)
    for i, key in enumerate(keys):
        space = cell.space[key]
        x = positions(done, key, space)
        heights[:, i] = x if len(set(axis_ends(space))) == 1 else (x - axis_ends(space)[0]) / np.ptp(axis_ends(space))
        frame[key] = done["params"].map(lambda params, key=key: params.get(key))
        for position, text in zip(*axis_ticks(space), strict=True):
            at = (position - axis_ends(space)[0]) / max(np.ptp(axis_ends(space)), 1e-12)
            draw_tick(axes, i, at, text)
        if x.isna().any():
            draw_tick(axes, i, -0.16, "absent")
    heights[np.isnan(heights)] = -0.16
    heights[:, -1] = (done["accuracy"].clip(lower=low) - low) / max(high - low, 1e-9)
    for value in MaxNLocator(nbins=5).tick_values(100 * low, 100 * high):
        if 100 * low <= value <= 100 * high:
            draw_tick(axes, len(keys), (value / 100 - low) / max(high - low, 1e-9), f"{value:g}")
    colours = Normalize(100 * low, 100 * max(high, low + 1e-3))
    across = np.arange(len(keys) + 1)
    segments = [np.column_stack([across, line]) for line in heights]
    lines = LineCollection(segments, cmap=BY_ACCURACY, norm=colours, linewidths=1.1, alpha=0.9, zorder=2)
    lines.set_array(100 * done["accuracy"].clip(lower=low).to_numpy())
    axes.add_collection(lines)
    entries: list[tuple[str, Style]] = []
    own, best = done["own"].to_numpy(bool), done["number"].isin(best_suggestion(rows, cell)["number"]).to_numpy()
    for name, chosen, style in (
        ("own values", own, {"color": DARK_GREY, "linestyle": "--", "linewidth": 1.3, "zorder": 3}),
        (best_name(cell), best, {"color": look.colour, "linewidth": 2.4, "zorder": 4}),
    ):
        if chosen.any():
            axes.plot(across, heights[chosen][0], **style)
            entries.append((name, style))
    axes.vlines(across, -0.02, 1.02, color=DARK_GREY, linewidth=0.9, zorder=1)
    axes.set_xticks(across, [*(folded(shown_names[key]) for key in keys), "validation\naccuracy (%)"])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set(xlim=(-0.1, len(keys) + 0.35), ylim=(-0.2 if (heights < 0).any() else -0.06, 1.06))
    legend_of_marks(figure, entries)
    caption = (
        f"The {len(done)} complete suggestions: one line each through its values, the most important parameter first, "
        "to its validation accuracy, which also colours it, darker where it is higher."
    )
    return Plot(figure, frame.sort_values("number", ignore_index=True), caption + unfinished_sentence(cell))


@drawing()
def importance_figure(cell: CellRecord, look: Look) -> Plot:
    """How much each parameter mattered to validation accuracy."""
    shares = sorted(cell.importance.items(), key=lambda item: -item[1])
    figure = new_figure(0.7 + 0.3 * len(shares), 6.2)
    axes = figure.subplots()
    shown_names = parameter_names([key for key, _ in shares])
    values = [100 * share for _, share in shares]
    axes.barh(range(len(shares)), values, height=0.6, color=look.colour, alpha=0.85)
    for height, value in enumerate(values):
        axes.annotate(f" {value:.0f} %", (value, height), va="center", fontsize=8.5)
    axes.set_yticks(range(len(shares)), [shown_names[key] for key, _ in shares])
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, 1.12 * max(*values, 1))
    axes.set_xlabel("importance (%)")
    axes.grid(axis="y", visible=False)
    caption = (
        "Importance of each parameter for validation accuracy (Optuna's PED-ANOVA, shares of 100 %): how far the good "
        "suggestions' values are from those of all. Of few suggestions it says little."
    )
    return Plot(figure, pd.DataFrame(shares, columns=["parameter", "importance"]), caption)


@drawing()
def pareto_figure(rows: pd.DataFrame, cell: CellRecord, look: Look) -> Plot:
    """Validation accuracy against seconds of training, and the suggestions that none beats in both."""
    done = complete_suggestions(rows).sort_values(["seconds", "accuracy"], ascending=[True, False], kind="stable")
    before = done["accuracy"].cummax().shift(fill_value=-np.inf)
    drawn = done[["number", "accuracy", "test", "seconds", "diverged"]].assign(front=done["accuracy"] > before)
    front = drawn[drawn["front"]]
    figure = new_figure(3.2, 6.4)
    axes = figure.subplots()
    axes.step(front["seconds"], 100 * front["accuracy"], where="post", color=look.colour, linewidth=1.4, zorder=2)
    axes.plot(front["seconds"], 100 * front["accuracy"], "o", color=look.colour, markersize=6, zorder=3)
    behind = drawn[~drawn["front"]]
    axes.plot(
        behind["seconds"], 100 * behind["accuracy"], "o", color=GREY, markersize=4.5, alpha=0.6, markeredgewidth=0
    )
    entries: list[tuple[str, Style]] = [
        ("none is better in both", {"color": look.colour, "marker": "o", "linewidth": 1.4})
    ]
    if len(behind):
        entries.append(("beaten", {"color": GREY, "marker": "o", "linestyle": "", "markersize": 4.5}))
    entries += draw_own_and_best(axes, "seconds", rows, cell, look)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel(VALIDATION_LABEL)
    legend_of_marks(figure, entries)
    caption = (
        "Validation accuracy against seconds of training, means over the replicates of each complete suggestion; "
        "joined: those that no other beats in both."
    )
    return Plot(figure, drawn.sort_values("number", ignore_index=True), caption + unfinished_sentence(cell))


@drawing()
def pruning_figure(rows: pd.DataFrame, cell: CellRecord, look: Look) -> Plot:
    """Validation accuracy after each epoch, as the pruner saw it."""
    figure = new_figure(3.1, 7.2)
    axes = figure.subplots()
    best = set(best_suggestion(rows, cell)["number"])
    styles = {
        "pruned": {"color": GREY, "linewidth": 0.9, "alpha": 0.8},
        "complete": {"color": look.colour, "linewidth": 0.9, "alpha": 0.45},
        "own values": {"color": DARK_GREY, "linewidth": 1.5, "linestyle": "--"},
        best_name(cell): {"color": look.colour, "linewidth": 2.2},
    }
    drawn, present = [], set()
    for row in statistics.records(rows[rows["curve"].map(bool)]):
        epochs = sorted(row["curve"])
        values = [100 * row["curve"][epoch] for epoch in epochs]
        number, kind = row["number"], row["state"]
        if kind == "complete":
            kind = best_name(cell) if number in best else "own values" if row["own"] else kind
        if kind not in styles:  # failed
            continue
        axes.plot(epochs, values, **styles[kind], zorder=2 + list(styles).index(kind))
        if kind == "pruned":
            axes.plot(epochs[-1], values[-1], "o", color=GREY, markersize=3.5)
        present.add(kind)
        drawn.append(pd.DataFrame({"number": number, "state": row["state"], "epoch": epochs, "accuracy": values}))
    axes.set_xlabel("epoch")
    axes.set_ylabel(VALIDATION_LABEL)
    axes.xaxis.set_major_locator(whole_ticks())
    axes.margins(x=0.02)
    legend_of_marks(figure, [(kind, style) for kind, style in reversed(styles.items()) if kind in present])
    frame = pd.concat(drawn, ignore_index=True)
    frame["accuracy"] /= 100
    caption = "Validation accuracy of the suggestions after each epoch; dots: where one was pruned."
    return Plot(figure, frame, caption + unfinished_sentence(cell))


@drawing()
def budget_figure(
    searches: Mapping[str, pd.DataFrame], shown_names: Mapping[str, str], looks: Mapping[str, Look], by: str
) -> Plot:
    """What a budget buys: expected accuracy of the best by validation, and as it was seen; searches of one setting.

    `searches`: name -> `search_curves.best_so_far`.  `by`: suggestions or epochs.
    """
    frame = pd.concat([rows.assign(arm=name) for name, rows in searches.items()], ignore_index=True)
    together = len(searches) <= MOST_SEARCHES_TOGETHER
    expected, seen = ("suggestions", "suggestions") if by == "suggestions" else ("expected_epochs", "epochs")
    if together:
        figure = new_figure(3.4)
        cells = [
            (axes, list(searches), metric) for axes, metric in zip(figure.subplots(1, 2), BUDGET_METRICS, strict=True)
        ]
    else:
        columns = 5
        figure = new_figure(0.7 + 1.35 * -(-len(searches) // columns))
        grid = figure.subplots(-(-len(searches) // columns), columns, sharex=True, sharey=True).ravel()
        cells = [(axes, [name], "test") for axes, name in zip(grid, searches, strict=False)]
        for axes in grid[len(searches) :]:
            axes.set_visible(False)
        for i, axes in enumerate(grid[: len(searches)]):
            axes.set_title(shown_names[list(searches)[i]], loc="left", fontsize=8, fontweight="bold")
            axes.tick_params(labelbottom=i + columns >= len(searches))
    for axes, own, metric in cells:
        for name in searches if not together else []:
            axes.plot(searches[name][expected], 100 * searches[name][metric], color="#d5d5d5", linewidth=0.8, zorder=1)
        for name in own:
            rows, look = searches[name], looks[name]
            low, high = 100 * rows[f"{metric}_low"], 100 * rows[f"{metric}_high"]
            axes.fill_between(rows[expected], low, high, color=look.colour, alpha=0.14, linewidth=0)
            style: Style = {"color": look.colour, "linestyle": look.line if together else "-"}
            axes.plot(rows[expected], 100 * rows[metric], linewidth=1.9, **style)
            axes.step(rows[seen], 100 * rows[f"seen_{metric}"], where="post", linewidth=0.8, alpha=0.75, **style)
            axes.plot(rows[expected].iloc[:1], 100 * rows[metric].iloc[:1], "o", color=look.colour, markersize=4)
        axes.margins(x=0.03)
        axes.xaxis.set_major_locator(whole_ticks(6 if together else 3))
        if together:
            axes.set_xlabel(by if by == "suggestions" else "epochs trained")
            axes.set_ylabel({"validation": VALIDATION_LABEL, "test": TEST_LABEL}[metric])
    if together:
        legend_above(figure, [(shown_names[name], looks[name]) for name in searches])
    else:
        figure.supxlabel(by if by == "suggestions" else "epochs trained", fontsize=9)
        figure.supylabel(TEST_LABEL, fontsize=9)
    caption = (
        "Accuracy of the suggestion that validation chooses, against the number of suggestions; each search begins "
        "with the arm's own values (dot). Bold: expected over all orders in which the other suggestions could have "
        "come (Dodge et al. 2019, without replacement). Band: 95 % bootstrap interval over these suggestions, so of "
        "what the sampler happened to draw; near the full budget it cannot reach above the best one seen. Thin: in the "
        "order in which they came, which is no random one where the sampler learns."
        if by == "suggestions"
        else "The same against the epochs trained by then, of which pruned suggestions take fewer; bold: against their "
        "expected number."
    )
    caption += " Grey: all other searches." * (not together)
    return Plot(figure, frame, caption)


BUDGET_METRICS = ("validation", "test")


def search_figures(study: Results, cell: CellRecord, suggestions: pd.DataFrame) -> Plots:
    """All figures of one search that have rows."""
    rows, look, drawn = shown_suggestions(suggestions, cell), arm_looks(study)[search_name(cell)], Plots()
    done = complete_suggestions(rows)
    if len(done):
        drawn["history"] = history_figure(rows, cell, look)
        if keys := searched_parameters(done, cell):
            drawn["slice"] = slices_figure(rows, cell, look)
            if pair := _surface(done, cell, keys):
                drawn["contour"] = contour_figure(rows, cell, look, pair)
            if len(keys) > 1:
                drawn["parallel"] = parallel_figure(rows, cell, look)
        if len(study.plan.require_search().objectives) > 1:
            drawn["pareto"] = pareto_figure(rows, cell, look)
    if rows["curve"].map(bool).any():
        drawn["curves"] = pruning_figure(rows, cell, look)
    if cell.importance:
        drawn["importance"] = importance_figure(cell, look)
    heading = f"{search_title(cell)}. "
    return Plots({name: Plot(plot.figure, plot.drawn, heading + plot.caption) for name, plot in drawn.items()})


def overview_figures(study: Results, suggestions: pd.DataFrame) -> Plots:
    """What a budget buys in each setting: all searches beside each other; by epochs, too, where some were pruned."""
    looks, drawn = arm_looks(study), Plots()
    for setting, cells in searches_by_setting(study).items():
        searches = {
            search_name(cell): search_curves.best_so_far(shown_suggestions(suggestions, cell)) for cell in cells
        }
        searches = {name: rows for name, rows in searches.items() if rows["seen_test"].notna().any()}
        if not searches:
            continue
        shown_names = {search_name(cell): readable(search_name(cell)) for cell in cells}
        pruned = suggestions["search"].isin([cell.search for cell in cells]) & (suggestions["state"] == "pruned")
        for by in ("suggestions", "epochs") if pruned.any() else ("suggestions",):
            plot = budget_figure(searches, shown_names, looks, by)
            place = f"Setting: {setting}. " if setting != "base" else ""
            key = "-".join(["best", *([by] if by == "epochs" else []), *([setting.replace(" ", "-")] if place else [])])
            drawn[key] = Plot(plot.figure, plot.drawn, place + plot.caption)
    return drawn


def _surface(done: pd.DataFrame, cell: CellRecord, keys: Sequence[str]) -> tuple[str, str] | None:
    """The two most important numeric parameters over which enough suggestions are spread to interpolate."""
    numeric = [key for key in keys if not isinstance(cell.space[key], Choice)]
    for i, first in enumerate(numeric):
        for second in numeric[i + 1 :]:
            at = pd.DataFrame({key: positions(done, key, cell.space[key]) for key in (first, second)}).dropna()
            if len(at) >= SURFACE_POINTS and _has_area(at.to_numpy()):
                return first, second
    return None


def _has_area(points: np.ndarray) -> bool:
    """Return whether (n, 2) points do not all lie on a line."""
    try:
        return bool(
            ConvexHull((points - points.mean(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-12)).volume > 1e-3
        )
    except QhullError:
        return False
