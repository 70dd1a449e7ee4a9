"""Probabilities of an error, as detectors of wrong labels give them, beside the errors that there are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator

from analysis.figures.base import DARK_GREY, PAGE_WIDTH, Look, Plot, drawing, legend_above, new_figure
from analysis.words import count_sentence, readable

RELIABILITY, FIRST = "oracle/error_reliability", "oracle/error_first"
FEWEST = 20  # labels in a bin, all replicates together: of fewer the share of wrong ones says little


def reliability_frame(arrays: pd.DataFrame) -> pd.DataFrame:
    """Each arm's bins of the probability of an error, all replicates together: arm, labels, expected, found.

    `expected`: the mean probability of the bin's labels; `found`: the share of them that is wrong.
    """
    rows = []
    for arm, group in arrays[arrays["name"] == RELIABILITY].groupby("arm", sort=False, observed=True):
        bins = np.stack(group["array"].tolist()).astype(float)  # (replicates, 3, bins)
        labels, wrong = bins[:, 0].sum(0), bins[:, 1].sum(0)
        total = np.where(bins[:, 0] > 0, bins[:, 0] * bins[:, 2], 0.0).sum(0)
        rows += [
            {"arm": arm, "labels": int(count), "expected": sum_of / count, "found": errors / count}
            for count, errors, sum_of in zip(labels, wrong, total, strict=True)
            if count >= FEWEST
        ]
    return pd.DataFrame(rows, columns=["arm", "labels", "expected", "found"])


def first_frame(arrays: pd.DataFrame) -> pd.DataFrame:
    """The share of wrong ones among each arm's most suspect labels, means over n replicates.

    Columns: arm, first (so many labels), n, expected, found.
    """
    rows = [
        {"arm": row.arm, "first": int(first), "expected": expected / first, "found": found / first}
        for row in arrays[arrays["name"] == FIRST].itertuples()
        for first, expected, found in np.asarray(row.array, dtype=float).T
    ]
    frame = pd.DataFrame(rows, columns=["arm", "first", "expected", "found"])
    groups = frame.groupby(["arm", "first"], sort=False, observed=True)
    return groups.agg(n=("found", "size"), expected=("expected", "mean"), found=("found", "mean")).reset_index()


@drawing()
def error_reliability(arrays: pd.DataFrame, looks: Mapping[str, Look]) -> Plot:
    """Errors found against errors expected: in bins of their probability, and among the most suspect labels.

    `arrays`: of trials in the base setting, from `Results.arrays`.  All replicates together.
    """
    bins, firsts = reliability_frame(arrays), first_frame(arrays)
    arms = list(dict.fromkeys(arrays["arm"]))
    figure = new_figure(3.6, PAGE_WIDTH if len(firsts) else 4.2)
    axes = figure.subplots(1, 2 if len(firsts) else 1, squeeze=False, width_ratios=[1, 1.4] if len(firsts) else None)[0]
    _draw_bins(axes[0], bins, looks)
    if len(firsts):
        _draw_firsts(axes[1], firsts, arms, looks)
    legend_above(figure, [(readable(arm), looks[arm]) for arm in arms])
    counts = arrays[arrays["name"] == RELIABILITY].groupby("arm", observed=True).size().tolist()
    first_sentence = (
        " Right: the same of the most suspect labels, means over replicates; a ring is what was expected, a dot what "
        "was found." * bool(len(firsts))
    )
    caption = (
        "Probabilities of an error in the base setting. Left: the share of labels that are wrong in each of 15 equal "
        f"bins of their probability, all replicates together ({count_sentence(counts)}), without bins of fewer than "
        f"{FEWEST} labels; a dot's area is the bin's share of the labels. On the dashed line as many are wrong as was "
        f"expected, above it more.{first_sentence} True labels of training images are used for this comparison only."
    )
    frame = pd.concat([bins.assign(part="bins"), firsts.assign(part="first")], ignore_index=True)
    return Plot(figure, frame, caption)


def _draw_bins(axes: Axes, bins: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    axes.plot([0, 100], [0, 100], color=DARK_GREY, linewidth=0.8, linestyle="--")
    for arm, rows in bins.groupby("arm", sort=False, observed=True):
        look, share = looks[str(arm)], rows["labels"] / rows["labels"].sum()
        expected, found = 100 * rows["expected"], 100 * rows["found"]
        axes.plot(expected, found, color=look.colour, linestyle=look.line, linewidth=1)
        axes.scatter(expected, found, s=10 + 200 * share, color=look.colour, alpha=0.75, linewidth=0, zorder=3)
    axes.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal")
    axes.set_xlabel("expected: mean probability of an error (%)")
    axes.set_ylabel("found: labels that are wrong (%)")
    axes.xaxis.set_major_locator(MultipleLocator(25))
    axes.yaxis.set_major_locator(MultipleLocator(25))


def _draw_firsts(axes: Axes, firsts: pd.DataFrame, arms: list[str], looks: Mapping[str, Look]) -> None:
    sizes = sorted(firsts["first"].unique())
    for place, arm in enumerate(arms):
        rows = firsts[firsts["arm"] == arm]
        x = rows["first"].map(sizes.index) + 0.7 * ((place + 0.5) / len(arms) - 0.5)
        expected, found, colour = 100 * rows["expected"], 100 * rows["found"], looks[arm].colour
        axes.vlines(x, expected, found, color=colour, linewidth=1.2)
        axes.plot(x, expected, "o", color=colour, markersize=6, markerfacecolor="white")
        axes.plot(x, found, "o", color=colour, markersize=5)
    axes.set_xticks(range(len(sizes)), [f"first {size:,}" for size in sizes])
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_ylim(-2, 102)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("labels that are wrong (%)")
