"""Figures of differences: declared contrasts, selection rules, and the forest that others draw beside theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from analysis import measures, statistics
from analysis.figures.base import DARK_GREY, Plot, annotate_right, drawing, new_figure
from analysis.measures import ACCURACY
from analysis.verdicts import OPEN_VERDICTS
from analysis.words import (
    VERDICT_SENTENCE,
    capitalised,
    count_sentence,
    difference_text,
    listed,
    measure_name,
    readable,
)

# Okabe & Ito's, dark enough for text on white; without colour the markers and the words tell
VERDICT_MARKS = {  # word -> colour, marker
    "helps": ("#0060a0", ">"),
    "hurts": ("#b84a00", "<"),
    "equivalent": ("#007a59", "s"),
    "undecided": ("#6b6b6b", "o"),
    "no verdict": ("#6b6b6b", "o"),
}
UNLIKE = 6  # a difference, or the end of its interval, so many times the median one is left outside of the axis
RULE_MARKS = {"last10": ("#0060a0", "D"), "val_selected": ("#007a59", "^"), "best_test": ("#b84a00", "o")}


@drawing()
def contrasts_figure(contrasts: pd.DataFrame) -> Plot:
    """The declared contrasts: verdict, difference, interval, zero line and the effect that matters.

    Each metric has axes of its own.  `contrasts`: from `Results.contrasts`.  Raises ValueError for contrasts under two
    selection rules.
    """
    selection = statistics.shared_rule(contrasts["selection"])
    metrics = list(dict.fromkeys(contrasts["metric"]))
    by_metric = [contrasts[contrasts["metric"] == metric] for metric in metrics]
    figure = new_figure(0.4 + 0.7 * len(metrics) + 0.36 * len(contrasts))
    grid = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=[len(rows) for rows in by_metric])[:, 0]
    for axes, rows, metric in zip(grid, by_metric, metrics, strict=True):
        _contrasts_of_metric(axes, rows, metric)
    for place, heading in ((8, "verdict"), (76, "difference [95 % interval]")):
        annotate_right(grid[0], -0.8, heading, place, color=DARK_GREY)
    is_corrected = contrasts["low_holm"].notna().any()
    corrected = " Thin: the interval after Holm, without zero where a difference is declared." * bool(is_corrected)
    caption = (
        "Declared contrasts, first arm minus second, in the base setting. "
        f"{capitalised(listed(map(measure_name, metrics)))} {statistics.SELECTION_RULES[selection]} (selection rule "
        f"{selection}). "
        f"Bars: 95 % t interval{pairing_sentence(contrasts)}{corrected}{band_sentence(contrasts)}"
        f"{outside_sentence(*by_metric)} {VERDICT_SENTENCE}"
    )
    return Plot(figure, contrasts, caption)


def _contrasts_of_metric(axes: Axes, contrasts: pd.DataFrame, metric: str) -> None:
    """Those contrasts that are judged on one metric, in its own unit."""
    rows = statistics.records(contrasts)
    names = [f"{readable(row['arm'])}  −  {readable(row['against'])}" for row in rows]
    colours, markers = zip(*(VERDICT_MARKS[row["verdict"]] for row in rows), strict=True)
    draw_forest(axes, contrasts, colours, markers, beside=76, metric=metric)
    for position, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        annotate_right(axes, position, row["verdict"], color=colour, fontweight="bold")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    left, right = ("worse", "better") if measures.better(metric) > 0 else ("better", "worse")
    unit = " (percentage points)" * measures.is_share(metric)
    axes.set_xlabel(f"← {left}      difference in {measure_name(metric)}{unit}      {right} →")


@drawing()
def rules_figure(frame: pd.DataFrame) -> Plot:
    """By how much each selection rule is ahead of the last epoch, for each arm.

    `frame`: from `statistics.rule_table`.
    """
    figure = new_figure(1.0 + 0.3 * len(frame))
    axes = figure.subplots()
    axes.axvline(0, color=DARK_GREY, linewidth=0.9, zorder=1)
    height = np.arange(len(frame))
    ahead = {rule: 100 * (frame[rule] - frame["last"]) for rule in RULE_MARKS if frame[rule].notna().any()}
    axes.hlines(height, 0, ahead["best_test"], color="#cfcfcf", linewidth=1.2, zorder=1)
    for rule, values in ahead.items():
        colour, marker = RULE_MARKS[rule]
        inside, name = ("white", "best_test, an oracle") if rule == "best_test" else (colour, rule)
        axes.plot(values, height, marker, color=colour, markersize=6, markerfacecolor=inside, label=name)
    largest = 100 * frame["ahead_of_last_most"]
    axes.plot(largest, height, "|", color=DARK_GREY, markersize=8, label="the oracle's largest lead")
    figure.legend(loc="outside upper left", ncols=4, handletextpad=0.1, columnspacing=1.6)
    axes.set_yticks(height, [readable(arm) for arm in frame["arm"]])
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("test accuracy minus that at the last epoch (percentage points)")
    caption = (
        "What the choice of the epoch changes in the base setting: mean test accuracy under each selection rule minus "
        f"that at the last epoch; {count_sentence(frame['n'].tolist())}. The oracle chooses its epoch by looking at "
        "the test set; the tick is its largest lead in any replicate."
    )
    return Plot(figure, frame, caption)


def draw_forest(
    axes: Axes,
    rows: pd.DataFrame,
    colours: Sequence[Any],
    markers: Sequence[str] = "",
    beside: float = 8,
    metric: str = ACCURACY,
) -> None:
    """Differences and intervals at heights 0, 1, …, their numbers right of the axes; rows without one stay empty.

    `markers`: of the differences, discs where none are given; those of the undecided are hollow.  `metric`: in which
    they differ.
    """
    scale = measures.scale(metric)
    axes.axvline(0, color=DARK_GREY, linewidth=0.9, zorder=1)
    axes.grid(axis="y", visible=False)
    largest = _largest_drawn(rows)
    if largest is not None:
        within = rows.loc[rows["difference"].abs() <= largest, ["low", "high", "difference"]].clip(-largest, largest)
        left, right = (scale * float(end) for end in (np.fmin(0, within.min().min()), np.fmax(0, within.max().max())))
        axes.set_xlim(left - 0.08 * (right - left), right + 0.08 * (right - left))
    for position, (row, colour) in enumerate(zip(statistics.records(rows), colours, strict=True)):
        difference, low, high, half = (scale * row[name] for name in ("difference", "low", "high", "smallest_effect"))
        if np.isnan(difference):
            continue
        if half > 0:
            axes.add_patch(
                Rectangle((-half, position - 0.36), 2 * half, 0.72, color="#e2e2e2", linewidth=0, zorder=0.5)
            )
        holm = (scale * row.get(name, np.nan) for name in ("low_holm", "high_holm"))
        for start, end, width in ((low, high, 2.2), (*holm, 0.8)):
            if not statistics.is_too_wide(start / scale, end / scale, metric):
                axes.hlines(position, start, end, color=colour, linewidth=width)
        inside = "white" if row.get("verdict") in OPEN_VERDICTS else colour
        place = float(np.clip(difference, *axes.get_xlim())) if largest is not None else difference
        mark = markers[position] if markers else "o"
        axes.plot(place, position, mark, color=colour, markersize=6, mfc=inside, clip_on=False)
        count = f"{row['n']:g}, paired" if row["paired"] else f"{row['n']:g} and {row['n_against']:g}, unpaired"
        text = difference_text(row["difference"], row["low"], row["high"], metric)
        annotate_right(axes, position, f"{text}   n = {count}", beside)


def _largest_drawn(compared: pd.DataFrame) -> float | None:
    """Where an axis ends, because one that held the largest difference or interval would show nothing of most others.

    None where it holds all.
    """
    size = compared[["difference", "low", "high"]].abs().max(axis=1)
    end = UNLIKE * float(size.median())
    return end if len(compared) > 2 and 0 < end < size.max() else None


def outside_sentence(*compared: pd.DataFrame) -> str:
    """Tell of what reaches beyond its axis; each frame has axes of its own."""
    outside = any(_largest_drawn(rows) is not None for rows in compared)
    return " What lies far beyond the others stands at the edge; its numbers are beside it." if outside else ""


def pairing_sentence(compared: pd.DataFrame) -> str:
    """Say whether differences are of pairs, as the end of a sentence."""
    paired = compared.loc[compared["difference"].notna(), "paired"].astype(bool)
    if paired.empty:
        return "."
    if paired.all():
        return ", paired by replicate (stored data, noise and split hashes agree)."
    if paired.any():
        return ", paired by replicate where the stored data, noise and split hashes agree, else unpaired (Welch)."
    return ", unpaired (Welch): no replicates whose stored data, noise and split hashes agree."


def band_sentence(compared: pd.DataFrame) -> str:
    """Explain the grey band, where one is drawn."""
    declared = (compared["smallest_effect"] > 0) & compared["difference"].notna()
    return " Grey band: smaller than the smallest effect declared to matter." if declared.any() else ""
