"""Figures: one function per kind, from rows to a `Plot`: the figure, the frame that it draws, and its caption.

Replicates are faint, means are bold, bars are 95 % t intervals; an arm has one colour in every figure of its study.
Frames hold fractions; the axes show percent.  No pyplot, no global state.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.linalg import orthogonal_procrustes
from scipy.stats import norm

from analysis import statistics
from analysis.evidence import OPEN
from analysis.load import in_base, in_words
from lnl.results import short_hash

if TYPE_CHECKING:
    from analysis.load import Study

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "text.parse_math": False,  # names are text: a dollar sign is one
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}
OWN_TO_MATPLOTLIB = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch")  # no look
MOST_FACTORS = 2  # crossed in one panel: columns, and colours or ticks
TOGETHER = 7  # arms in one pair of axes, each with a colour of its own; of more of them each has a row, or its own axes
DECADE = 10  # levels that are so many times as large as others stand on a logarithmic axis
LONGEST = 60  # characters of a name in figures and texts
WIDTH = 9.6  # inches; the report shows them at about 100 px each
# Okabe & Ito (2008), without yellow, which is too light for lines; the base arm is black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":")  # after six arms the colours come again with another line
NAMED = (  # levels that are names, such as kinds of noise; Paul Tol's muted scheme without the two of right and wrong
    *("#332288", "#88CCEE", "#117733", "#DDCC77", "#AA4499", "#999933", "#661100", "#CC6677"),
)
FAINT = 0.28
DARK = "#444444"
FACTORS = {
    "labels": "labelled images",
    "noise.rate": "noise rate",
    "unlabelled_ratio": "labelled : unlabelled",
}
METRICS = {
    "train/loss": "training loss",
    "test/accuracy": "test accuracy (%)",
    "train/gradient_norm_contrastive": "gradient norm of\nthe contrastive loss",
    "train/gradient_norm_mixmatch": "gradient norm of\nthe MixMatch loss",
    "train/gradient_cosine": "cosine of\nthe two gradients",
    "oracle/selection_auc": "AUC of the\nclean probability",
    "oracle/selection_precision": "precision of the\nclean selection (%)",
    "oracle/selection_recall": "recall of the\nclean selection (%)",
    "oracle/refined_accuracy": "accuracy of\nrefined labels (%)",
    "oracle/pseudo_label_accuracy": "accuracy of\npseudo-labels (%)",
    "oracle/memorised": "memorised\nwrong labels (%)",
}
PERCENT = ("accuracy", "precision", "recall", "memorised")  # ends of metrics that are shares
ORACLES = {  # figure -> its metrics, which need the true labels of training images
    "selection": ("oracle/selection_auc", "oracle/selection_precision", "oracle/selection_recall"),
    "labels": ("oracle/refined_accuracy", "oracle/pseudo_label_accuracy", "oracle/memorised"),
}
QUANTITIES = {  # of one given label, in [0, 1]
    "loss": "normalised loss",
    "clean": "clean probability",
    "coefficient": "data coefficient",
}
HISTOGRAM = "_histogram"  # end of the name of an array with counts of right and of wrong labels
MOMENTS = 5  # epochs side by side
# Okabe & Ito's, dark enough for text on white; without colour the markers and the words tell
VERDICTS = {  # word -> colour, marker
    "helps": ("#0060a0", ">"),
    "hurts": ("#b84a00", "<"),
    "equivalent": ("#007a59", "s"),
    "undecided": ("#6b6b6b", "o"),
    "no verdict": ("#6b6b6b", "o"),
}
VERDICT_SENTENCE = (
    "Helps or hurts: other than zero (t test, p ≤ 0.05 after Holm over all declared contrasts). Equivalent: within the "
    "smallest effect that matters (two one-sided t tests, likewise). Undecided: neither."
)
RULES = {"last10": ("#0060a0", "D"), "val_selected": ("#007a59", "^"), "best_test": ("#b84a00", "o")}
RIGHT, WRONG = "#44AA99", "#882255"  # given labels; Paul Tol's muted teal and wine, which no arm uses
MARKERS = ("o", "^", "s", "D")  # after six classes the colours come again with another marker
MOST_CLASSES = 20  # with a colour of their own


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Within it, or in a function that it decorates, figures look as here, whatever the user's matplotlibrc says.

    A sign that no font has, such as one of Chinese, is drawn as a box, without a word.
    """
    plain = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in OWN_TO_MATPLOTLIB}
    with matplotlib.rc_context({**plain, **STYLE}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def colour_map(name: str) -> Colormap:
    """In 256 colours, whatever the user's matplotlibrc says."""
    return matplotlib.colormaps[name].resampled(256)


@dataclass(frozen=True)
class Plot:
    """A figure, the frame it was drawn from, and what a reader must know."""

    figure: Figure
    drawn: pd.DataFrame
    caption: str

    def png(self) -> bytes:
        return self._rendered("png", {"Software": None})

    def pdf(self) -> bytes:
        return self._rendered("pdf", {"CreationDate": None, "Producer": None, "Creator": None})

    def _rendered(self, kind: str, metadata: Mapping[str, None]) -> bytes:
        """The same rows give the same bytes: no date, no version."""
        file = io.BytesIO()
        with drawing():
            self.figure.savefig(file, format=kind, dpi=200, metadata=dict(metadata))
        return file.getvalue()

    def _repr_html_(self) -> str:
        """As wide as in the report, 100 px an inch."""
        image, width = base64.b64encode(self.png()).decode(), round(100 * self.figure.get_figwidth())
        style = f"width:{width}px;max-width:100%"
        return f'<img style="{style}" src="data:image/png;base64,{image}"><p>{html.escape(self.caption)}</p>'


class Plots(dict[str, Plot]):
    """Figures by name; a notebook shows them below each other."""

    def _repr_html_(self) -> str:
        return "".join(plot._repr_html_() for plot in self.values())


@dataclass(frozen=True)
class Look:
    """How one arm or level is drawn."""

    colour: Any
    line: Any = "-"


# ------------------------------------------------------------------------------------------------------------ words


def words(name: str) -> str:
    """`frozen_head` -> `frozen head`; a long name is its beginning and a hash of all of it."""
    text = " ".join(name.replace("_", " ").split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 10]}… {short_hash(name)[:8]}"


def factor_name(factor: str) -> str:
    """As it stands on an axis or in a caption."""
    return FACTORS.get(factor, words(factor.rpartition(".")[2]))


def level_name(factor: str, level: Any) -> str:
    """With its unit: 0.4 of the noise rate is 40 %."""
    if factor == "unlabelled_ratio" and isinstance(level, int | float):
        return f"1 : {level:g}"
    if factor == "noise.rate" and isinstance(level, int | float):
        return f"{100 * level:g} %"
    if isinstance(level, Mapping):  # settings with fields of their own, such as noise
        return in_words(level)
    return f"{level:g}" if isinstance(level, float) else str(level)


