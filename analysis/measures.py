"""What is measured of a trial: which way a metric is better, how it is shown, and its value under a selection rule.

A metric is named "split/name", as epochs have it.  Shares, such as accuracies, are stored as fractions and shown in
percent, their differences in percentage points; areas under curves and all others are shown as they are.
"""

from __future__ import annotations

import pandas as pd

from lnl.storage.outcomes import ACCURACY as ACCURACY
from lnl.storage.outcomes import diverged

SHARES = ("accuracy", "precision", "recall", "memorised", "refined_noise")  # ends of metrics that are shares
AREAS = ("selection_auc", "average_precision")  # ends of metrics that are in [0, 1], and no shares
EPOCHS = {"last": 1, "last10": 10}  # selection rule -> how many last epochs it reads
WORSE = ("loss", "cross_entropy", "calibration_error", "transition_error", "memorised", "refined_noise")  # if larger


def is_share(metric: str) -> bool:
    """Whether a metric is a fraction that is shown in percent."""
    return metric.endswith(SHARES) and not metric.endswith(AREAS)


def is_bounded(metric: str) -> bool:
    """Whether a metric lies in [0, 1]."""
    return metric.endswith((*SHARES, *AREAS))


def better(metric: str) -> int:
    """1 where larger is better, -1 for losses, errors and what is memorised."""
    return -1 if metric.endswith(WORSE) else 1


def scale(metric: str) -> float:
    """By what a metric is multiplied where it is shown."""
    return 100.0 if is_share(metric) else 1.0


def under_rule(trials: pd.DataFrame, curves: pd.DataFrame, metric: str, selection: str) -> pd.Series:
    """A metric of each trial under a selection rule, aligned with `trials`; NaN where it was not recorded there.

    `curves`: trial, epoch, metric and value, of this metric and of the test accuracy, by which epochs are chosen.  A
    trial that diverged has none: what it would count as is known of accuracies alone.
    """
    chosen = _chosen_epochs(trials[~diverged(trials)], curves[curves["metric"] == ACCURACY], selection)
    of_metric = curves.loc[curves["metric"] == metric, ["trial", "epoch", "value"]]
    values = chosen.merge(of_metric, on=["trial", "epoch"], how="left")
    lacking = set(values.loc[values["value"].isna(), "trial"])  # a mean is over all chosen epochs
    means = values[~values["trial"].isin(lacking)].groupby("trial")["value"].mean()
    return trials["trial"].map(means.to_dict()).astype(float)


def _chosen_epochs(trials: pd.DataFrame, accuracies: pd.DataFrame, selection: str) -> pd.DataFrame:
    """Where a selection rule reads each of these trials: trial, epoch.  `accuracies`: test accuracy by trial, epoch."""
    if selection == "val_selected":
        picked = trials[["trial", "epoch_val_selected"]].drop_duplicates("trial").dropna()
        return picked.set_axis(["trial", "epoch"], axis=1).astype({"epoch": int})
    rows = accuracies[accuracies["trial"].isin(trials["trial"])].drop_duplicates(["trial", "epoch"])
    rows = rows.dropna(subset="value").sort_values(["trial", "epoch"], ignore_index=True)
    by_trial = rows.groupby("trial")
    chosen = rows.loc[by_trial["value"].idxmax()] if selection == "best_test" else by_trial.tail(EPOCHS[selection])
    return chosen[["trial", "epoch"]]
