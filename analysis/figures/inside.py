"""Figures of what methods believe of the labels, and of the features that they learn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.linalg import orthogonal_procrustes

from analysis.classes import class_names
from analysis.figures.base import (
    ARM_COLOURS,
    CLASS_MARKERS,
    MOST_ARMS_TOGETHER,
    Plot,
    Plots,
    arm_looks,
    colour_map,
    drawing,
    new_figure,
    panels_width,
)
from analysis.figures.curves import metric_curves, multiples_by_metric
from analysis.figures.errors import FIRST, RELIABILITY, error_reliability
from analysis.figures.histograms import (
    ORACLE_SENTENCE,
    QUANTITIES,
    arrays_by_epoch,
    has_histograms,
    label_histograms,
    last_histograms,
    spread_epochs,
)
from analysis.results import Results, in_base
from analysis.words import readable

ORACLE_METRICS = {  # figure -> its metrics, which need the true labels of training images
    "selection": ("oracle/selection_auc", "oracle/selection_precision", "oracle/selection_recall"),
    "labels": ("oracle/refined_accuracy", "oracle/pseudo_label_accuracy", "oracle/memorised"),
}
MOST_CLASSES = 20  # with a colour of their own
EMBEDDINGS = ("test/embeddings_before", "test/embeddings", "test/embedding_labels")


@drawing()
def transitions(arrays: pd.DataFrame, realised: ArrayLike) -> Plot:
    """The transition matrix that a method estimated last, beside the realised one (K, K).  `arrays`: of one trial."""
    by_epoch = arrays_by_epoch(arrays, "train/transition")
    epoch, true = max(by_epoch), np.asarray(realised, dtype=float)
    classes = len(true)
    error = np.nanmean(np.abs(by_epoch[epoch] - true))
    figure = new_figure(3.9, 8.0)
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = (f"estimated, epoch {epoch}: error {error:.3f}", "realised")
    for axes, title, matrix in zip(grid, titles, (by_epoch[epoch], true), strict=True):
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
        {"true": rows.ravel(), "given": columns.ravel(), "estimated": by_epoch[epoch].ravel(), "realised": true.ravel()}
    )
    caption = (
        "Probability of each given label for each true class, as the method estimated it and as it is among the "
        f"labelled images; the error is the mean absolute difference of the {classes * classes} entries."
        + ORACLE_SENTENCE
    )
    return Plot(figure, table, caption)


@drawing()
def embeddings(rows: Mapping[str, pd.DataFrame], names: Sequence[str]) -> Plot:
    """t-SNE of the features of some test images before training and at some epochs; each starts where the last ended.

    `rows`: by their label, such as a network's name, the arrays of one trial each, from `Results.arrays`; those of
    other epochs than the first are left out.  `names`: of the classes.
    """
    by_row = {label: spread_epochs(_embedded(arrays)) for label, arrays in rows.items()}
    epochs = next(iter(by_row.values())).keys()
    by_row = {label: by_epoch for label, by_epoch in by_row.items() if by_epoch.keys() == epochs}
    figure = new_figure(0.4 + 1.9 * len(by_row), panels_width(len(epochs)))
    grid = figure.subplots(len(by_row), len(epochs), squeeze=False)
    drawn = []
    for of_row, (label, by_epoch) in zip(grid, by_row.items(), strict=True):
        placed = _tsne(by_epoch)
        labels = max(arrays_by_epoch(rows[label], "test/embedding_labels").items())[1].astype(int)
        half = 1.05 * max(np.abs(points).max() for points in placed.values())
        for axes, (epoch, points) in zip(of_row, placed.items(), strict=True):
            apart = _silhouette(by_epoch[epoch], labels)
            _draw_classes(axes, points, labels)
            axes.set(xlim=(-half, half), ylim=(-half, half), xticks=[], yticks=[], aspect="equal")
            axes.set_xlabel(f"silhouette {apart:.2f}".replace("-", "−"))
            axes.spines[:].set_visible(True)
            place = {"class": labels, "x": points[:, 0], "y": points[:, 1], "silhouette": apart}
            drawn.append(pd.DataFrame({"row": label, "epoch": epoch, **place}))
        if len(by_row) > 1:
            of_row[0].set_ylabel(readable(label))
    for axes, epoch in zip(grid[0], epochs, strict=True):
        title = f"epoch {epoch}" if epoch else "before training"
        axes.set_title(title, loc="left", fontweight="bold")
    frame = pd.concat(drawn, ignore_index=True)
    shown = sorted(k for k in frame["class"].unique() if k < MOST_CLASSES)
    looks = [(readable(names[k]), *_class_look(k)) for k in shown]
    looks += [("others", "#cccccc", "o")] * bool((frame["class"] >= MOST_CLASSES).any())
    figure.legend(
        [Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5) for _, colour, marker in looks],
        [name for name, _, _ in looks],
        title="class",
        loc="outside right center",
        ncols=1 + (len(looks) > 12),
        handletextpad=0.1,
    )
    caption = (
        f"t-SNE of the features of {len(labels)} test images, the same everywhere, with their true classes; each epoch "
        "starts from the places of the one before and is turned towards them; all of a row share their axes. "
        "Distances between groups mean little, and how large a group is, nothing: the mean silhouette of the classes "
        "is that of the features, before t-SNE."
    )
    return Plot(figure, frame, caption)


def _draw_classes(axes: Axes, points: np.ndarray, labels: np.ndarray) -> None:
    """Points (n, 2) in the look of their class (n,); classes that have none of their own are grey."""
    axes.plot(*points[labels >= MOST_CLASSES].T, "o", color="#cccccc", markersize=1.8, markeredgewidth=0)
    for k in np.unique(labels[labels < MOST_CLASSES]):
        colour, marker = _class_look(k)
        axes.plot(*points[labels == k].T, marker, color=colour, markersize=2.6, markeredgewidth=0, alpha=0.8)


def _class_look(k: int) -> tuple[str, str]:
    """Colour and marker of a class below `MOST_CLASSES`."""
    return ARM_COLOURS[k % len(ARM_COLOURS)], CLASS_MARKERS[k // len(ARM_COLOURS)]


def _embedded(arrays: pd.DataFrame) -> dict[int, np.ndarray]:
    """The features of one trial by epoch, those before training as of epoch 0."""
    before = arrays_by_epoch(arrays, "test/embeddings_before")
    return dict(zip([0], before.values(), strict=False)) | arrays_by_epoch(arrays, "test/embeddings")


def _tsne(features: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Two coordinates of (n, d) features by epoch.  One thread, so that the same features give the same places."""
    from sklearn.manifold import TSNE  # a second of import, for this figure only
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    start: Any = "pca"
    placed: dict[int, np.ndarray] = {}
    for epoch, points in features.items():
        perplexity = min(30.0, (len(points) - 1) / 3)
        with threadpool_limits(1):
            coordinates = TSNE(init=start, perplexity=perplexity, random_state=0).fit_transform(points)
        coordinates -= coordinates.mean(axis=0)  # t-SNE leaves the middle and the orientation open
        if placed:
            coordinates = coordinates @ orthogonal_procrustes(coordinates, placed[max(placed)])[0]
        placed[epoch] = coordinates
        start = 1e-4 * coordinates / coordinates.std()
    return placed


