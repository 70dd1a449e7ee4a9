"""How attempts ended: which failures are outcomes of the method, and which accuracies count."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

ACCURACY = "test/accuracy"  # what contrasts are judged on, unless they say otherwise
FAILURES_THAT_ARE_OUTCOMES = ("nan",)  # the method's own doing: never retried, never dropped
CLASSES = {"digits": 10, "cifar10": 10, "stl10": 10, "cifar100": 100}  # for rows that were written without theirs


def is_outcome(trials: pd.DataFrame) -> pd.Series:
    """True where a trial is finished: it trained to its end, or the method itself diverged."""
    return (trials["status"] == "ok") | trials["failure_class"].isin(FAILURES_THAT_ARE_OUTCOMES)


def diverged(trials: pd.DataFrame) -> pd.Series:
    """Trials whose method diverged: outcomes, not accidents."""
    return trials["failure_class"].isin(FAILURES_THAT_ARE_OUTCOMES)


def accuracies(trials: pd.DataFrame, rule: str) -> pd.Series:
    """Test accuracy of each trial under a selection rule, NaN where it gives none; a diverged trial counts as chance.

    Chance is 1/K of the K classes of the trial's data set.  Rows of earlier versions have no `classes`: theirs come
    from their transition matrix, which a trial that diverged in its first epoch lacks, else from the other rows, where
    those of the same data set agree in theirs, else from the data set's name.  Where nothing of that is known (all
    trials on somebody's own data set diverged in their first epoch) the accuracy is NaN: such a replicate is left out,
    and the sentences that count those say so.
    """
    scores = trials[f"accuracy_{rule}"].astype(float).to_numpy(copy=True)
    lost = diverged(trials).to_numpy(bool)
    if lost.any():
        scores[lost] = 1 / _classes(trials[lost], trials)
    return pd.Series(scores, trials.index)


def _classes(trials: pd.DataFrame, among: pd.DataFrame) -> np.ndarray:
    """How many classes the data set of each trial has, NaN where unknown; `among`: rows from which it may be known."""
    own = [_classes_of(*row) for row in zip(trials["classes"], trials["transition"], strict=True)]
    of_name: dict[str, float] = dict(CLASSES)
    for name in set(trials.loc[np.isnan(own), "dataset"]):
        rows = among[among["dataset"] == name].drop_duplicates(["data_hash", "classes"])
        counts = {_classes_of(*row) for row in zip(rows["classes"], rows["transition"], strict=True)}
        known = {count for count in counts if not np.isnan(count)}
        if known:
            of_name[name] = known.pop() if len(known) == 1 else np.nan
    named = [of_name.get(name, np.nan) for name in trials["dataset"]]
    return np.where(np.isnan(own), named, own)


def _classes_of(classes: float, transition: str | None) -> float:
    """The number of classes of one row, from its matrix only if need be: one of 100 classes takes a millisecond."""
    if not pd.isna(classes):
        return float(classes)
    return float(len(json.loads(transition))) if isinstance(transition, str) else np.nan


def counting(suggestions: pd.DataFrame, budget: int) -> pd.DataFrame:
    """Of one search's suggestions those that count: the first `budget` by number that are complete or pruned."""
    return suggestions[suggestions["state"].isin(["complete", "pruned"])].sort_values("number").head(budget)


def selection_rules(test: Sequence[float], validation: Sequence[float] | None = None) -> dict[str, float | int | None]:
    """The four selection rules from per-epoch accuracies, in epoch order.

    `last`: the last epoch.  `last10`: mean of the last ten.  `val_selected`: the first epoch with the best validation
    accuracy (null without a validation set).  `best_test`: the maximum over test accuracies, an oracle.
    """
    scores = np.asarray(test, dtype=float)
    if len(scores) == 0:
        return {}
    picked = None
    held = np.asarray([] if validation is None else validation, dtype=float)
    if len(held) not in (0, len(scores)):
        raise ValueError(f"{len(scores)} test accuracies but {len(held)} of validation: give one of each an epoch.")
    if not np.isnan(held).all():
        picked = int(np.nanargmax(held))
    return {
        "accuracy_last": float(scores[-1]),
        "accuracy_last10": float(scores[-10:].mean()),
        "accuracy_val_selected": None if picked is None else float(scores[picked]),
        "epoch_val_selected": None if picked is None else picked + 1,
        "accuracy_best_test": float(np.nanmax(scores)) if not np.isnan(scores).all() else float("nan"),
    }
