"""Several annotators of a user's images: one label made of theirs, and what is told of each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from lnl.labelling.annotators import Agreement, agreement, confusions, crowdlab, dawid_skene

By = Literal["dawid_skene", "crowdlab"]
CONSENSUS: dict[By, str] = {"dawid_skene": "Dawid and Skene", "crowdlab": "CROWDLAB"}  # in words
ANNOTATORS, CONFUSIONS = "annotators.csv", "confusions.csv"


@dataclass(frozen=True)
class Confused:
    """What an annotator confuses most often."""

    of: str  # the class
    called: str  # what it is called
    times: int
    share: float  # of the images of that class that this annotator has labelled


@dataclass(frozen=True)
class Annotator:
    """One annotator, compared with the consensus."""

    name: str  # of the column
    labels: int
    agreement: float  # share of these that are the consensus
    confused: Confused | None  # None: nothing


@dataclass(frozen=True, eq=False)
class Crowd:
    """All annotators, and the label that is made of theirs."""

    given: np.ndarray  # (N,) int64, -1 where nobody has labelled an image
    agreement: Agreement
    annotators: tuple[Annotator, ...]
    counts: np.ndarray  # (A, K, K) int64: images of a class (row, by consensus) that an annotator calls each (column)
    class_names: tuple[str, ...]
    by: By  # how one label is made of theirs

    def sentence(self) -> str:
        """How far the annotators agree, and what is made of their labels."""
        agreed = self.agreement
        if not agreed.images:
            return f"{len(self.annotators)} annotators, who have no image in common: each image has the label it has."
        return (
            f"{len(self.annotators)} annotators: {agreed.images:,} images have two labels or more, {agreed.share:.1%} "
            f"of the pairs are equal, Krippendorff's alpha is {agreed.alpha:.2f}.  What is judged is one label of "
            f"each image, the consensus by {CONSENSUS[self.by]}."
        )

    def annotators_table(self) -> pa.Table:
        """One row for each annotator."""
        return pa.table(
            {
                "annotator": [annotator.name for annotator in self.annotators],
                "labels": [annotator.labels for annotator in self.annotators],
                "agreement": [annotator.agreement for annotator in self.annotators],
                "confused_class": [annotator.confused and annotator.confused.of for annotator in self.annotators],
                "confused_as": [annotator.confused and annotator.confused.called for annotator in self.annotators],
                "confused_times": [annotator.confused and annotator.confused.times for annotator in self.annotators],
                "confused_share": [annotator.confused and annotator.confused.share for annotator in self.annotators],
            }
        )

    def confusions_table(self) -> pa.Table:
        """One row for each annotator, class and what that is called, the most frequent confusions first."""
        who, true, called = np.nonzero(self.counts)
        times = self.counts[who, true, called]
        shares = times / self.counts.sum(-1)[who, true]
        order = np.lexsort((-times, true == called, who))
        names = np.array(self.class_names, object)
        return pa.table(
            {
                "annotator": [self.annotators[number].name for number in who[order]],
                "class": pa.array(names[true[order]], pa.string()),
                "called": pa.array(names[called[order]], pa.string()),
                "times": times[order],
                "share": shares[order],
            }
        )


def crowd_of(
    columns: Mapping[str, np.ndarray], class_names: Sequence[str], class_probabilities: np.ndarray | None = None
) -> Crowd:
    """The consensus of several columns of labels (N,), and each of them compared with it.

    By Dawid and Skene, or with a classifier's out-of-sample probabilities (N, K) by CROWDLAB.
    """
    votes = np.stack([*columns.values()], 1)
    if class_probabilities is None:
        labels = dawid_skene(votes, len(class_names)).labels
    else:
        labels = crowdlab(votes, class_probabilities)
    counts = confusions(votes, labels, len(class_names))
    return Crowd(
        labels,
        agreement(votes),
        tuple(_annotators([*columns], counts, class_names)),
        counts,
        tuple(class_names),
        "dawid_skene" if class_probabilities is None else "crowdlab",
    )


def _annotators(names: Sequence[str], counts: np.ndarray, class_names: Sequence[str]) -> Iterator[Annotator]:
    for name, matrix in zip(names, counts, strict=True):
        total, right = int(matrix.sum()), int(np.trace(matrix))
        wrong = matrix - np.diag(np.diag(matrix))
        true, called = divmod(int(wrong.argmax()), len(class_names))
        times = int(wrong[true, called])
        share = times / max(int(matrix[true].sum()), 1)
        confused = Confused(class_names[true], class_names[called], times, share) if times else None
        yield Annotator(name, total, right / total if total else float("nan"), confused)