def setting_name(setting: Mapping[str, Any]) -> str:
    """`{"labels": 40, "noise.rate": 0.1}` -> `40 labels, 10 % noise`."""
    return ", ".join(_level_in_words(factor, level) for factor, level in setting.items()) or "base"


def _level_in_words(factor: str, level: Any) -> str:
    if factor == "noise":
        return level_name(factor, level)
    if factor in ("labels", "probe"):
        return f"{level} {'labels' if factor == 'labels' else 'trusted images'}"
    if factor == "noise.rate":
        return f"{level_name(factor, level)} noise"
    if factor == "unlabelled_ratio" and isinstance(level, str):
        return f"{level} unlabelled images"
    return f"{factor_name(factor)} {level_name(factor, level)}"


def metric_name(metric: str) -> str:
    """As it stands on an axis: test/accuracy is test accuracy (%)."""
    split, _, name = metric.partition("/")
    shown = {"train": "training"}.get(split, split)
    return METRICS.get(metric, f"{shown} {words(name)}" + " (%)" * metric.endswith(PERCENT))


def _scale(metric: str) -> float:
    return 100.0 if metric.endswith(PERCENT) else 1.0


def rule_sentence(selection: str, trials: pd.DataFrame) -> str:
    """The selection rule in words, and what was done with trials that diverged or have no value."""
    text = f"Test accuracy {statistics.SELECTION[selection]} (selection rule {selection})."
    if selection == "val_selected":
        kinds = sorted(trials["validation_labels"].dropna().unique())
        text = text.replace("validation accuracy", f"accuracy on {' or '.join(kinds) or 'absent'} validation labels")
    if failures := int(statistics.at_chance(trials).sum()):
        text += f" {failures} diverged {plural('trial', failures)} counted as chance."
    unknown = int(statistics.diverged(trials).sum()) - failures
    if absent := int(statistics.accuracy(trials, selection).isna().sum()) - unknown:
        text += f" {absent} {plural('trial', absent)} without a value under this rule left out."
    if unknown:
        text += f" {unknown} diverged {plural('trial', unknown)} left out: nothing tells how many classes there are."
    return text


def count_sentence(counts: Sequence[int]) -> str:
    """How many replicates stand behind each point."""
    low, high = min(counts), max(counts)
    return f"n = {low} {plural('replicate', low)}" if low == high else f"n = {low} to {high} replicates"


def plural(noun: str, count: int) -> str:
    """The noun as it follows the count."""
    return noun if count == 1 else noun + "s"


# ---------------------------------------------------------------------------------------------------- kinds of figure


def learning_curves(
    rows: pd.DataFrame, metrics: Sequence[str], colour: str, looks: Mapping[Any, Look], column: str | None = None
) -> Plot:
    """Metrics per epoch, one column per level of `column`: replicates faint, the mean of each level of `colour` bold.

    `rows`: replicate, epoch, metric, value, and the categories named by `colour` and `column`.
    """
    return _curves(rows, metrics, colour, looks, column, band=False)


def metric_curves(
    rows: pd.DataFrame, metrics: Sequence[str], colour: str, looks: Mapping[Any, Look], column: str | None = None
) -> Plot:
    """As `learning_curves` for metrics that jump: the replicates as a band from the lowest to the highest."""
    return _curves(rows, metrics, colour, looks, column, band=True)


