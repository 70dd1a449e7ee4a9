"""Tables of the test set class by class: calibration, what is confused; and the given labels that arms suspect."""

from __future__ import annotations

import pandas as pd

from analysis import statistics
from analysis.classes import TestSet, suspects
from analysis.results import Results
from analysis.tables.table import Table, interval, percent
from analysis.words import readable

MOST_SUSPECTS = 50  # of an arm
MOST_PAIRS = 10  # of an arm
RANKED_BY = {  # in words
    "clean": "its probability, or weight, that the label is right",
    "coefficient": "how much of the target is the given label",
    "loss": "its loss of the given label",
    "given_probability": "the probability that its prediction gives to the given label, as it tells nothing more",
}


def calibration_table(measured: TestSet) -> Table:
    """How sure each arm is, and how often it is right."""
    frame = measured.calibration()
    rows = [
        [
            readable(row["arm"]),
            str(row["n"]),
            percent(row["accuracy"]),
            percent(row["confidence"]),
            percent(row["error"]),
            interval(row["low"], row["high"]),
        ]
        for row in statistics.records(frame)
    ]
    header = ["arm", "n", "accuracy (%)", "mean confidence (%)", "calibration error (points)", "95 % interval"]
    caption = (
        "Calibration on the test set at the last epoch, base setting, means over replicates that did not diverge. "
        "Calibration error: the expected calibration error of Guo et al. (2017) with 15 equal bins of confidence."
    )
    return Table(caption, header, rows, frame)


def confused_table(measured: TestSet) -> Table:
    """The pairs of classes that each arm confuses most."""
    frame = measured.confused().groupby("arm", sort=False).head(MOST_PAIRS)
    names = measured.classes
    rows = [
        [readable(row["arm"]), names[row["true"]], names[row["predicted"]], percent(row["share"])]
        for row in statistics.records(frame)
    ]
    caption = (
        f"The {MOST_PAIRS} most frequent confusions of each arm on the test set at the last epoch, base setting: the "
        "share of the images of a class that is predicted as the other, all replicates together."
    )
    return Table(caption, ["arm", "true class", "predicted as", "share (%)"], rows, frame)


def hardest_table(measured: TestSet) -> Table:
    """The classes on which arms are worst, where there are too many to show all."""
    frame = measured.accuracy().sort_values("mean", kind="stable").groupby("arm", sort=False).head(MOST_PAIRS)
    frame = frame.sort_values("arm", key=lambda arms: arms.map(measured.arms.index), kind="stable")
    rows = [
        [readable(row["arm"]), row["class"], str(row["n"]), percent(row["mean"]), interval(row["low"], row["high"])]
        for row in statistics.records(frame)
    ]
    caption = (
        f"The {MOST_PAIRS} classes of lowest accuracy of each arm, on the test set at the last epoch, base setting."
    )
    return Table(caption, ["arm", "class", "n", "accuracy (%)", "95 % interval"], rows, frame)


def suspects_table(study: Results, arm: str) -> Table | None:
    """The given labels that an arm suspects most; None where no trial of it has kept its beliefs."""
    rows = suspects(study, arm)
    if rows.empty:
        return None
    top = rows.head(MOST_SUSPECTS)
    ranked_by, knows = str(rows["ranked_by"].iloc[0]), bool(rows["true"].notna().any())
    header = ["image", "given label", *(["true label"] * knows), "rather", ranked_by.replace("_", " ")]
    cells = [
        [
            row["file"] if isinstance(row["file"], str) else f"training image {row['index']}",
            row["given_name"],
            *([row["true_name"] if isinstance(row["true_name"], str) else "not known"] * knows),
            row["proposed_name"],
            f"{row[ranked_by]:.3g}",
        ]
        for row in statistics.records(top)
    ]
    caption = (
        f"The {len(top)} of {len(rows)} given labels that {readable(arm)} suspects most (replicate "
        f"{rows['replicate'].iloc[0]}), in order of {RANKED_BY[ranked_by]}. Rather: the label that it proposes, else "
        "the one that it predicts."
    )
    return Table(caption + _oracle_sentence(rows, top) * knows, header, cells, top)


def _oracle_sentence(rows: pd.DataFrame, top: pd.DataFrame) -> str:
    wrong, among = (int((part["given"] != part["true"]).sum()) for part in (rows, top))
    return f" {among} of these {len(top)} are wrong, of all {len(rows)} {wrong}: an oracle, it needs the true labels."