def _silhouette(features: np.ndarray, classes: np.ndarray) -> float:
    """Mean over images; NaN where it is not defined: for one class, or as many classes as images."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(features, classes)) if 1 < len(np.unique(classes)) < len(classes) else np.nan


def inside_figures(study: Results, arms: Sequence[str]) -> Plots:
    """What methods believe of the labels in the base setting: curves of the arms, then of each arm one trial's arrays.

    The trial is that of the lowest replicate that did not diverge.  What an arm did not record is left out.  Where many
    arms have histograms, one figure shows the last of each: ask for a few arms to see their epochs.
    """
    base = in_base(study.trials[study.trials["arm"].isin(arms)])
    epochs = study.epochs([metric for metrics in ORACLE_METRICS.values() for metric in metrics])
    epochs = epochs[epochs["trial"].isin(base["trial"])]
    epochs["arm"] = pd.Categorical(epochs["arm"], list(study.plan.arms), ordered=True)
    plots = Plots()
    for kind, metrics in ORACLE_METRICS.items():
        rows = epochs[epochs["metric"].isin(metrics)]
        if len(rows):
            recorded = [metric for metric in metrics if (rows["metric"] == metric).any()]
            if rows["arm"].nunique() > MOST_ARMS_TOGETHER:
                figures = multiples_by_metric(rows, recorded, arm_looks(study), "arm", kind)
            else:
                figures = Plots({kind: metric_curves(rows, recorded, "arm", arm_looks(study))})
            for name, plot in figures.items():
                plots[name] = Plot(plot.figure, plot.drawn, plot.caption + ORACLE_SENTENCE)
    finished = base[base["status"] == "ok"].sort_values("replicate", kind="stable")
    of_errors = study.arrays(finished["trial"].tolist(), [RELIABILITY, FIRST])
    if len(of_errors):
        order = of_errors["arm"].map(list(study.plan.arms).index)
        plots["errors"] = error_reliability(of_errors.loc[order.sort_values(kind="stable").index], arm_looks(study))
    plots.update(_of_one_trial(study, finished))
    plots.update(_embeddings_by_network(study, arms))
    return plots


def _of_one_trial(study: Results, finished: pd.DataFrame) -> Plots:
    """What one trial of each arm kept: histograms and transition matrices.  `finished`: its trials, by replicate."""
    plots = Plots()
    firsts = finished.groupby("arm").head(1).set_index("arm")
    arrays = study.arrays(firsts["trial"].tolist())
    recorded_by = {
        quantity: [arm for arm in study.plan.arms if has_histograms(arrays[arrays["arm"] == arm], quantity)]
        for quantity in QUANTITIES
    }
    for quantity, of_many in recorded_by.items():
        if len(of_many) > MOST_ARMS_TOGETHER:
            methods = {arm: str(firsts.loc[arm, "method"]) for arm in of_many}
            plots[f"{quantity}-arms"] = last_histograms(arrays, quantity, methods)
    for arm in (arm for arm in study.plan.arms if arm in firsts.index):
        trial, of_arm = firsts.loc[arm], arrays[arrays["arm"] == arm]
        kinds = set(of_arm["name"])
        drawn = {
            f"{quantity}-{arm}": label_histograms(of_arm, quantity, str(trial["method"]))
            for quantity, of_few in recorded_by.items()
            if arm in of_few and len(of_few) <= MOST_ARMS_TOGETHER
        }
        if "train/transition" in kinds and isinstance(trial["transition"], str):  # else the truth is not known
            drawn[f"transition-{arm}"] = transitions(of_arm, json.loads(str(trial["transition"])))
        for name, plot in drawn.items():
            caption = f"Arm: {readable(arm)}, replicate {trial['replicate']}. {plot.caption}"
            plots[name] = Plot(plot.figure, plot.drawn, caption)
    return plots


def _embeddings_by_network(study: Results, arms: Sequence[str]) -> Plots:
    """Of each arm the features of its first replicate that has kept some, with a row for each network of the study."""
    finished = study.trials[study.trials["arm"].isin(arms) & (study.trials["status"] == "ok")]
    alike = finished[finished["setting"].map(lambda setting: set(setting) <= {"network"}).astype(bool)]
    arrays = study.arrays(alike["trial"].tolist(), EMBEDDINGS)
    kept = alike[alike["trial"].isin(arrays["trial"])].sort_values("replicate", kind="stable")
    plots = Plots()
    for arm in (arm for arm in study.plan.arms if (kept["arm"] == arm).any()):
        of_arm = kept[kept["arm"] == arm]
        of_arm = (
            of_arm[of_arm["replicate"] == of_arm["replicate"].iloc[0]].drop_duplicates("network").set_index("network")
        )
        networks = [name for name in study.levels("network") if name in of_arm.index] or list(of_arm.index)
        rows = {name: arrays[arrays["trial"] == of_arm.loc[name, "trial"]] for name in networks}
        first = of_arm.loc[networks[0]]
        plot = embeddings(rows, class_names(first["class_names"], MOST_CLASSES))
        caption = f"Arm: {readable(arm)}, replicate {first['replicate']}. {plot.caption}"
        plots[f"embeddings-{arm}"] = Plot(plot.figure, plot.drawn, caption)
    return plots