@drawing()
def _curves(
    rows: pd.DataFrame,
    metrics: Sequence[str],
    colour: str,
    looks: Mapping[Any, Look],
    column: str | None,
    band: bool,
) -> Plot:
    present = [metric for metric in metrics if (rows["metric"] == metric).any()]
    columns = _levels(rows, column) if column else [None]
    # without columns of their own the metrics stand side by side
    figure = _figure(1.0 + 1.75 * len(present)) if column else _figure(3.1, min(WIDTH, 1.4 + 4.1 * len(present)))
    shape = (len(present), len(columns)) if column else (1, len(present))
    grid = figure.subplots(*shape, sharex=True, sharey="row" if column else False, squeeze=False)
    cells = grid if column else grid.T  # by metric, then by column
    drawn, lacking = [], []
    for metric, axes_of_metric in zip(present, cells, strict=True):
        of_metric = rows[rows["metric"] == metric]
        axes_of_metric[0].set_ylabel(metric_name(metric))
        for axes, level in zip(axes_of_metric, columns, strict=True):
            here = of_metric[of_metric[column] == level] if column else of_metric
            if metric.endswith("cosine"):
                axes.axhline(0, color=DARK, linewidth=0.8, zorder=1)
            for group in _levels(here, colour):
                lines, means = _by_replicate(here[here[colour] == group])
                _draw_curves(axes, lines * _scale(metric), means * _scale(metric), looks[group], band)
                identity = {"metric": metric, **({column: level} if column else {}), colour: group}
                drawn.append(pd.DataFrame({**identity, "epoch": means.index, "mean": means, "n": lines.shape[1]}))
        if without := [g for g in _levels(rows, colour) if g not in set(of_metric.dropna(subset="value")[colour])]:
            lacking.append(f"{_one_line(metric)}: {_listed(_group_name(colour, g) for g in without)}")
    for axes, level in zip(grid[0], columns, strict=False):
        axes.set_title(_level_in_words(column, level) if column else "", loc="left", fontweight="bold")
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=max(2, min(6, 18 // len(columns)))))
        axes.margins(x=0.02)
    figure.align_ylabels()
    _legend(figure, [(_group_name(colour, group), looks[group]) for group in _levels(rows, colour)])
    frame = pd.concat(drawn, ignore_index=True)
    shown = "band: from the lowest to the highest replicate" if band else "faint: replicates"
    caption = (
        f"{sentence(_listed(_one_line(metric) for metric in present))} after each epoch; {shown}; "
        f"bold: their mean, where all have a value; {count_sentence(frame['n'].tolist())}."
    )
    caption += "".join(
        f" Not recorded by any trial: {_one_line(metric)}." for metric in metrics if metric not in present
    )
    caption += "".join(f" Without {text}." for text in lacking)
    return Plot(_laid_out(figure), frame, caption)


def _draw_curves(axes: Axes, lines: pd.DataFrame, means: pd.Series, look: Look, band: bool) -> None:
    epochs = lines.index.to_numpy()
    if band:
        low, high = lines.min(axis=1), lines.max(axis=1)
        axes.fill_between(epochs, low, high, color=look.colour, alpha=0.15, linewidth=0)
    else:
        axes.plot(epochs, lines.to_numpy(), color=look.colour, linewidth=0.7, alpha=FAINT)
    axes.plot(epochs, means, color=look.colour, linestyle=look.line, linewidth=1.9)


@drawing()
def curve_multiples(rows: pd.DataFrame, metric: str, looks: Mapping[Any, Look], colour: str = "arm") -> Plot:
    """One metric per epoch, axes of its own for each arm: what `learning_curves` is for few arms.

    Coloured by arm, all other arms are grey in each; else a line for each level of `colour`.  `rows`: as there.
    """
    columns, names = 5, _levels(rows, "arm")
    bands = -(-len(names) // columns)
    figure = _figure(0.9 + 1.35 * bands)
    grid = figure.subplots(bands, columns, sharex=True, sharey=True, squeeze=False).ravel()
    drawn = []
    for arm, axes in zip(names, grid, strict=False):
        here = rows[(rows["arm"] == arm) & (rows["metric"] == metric)]
        for group in _levels(here, colour):
            lines, means = _by_replicate(here[here[colour] == group])
            look = looks[group] if colour != "arm" else Look(looks[group].colour)
            _draw_curves(axes, lines * _scale(metric), means * _scale(metric), look, band=True)
            identity = {"metric": metric, "arm": arm, colour: group}
            drawn.append(pd.DataFrame({**identity, "epoch": means.index, "mean": means, "n": lines.shape[1]}))
        axes.set_title(words(arm), loc="left", fontsize=8, fontweight="bold")
        axes.margins(x=0.03)
    frame = pd.concat(drawn, ignore_index=True)
    for arm, axes in zip(names if colour == "arm" else [], grid, strict=False):
        for _, other in frame[frame["arm"] != arm].groupby("arm", observed=True):
            axes.plot(other["epoch"], _scale(metric) * other["mean"], color="#d5d5d5", linewidth=0.8, zorder=1)
    for i, axes in enumerate(grid):
        axes.set_visible(i < len(names))
        axes.tick_params(labelbottom=i + columns >= len(names))
    grid[0].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(_one_line(metric), fontsize=9)
    if colour != "arm":
        _legend(figure, [(_group_name(colour, group), looks[group]) for group in _levels(rows, colour)])
    caption = (
        f"{sentence(_one_line(metric))} after each epoch, by arm; band: from the lowest to the highest replicate; "
        f"bold: their mean, where all have a value; {count_sentence(frame['n'].tolist())}."
        + " Grey: the means of all other arms."
        * (colour == "arm")
    )
    return Plot(_laid_out(figure), frame, caption)


def _by_replicate(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Curves as epochs × replicates, and their mean where every replicate has a value."""
    lines = rows.pivot_table(index="epoch", columns="replicate", values="value", dropna=False)
    return lines, lines.mean(axis=1, skipna=False)


@drawing()
def levels(
    trials: pd.DataFrame, reference: str, across: Sequence[str], looks: Mapping[Any, Look], selection: str
) -> Plot:
    """Accuracy of each arm at each level of the crossed factors.

    Few arms: against the last factor, one small multiple per level of the first of two; numbers stand at their places
    (on a logarithmic axis where they span decades) and are joined, names side by side and are not.  Many arms: a row
    for each, a column for each level of the last factor.

    `trials`: rows of a panel, where `arm` and the factors are ordered categories.
    """
    frame = statistics.arm_table(trials, reference, across, selection)
    scored = trials.assign(accuracy=statistics.accuracy(trials, selection)).dropna(subset="accuracy")
    many = scored["arm"].nunique() > TOGETHER
    figure = (
        _arms_in_rows(frame, scored, reference, across, looks) if many else _arms_by_level(frame, scored, across, looks)
    )
    caption = (
        f"{rule_sentence(selection, trials)} {_points_sentence(trials)}; bold: mean with 95 % t interval"
        f"{_cut_sentence(frame)}; {count_sentence(frame['n'].tolist())} per point."
        + f" Dashed: the mean of {words(reference)}. Every column has its own axis."
        * many
    )
    return Plot(_laid_out(figure), frame, caption)


@drawing()
def _arms_by_level(
    frame: pd.DataFrame, scored: pd.DataFrame, across: Sequence[str], looks: Mapping[Any, Look]
) -> Figure:
    factor, by = across[-1], across[0] if len(across) > 1 else None
    ticks, names = _levels(scored, factor), _levels(scored, "arm")
    places, joined, scale = _places(ticks)
    room = min(np.diff(places), default=1.0)  # the narrowest
    spread = room * min(0.15, 0.6 / len(names))
    beside = {arm: spread * (i - (len(names) - 1) / 2) for i, arm in enumerate(names)}  # side by side at a level
    columns = _levels(scored, by) if by else [None]
    aside = max(spread / 3, 0.012 * len(columns) * np.ptp(places))  # replicates, of their mean
    figure = _figure(3.5, min(WIDTH, 2.4 + 3.2 * len(columns)))
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(grid, columns, strict=True):
        for arm in names:
            points, means = (
                rows[(rows["arm"] == arm) & ((rows[by] == column) if by else True)] for rows in (scored, frame)
            )
            colour = looks[arm].colour
            x = [places[ticks.index(level)] + beside[arm] for level in means[factor]]
            if joined:
                axes.plot(x, 100 * means["mean"], color=colour, linestyle=looks[arm].line, linewidth=1.2)
            axes.plot(x, 100 * means["mean"], "o", color=colour, markersize=6)
            axes.vlines(x, 100 * means["low"], 100 * means["high"], color=colour, linewidth=2.0)
            x = [places[ticks.index(level)] + beside[arm] + aside for level in points[factor]]
            _faint_points(axes, x, points["accuracy"], statistics.diverged(points), colour, upright=True)
        half = 0.5 if not joined else max(room / 2, 0.04 * np.ptp(places))
        axes.set_xlim(places[0] - half, places[-1] + half)
        texts = [level_name(factor, level) for level in ticks]
        fits = _apart(places, texts, np.ptp(axes.get_xlim()) / (figure.get_figwidth() / len(columns) - 0.6))
        shown = [text if fit or not joined else "" for text, fit in zip(texts, fits, strict=True)]
        turned: Any = {} if joined or all(fits) else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(places, shown, **turned)  # of numbers some may be left out, of names none
        axes.set_xlabel(factor_name(factor) + scale)
        axes.grid(axis="x", visible=False)
        axes.set_title(_level_in_words(by, column) if by else "", loc="left", fontweight="bold")
    grid[0].set_ylabel("test accuracy (%)")
    grid[0].yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    grid[0].set_ylim(_possible(*grid[0].get_ylim()))
    _legend(figure, [(words(arm), looks[arm] if joined else Look(looks[arm].colour)) for arm in names])
    return figure


@drawing()
def _arms_in_rows(
    frame: pd.DataFrame, scored: pd.DataFrame, reference: str, across: Sequence[str], looks: Mapping[Any, Look]
) -> Figure:
    names = _levels(scored, "arm")
    settings = scored[list(across)].drop_duplicates().sort_values(list(across))
    columns = min(4, len(_levels(scored, across[-1])))
    bands = -(-len(settings) // columns)
    figure = _figure(0.3 + bands * (0.7 + 0.2 * len(names)))
    grid = figure.subplots(bands, columns, sharey=True, squeeze=False).ravel()
    for axes in grid[len(settings) :]:
        axes.set_visible(False)
    for i, (axes, setting) in enumerate(zip(grid, settings.itertuples(index=False, name=None), strict=False)):
        points, means = (rows[(rows[list(across)] == list(setting)).all(axis=1)] for rows in (scored, frame))
        axes.vlines(
            100 * means.loc[means["arm"] == reference, "mean"], -0.5, len(names) - 0.5, color=DARK, linestyle="--",
            linewidth=0.8, zorder=1,
        )  # fmt: skip
        for position, arm in enumerate(names):
            colour, own = looks[arm].colour, points[points["arm"] == arm]
            heights = np.full(len(own), position + 0.28)
            _faint_points(axes, heights, own["accuracy"], statistics.diverged(own), colour, upright=False)
            row = means[means["arm"] == arm]
            axes.hlines(np.full(len(row), position), 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.0)
            axes.plot(100 * row["mean"], np.full(len(row), position), "o", color=colour, markersize=5)
        axes.set_xlim(_possible(*axes.get_xlim()))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.set_title(setting_name(dict(zip(across, setting, strict=True))), loc="left", fontsize=8, fontweight="bold")
        if i + columns >= len(settings):
            axes.set_xlabel("test accuracy (%)")
    grid[0].set_yticks(range(len(names)), [words(arm) for arm in names])
    grid[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _places(values: Sequence[Any]) -> tuple[list[float], bool, str]:
    """Where levels stand on an axis, whether they are numbers that a line may join, and what to add to its name."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) or len(values) < 2:
        return [float(place) for place in range(len(values))], False, ""
    if min(values) > 0 and max(values) / min(values) >= DECADE:
        return [float(np.log10(value)) for value in values], True, " (logarithmic)"
    return [float(value) for value in values], True, ""


def _apart(places: Sequence[float], texts: Sequence[str], inch: float) -> list[bool]:
    """Which texts there is room for, from the left; `inch`: its length in units of the axis."""
    shown, free = [], -np.inf
    for place, text in zip(places, texts, strict=True):
        half = 0.5 * inch * (0.08 * len(text) + 0.06)
        shown.append(place - half >= free)
        free = place + half if shown[-1] else free
    return shown


@drawing()
def arms(
    trials: pd.DataFrame,
    reference: str,
    looks: Mapping[Any, Look],
    selection: str,
    smallest_effects: Mapping[str, float],
) -> Plot:
    """Accuracy of each arm, and beside it the difference to the reference arm; arms in declared order.

    `trials`: rows of a panel in one setting.  `smallest_effects`: arm -> the effect declared to matter, where one is.
    """
    frame = statistics.arm_table(trials, reference, [], selection)
    frame["smallest_effect"] = frame["arm"].map(smallest_effects).astype(float)
    scored = trials.assign(accuracy=statistics.accuracy(trials, selection)).dropna(subset="accuracy")
    replicates = scored.pivot(index="arm", columns="replicate", values="accuracy").reindex(frame["arm"])
    positions, names = np.arange(len(frame)), list(frame["arm"])
    below = positions + 0.22

    figure = _figure(1.0 + (0.42 if len(frame) <= TOGETHER else 0.3) * len(frame))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.15, 1])
    # a line per replicate: where the lines run parallel, pairing pays
    left.plot(100 * replicates.to_numpy(), below, color="#9a9a9a", linewidth=0.6, alpha=0.45, zorder=1)
    for position, row in enumerate(statistics.records(frame)):
        colour = looks[row["arm"]].colour
        points = scored[scored["arm"] == row["arm"]]
        heights = np.full(len(points), below[position])
        _faint_points(left, heights, points["accuracy"], statistics.diverged(points), colour, upright=False)
        left.hlines(position, 100 * row["low"], 100 * row["high"], color=colour, linewidth=2.2)
        left.plot(100 * row["mean"], position, "o", color=colour, markersize=6)
    left.set_yticks(positions, [words(arm) for arm in names])
    left.set_ylim(len(frame) - 0.5, -0.5)
    left.set_xlim(_possible(*left.get_xlim()))
    left.set_xlabel("test accuracy (%)")
    left.grid(axis="y", visible=False)
    compared = frame.filter(like="against_").rename(columns=lambda name: name.removeprefix("against_"))
    compared = compared.assign(smallest_effect=frame["smallest_effect"])
    _draw_forest(right, compared, [looks[arm].colour for arm in names])
    if reference in names:
        _annotate(right, names.index(reference), "reference")
    right.set_xlabel(f"difference to {words(reference)} (percentage points)")
    caption = (
        f"{rule_sentence(selection, trials)} {_points_sentence(trials)}, joined across arms by thin lines; "
        f"bold: mean with 95 % t interval{_cut_sentence(frame)}; {count_sentence(frame['n'].tolist())} per arm. "
        f"Right: difference to {words(reference)} with 95 % t interval"
        f"{_pairing_sentence(compared)}{_band_sentence(compared)}"
    )
    return Plot(_laid_out(figure), frame, caption)


@drawing()
def forest(contrasts: pd.DataFrame) -> Plot:
    """The declared contrasts (`Study.contrasts`): verdict, difference, interval, zero line and the effect that matters.

    Raises ValueError for contrasts under two selection rules.
    """
    selection = statistics.only_rule(contrasts["selection"])
    figure = _figure(1.1 + 0.36 * len(contrasts))
    axes = figure.subplots()
    rows = statistics.records(contrasts)
    names = [f"{words(row['arm'])}  −  {words(row['against'])}" for row in rows]
    colours, markers = zip(*(VERDICTS[row["verdict"]] for row in rows), strict=True)
    _draw_forest(axes, contrasts, colours, markers, beside=76)
    for position, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        _annotate(axes, position, row["verdict"], color=colour, fontweight="bold")
    for place, heading in ((8, "verdict"), (76, "difference [95 % interval]")):
        _annotate(axes, -0.8, heading, place, color=DARK)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("← worse      difference in test accuracy (percentage points)      better →")
    caption = (
        "Declared contrasts, first arm minus second, in the base setting. "
        f"Test accuracy {statistics.SELECTION[selection]} (selection rule {selection}). "
        f"Bars: 95 % t interval{_pairing_sentence(contrasts)}{_band_sentence(contrasts)} {VERDICT_SENTENCE}"
    )
    return Plot(_laid_out(figure), contrasts, caption)


@drawing()
def selection_rules(frame: pd.DataFrame) -> Plot:
    """By how much each selection rule is ahead of the last epoch, for each arm.

    `frame`: from `statistics.rule_table`.
    """
    figure = _figure(1.0 + 0.3 * len(frame))
    axes = figure.subplots()
    axes.axvline(0, color=DARK, linewidth=0.9, zorder=1)
    height = np.arange(len(frame))
    ahead = {rule: 100 * (frame[rule] - frame["last"]) for rule in RULES if frame[rule].notna().any()}
    axes.hlines(height, 0, ahead["best_test"], color="#cfcfcf", linewidth=1.2, zorder=1)
    for rule, values in ahead.items():
        colour, marker = RULES[rule]
        inside, name = ("white", "best_test, an oracle") if rule == "best_test" else (colour, rule)
        axes.plot(values, height, marker, color=colour, markersize=6, markerfacecolor=inside, label=name)
    most = 100 * frame["ahead_of_last_most"]
    axes.plot(most, height, "|", color=DARK, markersize=8, label="the oracle's largest lead")
    figure.legend(loc="outside upper left", ncols=4, handletextpad=0.1, columnspacing=1.6)
    axes.set_yticks(height, [words(arm) for arm in frame["arm"]])
    axes.set_ylim(len(frame) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("test accuracy minus that at the last epoch (percentage points)")
    caption = (
        "What the choice of the epoch changes in the base setting: mean test accuracy under each selection rule minus "
        f"that at the last epoch; {count_sentence(frame['n'].tolist())}. The oracle chooses its epoch by looking at "
        "the test set; the tick is its largest lead in any replicate."
    )
    return Plot(_laid_out(figure), frame, caption)


def difference_text(difference: float, low: float, high: float) -> str:
    """In percentage points: `−0.42 [−1.10, 0.26]`, or `−0.42` where there is no interval."""
    if np.isnan(difference):
        return "no data"
    interval = "" if np.isnan(low) else f" [{points(low)}, {points(high)}]"
    return f"{points(difference)}{interval}"


def points(fraction: float) -> str:
    """A difference in percentage points, signed: −0.004 -> `−0.40`."""
    text = f"{100 * fraction:+.2f}"
    return ("0.00" if float(text) == 0 else text).replace("-", "−")


def p_text(p: float) -> str:
    """`p = 0.004`, `p < 0.001`."""
    return "p < 0.001" if p < 1e-3 else f"p = {p:.3f}"


def _draw_forest(
    axes: Axes, rows: pd.DataFrame, colours: Sequence[Any], markers: Sequence[str] = "", beside: float = 8
) -> None:
    """Differences and intervals at heights 0, 1, …, their numbers right of the axes; rows without one stay empty.

    `markers`: of the differences, discs where none are given; those of the undecided are hollow.
    """
    axes.axvline(0, color=DARK, linewidth=0.9, zorder=1)
    axes.grid(axis="y", visible=False)
    for position, (row, colour) in enumerate(zip(statistics.records(rows), colours, strict=True)):
        difference, low, high, half = (100 * row[name] for name in ("difference", "low", "high", "smallest_effect"))
        if np.isnan(difference):
            continue
        if half > 0:
            axes.add_patch(
                Rectangle((-half, position - 0.36), 2 * half, 0.72, color="#e2e2e2", linewidth=0, zorder=0.5)
            )
        axes.hlines(position, low, high, color=colour, linewidth=2.2)
        inside = "white" if row.get("verdict") in OPEN else colour
        axes.plot(difference, position, markers[position] if markers else "o", color=colour, markersize=6, mfc=inside)
        count = f"{row['n']:g}, paired" if row["paired"] else f"{row['n']:g} and {row['n_against']:g}, unpaired"
        text = difference_text(row["difference"], row["low"], row["high"])
        _annotate(axes, position, f"{text}   n = {count}", beside)


def _annotate(axes: Axes, position: float, text: str, beside: float = 8, **look: Any) -> None:
    """Text so many points right of the axes, at a height in data."""
    place: Any = dict(xycoords=axes.get_yaxis_transform(), xytext=(beside, 0), textcoords="offset points")
    axes.annotate(text, (1, position), va="center", fontsize=8.5, annotation_clip=False, **place, **look)


def _pairing_sentence(compared: pd.DataFrame) -> str:
    paired = compared.loc[compared["difference"].notna(), "paired"].astype(bool)
    if paired.empty:
        return "."
    if paired.all():
        return ", paired by replicate (stored data, noise and split hashes agree)."
    if paired.any():
        return ", paired by replicate where the stored data, noise and split hashes agree, else unpaired (Welch)."
    return ", unpaired (Welch): no replicates whose stored data, noise and split hashes agree."


def _band_sentence(compared: pd.DataFrame) -> str:
    declared = (compared["smallest_effect"] > 0) & compared["difference"].notna()
    return " Grey band: smaller than the smallest effect declared to matter." if declared.any() else ""


# ----------------------------------------------------------------------------------------------------- inside a method


@drawing()
def label_histograms(arrays: pd.DataFrame, quantity: str) -> Plot:
    """How right and wrong given labels are spread over a quantity, at some epochs, with the fitted mixture of losses.

    `arrays`: of one trial, from `study.arrays`.  `quantity`: loss, clean or coefficient.
    """
    found = _by_epoch(arrays, f"oracle/{quantity}_histogram")
    found = _some({epoch: counts for epoch, counts in found.items() if counts.sum()})
    mixtures = _by_epoch(arrays, "train/mixture") if quantity == "loss" else {}
    figure = _figure(2.5, _width(len(found)))
    grid = figure.subplots(1, len(found), sharex=True, squeeze=False)[0]
    drawn = []
    for axes, (epoch, counts) in zip(grid, found.items(), strict=True):
        right, wrong = counts / counts.sum()
        edges = np.linspace(0, 1, len(right) + 1)
        frame = pd.DataFrame({"epoch": epoch, "low": edges[:-1], "high": edges[1:], "right": right, "wrong": wrong})
        for share, colour in ((right, RIGHT), (wrong, WRONG)):
            axes.stairs(100 * share, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(100 * share, edges, color=colour, linewidth=1.2)
        if epoch in mixtures:
            components = _component_shares(mixtures[epoch], edges)
            frame["mixture"] = components.sum(axis=0)
            centres = (edges[1:] + edges[:-1]) / 2
            axes.plot(centres, 100 * components.T, color=DARK, linewidth=0.8, linestyle="--")
            axes.plot(centres, 100 * frame["mixture"], color="black", linewidth=1.3)
        axes.set_title(f"epoch {epoch}", loc="left", fontweight="bold")
        axes.set_xlabel(QUANTITIES[quantity])
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        drawn.append(frame)
    grid[0].set_ylabel("share of labels (%)")
    table = pd.concat(drawn, ignore_index=True)
    entries = [("right given labels", Look(RIGHT)), ("wrong given labels", Look(WRONG))]
    mixed = "mixture" in table
    _legend(figure, [*entries, *([("mixture", Look("black")), ("its components", Look(DARK, "--"))] * mixed)])
    caption = (
        f"{sentence(QUANTITIES[quantity])} of the given labels after some epochs: share of all labels in each of "
        f"{len(found[min(found)][0])} bins, right and wrong ones apart; every panel has its own height."
        + " Black: the mixture fitted to the losses, as normal densities; of several networks their mean." * mixed
        + ORACLE_SENTENCE
    )
    return Plot(_laid_out(figure), table, caption)


@drawing()
def label_means(histograms: pd.DataFrame, quantity: str, column: str) -> Plot:
    """Mean of a quantity over right and over wrong given labels, per epoch; axes for each level of `column`.

    `histograms`: replicate, epoch, array (2, B) of the quantity, and the category named by `column`.
    """
    levels = _levels(histograms, column)
    figure = _figure(2.7, min(WIDTH, 1.4 + 2.4 * len(levels)))
    grid = figure.subplots(1, len(levels), sharex=True, sharey=True, squeeze=False)[0]
    drawn = []
    for axes, level in zip(grid, levels, strict=True):
        here = histograms[histograms[column] == level]
        for kind, (given, colour) in enumerate((("right", RIGHT), ("wrong", WRONG))):
            values = [_histogram_mean(counts[kind]) for counts in here["array"]]
            lines, means = _by_replicate(here.assign(value=values))
            _draw_curves(axes, lines, means, Look(colour), band=True)
            identity = {column: level, "given": given}
            drawn.append(pd.DataFrame({**identity, "epoch": means.index, "mean": means, "n": lines.shape[1]}))
        axes.set_title(_group_name(column, level), loc="left", fontweight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.set_ylim(-0.02, 1.02)
        axes.margins(x=0.02)
    grid[0].set_ylabel(f"mean {QUANTITIES[quantity]}")
    _legend(figure, [("right given labels", Look(RIGHT)), ("wrong given labels", Look(WRONG))])
    frame = pd.concat(drawn, ignore_index=True)
    caption = (
        f"Mean {QUANTITIES[quantity]} of right and of wrong given labels after each epoch; band: from the lowest to "
        f"the highest replicate; {count_sentence(frame['n'].tolist())}.{ORACLE_SENTENCE}"
    )
    return Plot(_laid_out(figure), frame, caption)


def _histogram_mean(counts: np.ndarray) -> float:
    """Of (B,) counts over [0, 1], to half a bin; exact for a quantity that is 0 or 1.  NaN where nothing is counted."""
    return float(np.average(np.linspace(0, 1, len(counts)), weights=counts)) if counts.sum() else np.nan


@drawing()
def transitions(arrays: pd.DataFrame, realised: ArrayLike) -> Plot:
    """The transition matrix that a method estimated last, beside the realised one (K, K).  `arrays`: of one trial."""
    found = _by_epoch(arrays, "train/transition")
    epoch, true = max(found), np.asarray(realised, dtype=float)
    classes = len(true)
    error = np.nanmean(np.abs(found[epoch] - true))
    figure = _figure(3.9, 8.0)
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = (f"estimated, epoch {epoch}: error {error:.3f}", "realised")
    for axes, title, matrix in zip(grid, titles, (found[epoch], true), strict=True):
        image = axes.imshow(matrix, cmap=colour_map("Blues"), vmin=0, vmax=1)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel("given label")
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(classes, 10)))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(classes, 10)))
        if classes <= 12:  # else the numbers would not fit
            for (i, j), value in np.ndenumerate(matrix):
                shade = "white" if value > 0.6 else "black"
                text = f"{value:.2f}".removeprefix("0") if value >= 0.005 else ""
                axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=shade)
    grid[0].set_ylabel("true class")
    figure.colorbar(image, ax=grid, label="P(given label | true class)", shrink=0.85)
    rows, columns = np.indices(true.shape)
    table = pd.DataFrame(
        {"true": rows.ravel(), "given": columns.ravel(), "estimated": found[epoch].ravel(), "realised": true.ravel()}
    )
    caption = (
        "Probability of each given label for each true class, as the method estimated it and as it is among the "
        f"labelled images; the error is the mean absolute difference of the {classes * classes} entries."
        + ORACLE_SENTENCE
    )
    return Plot(_laid_out(figure), table, caption)


