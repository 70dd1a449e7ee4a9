"""The test set class by class, in the base setting: what trials predict there, and which given labels they suspect."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.results import Results, in_base

CONFUSION, RELIABILITY, ERROR = "test/confusion", "test/reliability", "test/calibration_error"
MOST_CLASSES = 20  # that figures show; of more, tables have what is most confused


@dataclass(frozen=True)
class TestSet:
    """What the trials of the base setting predict at their last epoch, all on test sets of the same classes."""

    __test__ = False  # for pytest, which takes the name for that of a test

    classes: tuple[str, ...]  # their names, in the order of the labels
    rows: pd.DataFrame  # one per trial: trial, arm (ordered), replicate, confusion (K, K), reliability (3, M), error
    left_out: tuple[str, ...] = ()  # arms on data of other classes

    @property
    def arms(self) -> list[str]:
        """The arms that have a trial, in declared order."""
        return [str(arm) for arm in self.rows["arm"].cat.categories]

    def of(self, arm: str) -> pd.DataFrame:
        """The rows of one arm."""
        return self.rows[self.rows["arm"] == arm]

    def confusion(self, arm: str) -> np.ndarray:
        """P(predicted | true) of an arm, all replicates together: (K, K), NaN for a class without test images."""
        counts = np.sum(self.of(arm)["confusion"].tolist(), axis=0)
        return _shares(counts, counts.sum(axis=-1, keepdims=True))

    def accuracy(self) -> pd.DataFrame:
        """Accuracy of each arm on each class: arm, class, images, n, mean, low, high."""
        frames = []
        for arm in self.arms:
            counts = np.stack(self.of(arm)["confusion"].tolist())  # (n, K, K)
            of_class = counts.sum(axis=-1)
            estimate = statistics.mean(_shares(np.diagonal(counts, axis1=-2, axis2=-1), of_class).T)
            known = {"mean": estimate.value, "low": estimate.low, "high": estimate.high}
            images = of_class.mean(axis=0)
            frames.append(
                pd.DataFrame({"arm": arm, "class": self.classes, "images": images, "n": len(counts), **known})
            )
        return pd.concat(frames, ignore_index=True)

    def bins(self, arm: str) -> pd.DataFrame:
        """Test images of an arm by their confidence, all replicates together: images, accuracy, confidence of a bin."""
        stacked = np.stack(self.of(arm)["reliability"].tolist())  # (n, 3, M)
        images, right = stacked[:, 0].sum(axis=0), stacked[:, 1].sum(axis=0)
        total = np.nansum(stacked[:, 0] * stacked[:, 2], axis=0)
        filled = images > 0
        columns = {"images": images, "accuracy": _shares(right, images), "confidence": _shares(total, images)}
        return pd.DataFrame(columns)[filled].assign(arm=arm)

    def calibration(self) -> pd.DataFrame:
        """Of each arm: arm, n, and means over replicates of accuracy, confidence and calibration error (low, high)."""
        rows = []
        for arm in self.arms:
            own = self.of(arm)
            error = statistics.mean(own["error"].to_numpy(dtype=float))
            images, right, confidence = np.moveaxis(np.stack(own["reliability"].tolist()), 1, 0)
            rows.append(
                {
                    "arm": arm,
                    "n": len(own),
                    "accuracy": float(right.sum() / images.sum()),
                    "confidence": float(np.nansum(images * confidence) / images.sum()),
                    "error": float(error.value),
                    "low": float(error.low),
                    "high": float(error.high),
                }
            )
        return pd.DataFrame(rows)

    def confused(self) -> pd.DataFrame:
        """Pairs of classes that are taken for each other, the most frequent of each arm first: arm, true, predicted,
        share of the images of the true class."""
        frames = []
        for arm in self.arms:
            share = np.nan_to_num(self.confusion(arm))
            np.fill_diagonal(share, 0.0)
            true, predicted = np.unravel_index(np.argsort(-share, axis=None, kind="stable"), share.shape)
            frame = pd.DataFrame({"true": true, "predicted": predicted, "share": share[true, predicted]})
            frames.append(frame[frame["share"] > 0].assign(arm=arm))
        return pd.concat(frames, ignore_index=True)


def _shares(counts: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Quotients, NaN where there is nothing to divide by."""
    return np.divide(counts, of, out=np.full(np.broadcast(counts, of).shape, np.nan), where=of > 0)


def test_set(study: Results) -> TestSet | None:
    """What was measured on the test set in the base setting; None where results are of an earlier version.

    Trials that diverged predict nothing, and are left out.
    """
    base = in_base(study.trials[study.trials["status"] == "ok"])
    arrays = study.arrays(base["trial"].tolist(), [CONFUSION, RELIABILITY])
    errors = study.epochs([ERROR])
    if arrays.empty or errors.empty:
        return None
    wide = arrays.drop_duplicates(["trial", "arm", "name"]).pivot(
        index=["trial", "arm"], columns="name", values="array"
    )
    wide = wide.rename(columns={CONFUSION: "confusion", RELIABILITY: "reliability"}).dropna()
    error = errors.drop_duplicates(["trial", "arm"], keep="last").set_index(["trial", "arm"])["value"].rename("error")
    rows = base[["trial", "arm", "replicate", "class_names"]].merge(wide.join(error), on=["trial", "arm"])
    names = [
        class_names(text, len(counts)) for text, counts in zip(rows["class_names"], rows["confusion"], strict=True)
    ]
    same = [each == names[0] for each in names]
    other = rows.loc[~np.array(same), "arm"].unique()
    rows = rows[same]
    arms = [arm for arm in study.plan.arms if arm in set(rows["arm"])]
    rows = rows.assign(arm=pd.Categorical(rows["arm"], arms, ordered=True)).drop(columns="class_names")
    return TestSet(names[0], rows.sort_values(["arm", "replicate"], ignore_index=True), tuple(map(str, other)))


test_set.__test__ = False  # type: ignore[attr-defined]  # nor is it a test


def class_names(text: str | None, classes: int) -> tuple[str, ...]:
    """The names of so many classes as a trial's row has them; their numbers where an older one has none."""
    return tuple(json.loads(text)) if isinstance(text, str) else tuple(map(str, range(classes)))


def suspects(study: Results, arm: str) -> pd.DataFrame:
    """What the first trial of an arm that has kept it believes of the given labels; empty where none has.

    Columns: those of `Results.beliefs`; `replicate`; and the labels' names as `given_name`, `true_name` and
    `proposed_name`: the method's own proposal, else what it predicts.
    """
    kept = in_base(study.trials_with("beliefs"))
    own = kept[kept["arm"] == arm].sort_values("replicate", kind="stable")
    if own.empty:
        return pd.DataFrame()
    first = own.iloc[0]
    rows = study.beliefs(str(first["trial"]))
    names = dict(enumerate(class_names(first["class_names"], int(first["classes"]))))
    named = {
        "given_name": rows["given"].map(names),
        "true_name": rows["true"].map(names),
        "proposed_name": rows["proposed"].fillna(rows["predicted"]).map(names),
    }
    return rows.assign(replicate=first["replicate"], **named)
