"""The figure of where the time of trials went: seconds by phase, of each arm."""

from __future__ import annotations

import pandas as pd

from analysis import statistics
from analysis.figures.base import Plot, drawing, new_figure, stacked_bars
from analysis.timings import PHASES, Timings

PHASE_COLOURS = {
    "start": "#c4c4c4",
    "views": "#E69F00",
    "forward": "#0072B2",
    "backward": "#56B4E9",
    "update": "#009E73",
    "meta": "#882255",
    "inference": "#88CCEE",
    "rest": "#CC79A7",
    "evaluation": "#D55E00",
    "checkpoint": "#999933",
    "report": "#661100",
}


@drawing()
def timings_figure(timings: Timings) -> Plot:
    """Stacked bars, one per arm, of the mean seconds of an attempt in each phase; the slowest arm first."""
    arms, shown = timings.arms(), timings.shown()
    rows = [
        {"arm": row["arm"], "phase": name, "seconds": row[name], "n": row["attempts"]}
        for row in statistics.records(arms)
        for name in shown
    ]
    figure = new_figure(1.1 + 0.26 * len(arms))
    axes = figure.subplots()
    stacked_bars(axes, list(arms["arm"]), {name: arms[name].to_numpy() for name in shown}, PHASE_COLOURS)
    axes.set_xlabel("seconds of an attempt, mean")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=6, columnspacing=1.6)
    parts = "; ".join(f"{name}: {PHASES[name]}" for name in shown)
    caption = f"Where the time of an attempt went. {parts[0].upper()}{parts[1:]}."
    return Plot(figure, pd.DataFrame(rows), caption)