@drawing()
def embeddings(arrays: pd.DataFrame) -> Plot:
    """t-SNE of the features of some test images at some epochs; each starts from where the one before ended.

    `arrays`: of one trial, from `study.arrays`.
    """
    found = _some(_by_epoch(arrays, "test/embeddings"))
    classes = _by_epoch(arrays, "test/embedding_labels")[min(found)].astype(int)
    placed = _tsne(found)
    figure = _figure(2.3, _width(len(found)))
    grid = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    half = 1.05 * max(np.abs(points).max() for points in placed.values())
    looks = {k: (COLOURS[k % len(COLOURS)], MARKERS[k // len(COLOURS)]) for k in range(MOST_CLASSES)}
    present = np.unique(classes)
    named = [k for k in present if k in looks]
    apart = {epoch: _silhouette(points, classes) for epoch, points in found.items()}
    for axes, (epoch, points) in zip(grid, placed.items(), strict=True):
        others = points[~np.isin(classes, named)]
        axes.plot(*others.T, "o", color="#cccccc", markersize=1.8, markeredgewidth=0)
        for k in named:
            colour, marker = looks[k]
            axes.plot(*points[classes == k].T, marker, color=colour, markersize=2.6, markeredgewidth=0, alpha=0.8)
        axes.set_title(f"epoch {epoch}", loc="left", fontweight="bold")
        axes.set(xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[], aspect="equal")
        axes.set_xlabel(f"silhouette {apart[epoch]:.2f}".replace("-", "−"))
        axes.spines[:].set_visible(True)
    handles = [Line2D([], [], color=looks[k][0], marker=looks[k][1], linestyle="", markersize=5) for k in named]
    names = [str(k) for k in named]
    if len(named) < len(present):
        handles.append(Line2D([], [], color="#cccccc", marker="o", linestyle="", markersize=5))
        names.append("others")
    figure.legend(
        handles, names, title="class", loc="outside right center", ncols=1 + (len(names) > 12), handletextpad=0.1
    )
    drawn = [
        pd.DataFrame(
            {"epoch": epoch, "class": classes, "x": points[:, 0], "y": points[:, 1], "silhouette": apart[epoch]}
        )
        for epoch, points in placed.items()
    ]
    caption = (
        f"t-SNE of the features of {len(classes)} test images, the same at each epoch, with their true classes; "
        "each epoch starts from the places of the one before and is turned towards them; all share their axes. "
        "Distances between groups mean little, and how large a group is, nothing: the mean silhouette of the classes "
        "is that of the features, before t-SNE."
    )
    return Plot(_laid_out(figure), pd.concat(drawn, ignore_index=True), caption)


ORACLE_SENTENCE = " An oracle: it needs the true labels, which no method sees."


def _by_epoch(arrays: pd.DataFrame, name: str) -> dict[int, np.ndarray]:
    rows = arrays[arrays["name"] == name].sort_values("epoch")
    return dict(zip(rows["epoch"], rows["array"], strict=True))


def _some(by_epoch: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """At most `MOMENTS` epochs, the first and the last among them."""
    epochs = sorted(by_epoch)
    chosen = np.unique(np.linspace(0, len(epochs) - 1, min(MOMENTS, len(epochs))).round().astype(int))
    return {epochs[i]: by_epoch[epochs[i]] for i in chosen}


def _component_shares(mixture: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of each component in each bin, the mean over networks: (networks, 2, 3), (B + 1,) -> (2, B)."""
    weight, mean, deviation = (mixture[..., part, None] for part in range(3))
    return (weight * np.diff(norm.cdf(edges, mean, deviation), axis=-1)).mean(axis=0)


def _tsne(features: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Two coordinates of (n, d) features by epoch.  One thread, so that the same features give the same places."""
    from sklearn.manifold import TSNE  # a second of import, for this figure only
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    start: Any = "pca"
    placed: dict[int, np.ndarray] = {}
    for epoch, points in features.items():
        perplexity = min(30.0, (len(points) - 1) / 3)
        with threadpool_limits(1):
            found = TSNE(init=start, perplexity=perplexity, random_state=0).fit_transform(points)
        found -= found.mean(axis=0)  # t-SNE leaves the middle and the orientation open
        if placed:
            found = found @ orthogonal_procrustes(found, placed[max(placed)])[0]
        placed[epoch] = found
        start = 1e-4 * found / found.std()
    return placed


def _silhouette(features: np.ndarray, classes: np.ndarray) -> float:
    """Mean over images; NaN where it is not defined: for one class, or as many classes as images."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(features, classes)) if 1 < len(np.unique(classes)) < len(classes) else np.nan


def _width(panels: int) -> float:
    return min(WIDTH, 1.6 + 1.8 * panels)


# ------------------------------------------------------------------------------------------------- figures of a study


def arm_looks(study: Study) -> dict[str, Look]:
    """Black for the base arm, then the palette in the order of the plan: an arm looks the same everywhere.

    Searched arms come last, and have their look before their search is over.
    """
    searched = {f"{cell['arm']}_{cell['sampler']}": None for cell in (study.plan.get("search") or {}).get("cells", [])}
    names = [*(name for name in study.plan["arms"] if name not in searched), *searched]
    base = next((name for name, overrides in study.plan["arms"].items() if not overrides), names[0])
    others = [name for name in names if name != base]
    looks = {
        name: Look(COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]) for i, name in enumerate(others)
    }
    return {base: Look("#000000"), **looks}


def level_looks(values: Sequence[Any]) -> dict[Any, Look]:
    """Numbers have an order: a sequential map, dark to light; names have colours of their own.  No arm uses them."""
    if len(values) > 2 and all(isinstance(value, str) for value in values):
        return {value: Look(NAMED[i % len(NAMED)], LINES[i // len(NAMED)]) for i, value in enumerate(values)}
    shades = colour_map("plasma")(np.linspace(0.05, 0.8, max(len(values), 2)))
    return {value: Look(tuple(shade)) for value, shade in zip(values, shades, strict=False)}


def of_panel(study: Study, name: str, selection: str, epochs: pd.DataFrame) -> Plots:
    """All figures of a panel that have rows.  `epochs`: from `study.epochs`, with at least the panel's curves.

    Raises ValueError where more factors are crossed than a figure can show.
    """
    panel = study.plan["panels"][name]
    across, reference = panel["across"], panel["reference"]
    if len(across) > MOST_FACTORS:
        raise ValueError(
            f"Figures show at most {MOST_FACTORS} crossed factors; {name!r} crosses {len(across)}: see its table."
        )
    trials = study.panel(name)
    looks = arm_looks(study)
    rows = trials[["trial", "arm", *across]].merge(epochs.drop(columns="arm"), on="trial")
    plots = Plots()
    for kind, draw in (("curves", learning_curves), ("metrics", metric_curves)):
        wanted = [
            metric
            for metric in panel["curves"]
            if metric.endswith(("loss", "accuracy")) == (kind == "curves") and not metric.endswith(HISTOGRAM)
        ]
        if not rows["metric"].isin(wanted).any():
            continue
        if len(across) == 2:  # a figure per arm: columns by the first factor, colours by the second
            shades = level_looks(study.levels(across[1]))
            for arm, of_arm in rows.groupby("arm", observed=True):
                plot = draw(of_arm, wanted, across[1], shades, across[0])
                caption = f"Arm: {words(str(arm))}. {plot.caption}"
                plots[f"{kind}-{arm}"] = Plot(plot.figure, plot.drawn.assign(arm=arm), caption)
        elif trials["arm"].nunique() > TOGETHER:
            colour, shades = (across[0], level_looks(study.levels(across[0]))) if across else ("arm", looks)
            plots |= _multiples(rows, wanted, shades, colour, kind)
        elif across and trials["arm"].nunique() == 1:
            plots[kind] = draw(rows, wanted, across[0], level_looks(study.levels(across[0])))
        else:
            plots[kind] = draw(rows, wanted, "arm", looks, across[0] if across else None)
    plots |= _histograms(study, panel, trials)
    if statistics.accuracy(trials, selection).isna().all():
        return plots
    if across:
        plots["levels"] = levels(trials, reference, across, looks, selection)
    else:
        declared = {c["arm"]: c["smallest_effect"] for c in study.plan["contrasts"] if c["against"] == reference}
        plots["arms"] = arms(trials, reference, looks, selection, declared)
    return plots


def _histograms(study: Study, panel: Mapping[str, Any], trials: pd.DataFrame) -> Plots:
    """What a panel asks for among its curves as oracle/coefficient_histogram: by arm, or by arm and level."""
    names, drawn = [name for name in panel["curves"] if name.endswith(HISTOGRAM)], Plots()
    if not names or len(panel["across"]) > 1:
        return drawn
    arrays = study.arrays(trials["trial"].tolist())[["trial", "replicate", "epoch", "name", "array"]]
    arrays = arrays.merge(trials[["trial", "arm", *panel["across"]]], on="trial")
    for name in names:
        quantity, rows = name.removeprefix("oracle/").removesuffix(HISTOGRAM), arrays[arrays["name"] == name]
        if not panel["across"] and len(rows):
            drawn[quantity] = label_means(rows, quantity, "arm")
        for arm in _levels(rows, "arm") if panel["across"] else []:
            plot = label_means(rows[rows["arm"] == arm], quantity, panel["across"][0])
            caption = f"Arm: {words(arm)}. {plot.caption}"
            drawn[f"{quantity}-{arm}"] = Plot(plot.figure, plot.drawn.assign(arm=arm), caption)
    return drawn


def _multiples(rows: pd.DataFrame, metrics: Sequence[str], looks: Mapping[Any, Look], colour: str, kind: str) -> Plots:
    """A figure per metric that was recorded."""
    present = [metric for metric in metrics if (rows["metric"] == metric).any()]
    names = {metric: f"{kind}-{metric.rpartition('/')[2]}" for metric in present}
    return Plots({names[metric]: curve_multiples(rows, metric, looks, colour) for metric in present})


def inside(study: Study, arms: Sequence[str]) -> Plots:
    """What methods believe of the labels in the base setting: curves of the arms, then of each arm one trial's arrays.

    The trial is that of the lowest replicate that did not diverge.  What an arm did not record is left out.
    """
    base = in_base(study.trials[study.trials["arm"].isin(arms)])
    epochs = study.epochs([metric for metrics in ORACLES.values() for metric in metrics])
    epochs = epochs[epochs["trial"].isin(base["trial"])]
    epochs["arm"] = pd.Categorical(epochs["arm"], list(study.plan["arms"]), ordered=True)
    plots = Plots()
    for kind, metrics in ORACLES.items():
        rows = epochs[epochs["metric"].isin(metrics)]
        if len(rows):
            wanted = [metric for metric in metrics if (rows["metric"] == metric).any()]
            if rows["arm"].nunique() > TOGETHER:
                figures = _multiples(rows, wanted, arm_looks(study), "arm", kind)
            else:
                figures = Plots({kind: metric_curves(rows, wanted, "arm", arm_looks(study))})
            for name, plot in figures.items():
                plots[name] = Plot(plot.figure, plot.drawn, plot.caption + ORACLE_SENTENCE)
    finished = base[base["status"] == "ok"].sort_values("replicate", kind="stable")
    firsts = finished.groupby("arm").head(1).set_index("arm")
    arrays = study.arrays(firsts["trial"].tolist())
    for arm in (arm for arm in study.plan["arms"] if arm in firsts.index):
        trial, mine = firsts.loc[arm], arrays[arrays["arm"] == arm]
        kinds = set(mine["name"])
        drawn = {
            f"{quantity}-{arm}": label_histograms(mine, quantity)
            for quantity in QUANTITIES
            if any(counts.sum() for counts in _by_epoch(mine, f"oracle/{quantity}_histogram").values())
        }
        if "train/transition" in kinds:
            drawn[f"transition-{arm}"] = transitions(mine, json.loads(trial["transition"]))
        if "test/embeddings" in kinds:
            drawn[f"embeddings-{arm}"] = embeddings(mine)
        for name, plot in drawn.items():
            caption = f"Arm: {words(arm)}, replicate {trial['replicate']}. {plot.caption}"
            plots[name] = Plot(plot.figure, plot.drawn, caption)
    return plots


# --------------------------------------------------------------------------------------------------------- small parts


def _figure(height: float, width: float = WIDTH) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _laid_out(figure: Figure) -> Figure:
    """Placed once and for all: constrained layout starts from what it left, so each rendering would move a little."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _levels(rows: pd.DataFrame, column: str) -> list[Any]:
    """Categories that occur, in declared order."""
    return list(rows[column].cat.remove_unused_categories().cat.categories)


def _faint_points(
    axes: Axes, at: ArrayLike, accuracies: pd.Series, failed: pd.Series, colour: Any, upright: bool
) -> None:
    """Replicates, diverged ones as crosses; accuracy runs upwards if `upright`, else to the right."""
    for marker, chosen in (("o", ~failed.to_numpy(bool)), ("x", failed.to_numpy(bool))):
        values, places = 100 * accuracies.to_numpy()[chosen], np.asarray(at)[chosen]
        x, y = (places, values) if upright else (values, places)
        width = 0 if marker == "o" else 1.5
        axes.plot(x, y, marker, color=colour, alpha=FAINT, markersize=4 + width, markeredgewidth=width)


def _points_sentence(trials: pd.DataFrame) -> str:
    return "Faint points: replicates" + " (crosses: diverged)" * bool(statistics.diverged(trials).any())


def _possible(low: float, high: float) -> tuple[float, float]:
    """Axis limits in percent without the room that wide intervals ask for outside 0 to 100."""
    return max(low, -3.0), min(high, 103.0)


def _cut_sentence(frame: pd.DataFrame) -> str:
    outside = (frame["low"] < -0.03) | (frame["high"] > 1.03)
    return ", cut outside 0 to 100 %" if outside.any() else ""


def _legend(figure: Figure, entries: Sequence[tuple[str, Look]]) -> None:
    """Above the axes, read row by row."""
    widths = [7 + len(name) for name, _ in entries]  # in characters, of which an inch holds about 12
    room = int(12 * figure.get_figwidth())
    columns = len(entries) if sum(widths) <= room else max(1, room // max(widths))
    figure.set_figheight(figure.get_figheight() + 0.19 * ((len(entries) - 1) // columns))  # the axes keep their height
    by_row = [entry for column in range(columns) for entry in entries[column::columns]]  # matplotlib fills columns
    handles = [Line2D([], [], color=look.colour, linestyle=look.line, linewidth=2.2) for _, look in by_row]
    names = [name for name, _ in by_row]
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=1.8, columnspacing=1.6)


def _group_name(column: str, level: Any) -> str:
    return words(level) if column == "arm" else _level_in_words(column, level)


def _one_line(metric: str) -> str:
    return metric_name(metric).replace("\n", " ")


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[:1].upper() + text[1:]


def _listed(parts: Iterable[str]) -> str:
    *most, last = list(parts)
    return f"{', '.join(most)} and {last}" if most else last
