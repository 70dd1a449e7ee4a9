"""What detectors and the like say of images, as tables with a row for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute

from lnl.labelling.problem import Suspicion
from lnl.review.images import ImageSet
from lnl.review.items import Items
from lnl.review.outputs import About, named
from lnl.review.page import Review

NEIGHBOURS = 5  # that are evidence for or against a label


@dataclass(frozen=True, eq=False)
class Ranking:
    """Images in the order in which people should look at them."""

    order: np.ndarray  # (N,) positions, the first to look at first
    ranks: np.ndarray  # (N,) from 1 on; 0: not ranked


def ranking(scores: np.ndarray) -> Ranking:
    """By scores (N,), the largest first, of equal ones the first; those of -inf come last and have no rank."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores), np.int64)
    ranks[order] = np.arange(1, len(scores) + 1)
    return Ranking(order, np.where(np.isneginf(scores), 0, ranks))


def on_recall(recall: float | None) -> tuple[str, ...]:
    """What to tell of neighbours that were sought approximately: nothing where the search was exact."""
    if recall is None:
        return ()
    return (f"Neighbours are approximate: {recall:.1%} of the nearest were found, by a sample.",)


def judged_table(items: Items, given: np.ndarray, suspicion: Suspicion) -> pa.Table:
    """Of a table of errors what decisions are compared with: given labels (N,) and how likely each is wrong."""
    judged = {"given": named(given, items.class_names), "probability": _numbers(suspicion.probability)}
    return pa.table({**_images(items), **judged})


def errors_table(items: Items, given: np.ndarray, suspicion: Suspicion, neighbours: np.ndarray) -> pa.Table:
    """Given labels (N,) with what a detector says of them, the most suspect first; neighbours (N, k)."""
    ranked = ranking(suspicion.score)
    table = pa.table(
        {
            **_images(items),
            "given": named(given, items.class_names),
            "proposed": named(suspicion.proposed, items.class_names),
            "probability": _numbers(suspicion.probability),
            "rank": pa.array(ranked.ranks, mask=ranked.ranks == 0),
            "score": _numbers(suspicion.score),
            "flagged": suspicion.flagged,
            **_evidence(neighbours, given, items.class_names),
        }
    )
    return table.take(pa.array(ranked.order))


def labels_table(
    items: Items, given: np.ndarray, labels: np.ndarray, class_probabilities: np.ndarray, neighbours: np.ndarray
) -> pa.Table:
    """Labels (N,), -1 where none is sure enough, with the probabilities (N, K) they come from; in the images' order."""
    return pa.table(
        {
            **_images(items),
            "given": named(given, items.class_names),
            "label": named(labels, items.class_names),
            **_likeliest(class_probabilities, items.class_names),
            **_evidence(neighbours, given, items.class_names),
            "probabilities": pa.FixedSizeListArray.from_arrays(
                pa.array(class_probabilities.ravel(), from_pandas=True), class_probabilities.shape[1]
            ).cast(pa.list_(pa.float64())),
        }
    )


def next_table(
    items: Items,
    given: np.ndarray,
    now: np.ndarray,
    chosen: np.ndarray,
    class_probabilities: np.ndarray,
    neighbours: np.ndarray,
) -> pa.Table:
    """All images, those to label next, at positions (n,), first and with a rank; neighbours (N, k).

    `given`: the labels (N,) at first; `now`: with those that were decided since, which neighbours show.
    """
    ranks = np.zeros(len(given), np.int64)
    ranks[chosen] = np.arange(1, len(chosen) + 1)
    table = pa.table(
        {
            **_images(items),
            "given": named(given, items.class_names),
            **_likeliest(class_probabilities, items.class_names),
            "rank": pa.array(ranks, mask=ranks == 0),
            **_evidence(neighbours, now, items.class_names),
        }
    )
    return table.take(pa.array(np.lexsort((ranks, ranks == 0))))


def review_of(about: About, table: pa.Table, images: ImageSet, facts: tuple[str, ...]) -> Review:
    """What the page shows of a table: the rows with a rank."""
    table = table.filter(pyarrow.compute.is_valid(table["rank"]))
    numbers = {name: number for number, name in enumerate(about.class_names)}

    def classes(texts: pa.ChunkedArray) -> np.ndarray:
        return np.array([numbers.get(text, -1) for text in texts.to_pylist()], np.int64)

    width = len(table["neighbours"][0]) if len(table) else 0
    return Review(
        title=f"{Path(about.images).name}: {', '.join(about.columns)}",
        facts=facts,
        class_names=about.class_names,
        index=table["index"].to_numpy(),
        files=table["file"].to_pylist(),
        given=classes(table["given"]),
        proposed=classes(table["proposed"]),
        probability=_errors(about, table),
        neighbours=_flat(table["neighbours"]).to_numpy().reshape(-1, width),
        neighbour_labels=classes(_flat(table["neighbour_labels"])).reshape(-1, width),
        images=None if images.are_vectors else images,
    )


def _errors(about: About, table: pa.Table) -> np.ndarray:
    """The probability that a label is wrong, NaN where there is none."""
    if about.kind != "errors":
        return np.full(len(table), np.nan)
    return np.array(table["probability"].cast(pa.float64()).to_numpy(zero_copy_only=False))


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pyarrow.compute.list_flatten(column)


def _images(items: Items) -> dict[str, pa.Array]:
    return {"index": pa.array(np.arange(len(items.images.files))), "file": pa.array(items.images.files, pa.string())}


def _likeliest(class_probabilities: np.ndarray, class_names: Sequence[str]) -> dict[str, pa.Array]:
    """The likeliest class of each image (N, K) and its probability; null where probabilities are not known."""
    best = class_probabilities.argmax(1)
    return {
        "proposed": named(np.where(np.isnan(class_probabilities).any(1), -1, best), class_names),
        "probability": _numbers(class_probabilities[np.arange(len(best)), best]),
    }


def _numbers(values: np.ndarray) -> pa.Array:
    """Finite numbers, null in place of others."""
    return pa.array(values.astype(np.float64), mask=~np.isfinite(values))


def _evidence(neighbours: np.ndarray, given: np.ndarray, class_names: Sequence[str]) -> dict[str, pa.Array]:
    """Neighbours (N, k) and the labels that these were given, of all images (M,); without those that have none."""
    count, width = neighbours.shape
    labels = named(np.where(neighbours >= 0, given[neighbours], -1).ravel(), class_names)
    ends = np.arange(count + 1) * width
    return {
        "neighbours": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(neighbours.ravel())),
        "neighbour_labels": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), labels),
    }
