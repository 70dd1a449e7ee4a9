"""The figure of what a study cost: device-hours of each arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.cost import ATTEMPT_KINDS, IDLE, Ledger
from analysis.figures.base import Plot, drawing, new_figure, stacked_bars

KIND_COLOURS = {
    "useful": "#0072B2",
    "failed": "#D55E00",
    "pruned": "#CC79A7",
    "lost": "#E69F00",
    "repeated": "#56B4E9",
    IDLE: "#c4c4c4",
}


@drawing()
def cost_figure(ledger: Ledger) -> Plot:
    """Stacked bars, one per arm, of hours of use and of none; the last is idle time."""
    units, arms = ledger.units(), ledger.arms()
    names = {unit: list(arms.loc[arms["unit"] == unit, "arm"]) for unit in units}
    rows = [
        {"unit": row["unit"], "arm": row["arm"], "kind": kind, "hours": row[kind]}
        for row in statistics.records(arms)
        for kind in ATTEMPT_KINDS
        if row[kind] > 0
    ]
    for unit, hours in ledger.idle.items():
        names[unit].append(IDLE)
        rows.append({"unit": unit, "arm": IDLE, "kind": IDLE, "hours": hours})
    drawn = pd.DataFrame(rows, columns=["unit", "arm", "kind", "hours"])
    counts = [max(1, len(names[unit])) for unit in units]
    figure = new_figure(0.9 * len(units) + 0.26 * sum(counts))
    panels = np.atleast_1d(figure.subplots(len(units), 1, height_ratios=counts))
    for axes, unit in zip(panels, units, strict=True):
        of_unit, at = drawn[drawn["unit"] == unit], {arm: place for place, arm in enumerate(names[unit])}
        widths = {kind: np.zeros(len(at)) for kind in KIND_COLOURS}
        for row in statistics.records(of_unit):
            widths[row["kind"]][at[row["arm"]]] = row["hours"]
        stacked_bars(axes, list(at), widths, KIND_COLOURS)
        axes.set_xlabel(unit)
    bars: dict[str, Any] = {}
    for axes in panels:
        bars |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = [kind for kind in KIND_COLOURS if kind in bars]
    handles = [bars[kind] for kind in shown]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(KIND_COLOURS), columnspacing=1.6)
    caption = (
        "What each arm cost, by what became of its attempts: time from start to end × devices held, searches apart. "
        "Attempts whose times are not known are not drawn."
    )
    return Plot(figure, drawn, caption)
