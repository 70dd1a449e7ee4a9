"""Labels for all images of a user from a few, and which to label next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from lnl.labelling.acquisition import ROUNDS, enough, next_to_label
from lnl.labelling.propagation import Graph, propagated
from lnl.review import decisions, tables
from lnl.review.features import Tell
from lnl.review.items import Items
from lnl.storage.atomic import write_atomically
from lnl.storage.files import open_file


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labels for N images."""

    table: pa.Table  # as `tables.labels_table` makes it
    coverage: float  # share of the images without a given label that have one now
    unreached: int  # images that no label has reached
    recall: float | None  # of the neighbours' search, where that is approximate


def label_all(items: Items, confidence: float, seed: int, tell: Tell) -> Labelled:
    """Spread the given labels of one column over the graph of neighbours.

    An image has no label where none has reached it, or its probability is below `confidence`.
    """
    (given,) = items.columns.values()
    joined = Graph.of(items.features, lambda done, of: tell("neighbours", done, of), seed=seed)
    made = propagated(joined, given, len(items.class_names), confidence=confidence)
    shown = joined.index[:, : tables.NEIGHBOURS]
    table = tables.labels_table(items, given, made.label, made.probabilities, shown)
    unreached = int(np.isnan(made.probabilities[:, 0]).sum())
    return Labelled(table, made.coverage, unreached, joined.recall)


def with_decisions(items: Items, given: np.ndarray, out: Path) -> np.ndarray:
    """Given labels (N,) with what reviewers have decided in a folder since, where they agree."""
    numbers = {name: number for number, name in enumerate(items.class_names)}
    places = {file: place for place, file in enumerate(items.images.files)}
    labels = given.copy()
    for file, standing in decisions.current(decisions.read(out).decisions).items():
        if file in places and standing.label in numbers:
            labels[places[file]] = numbers[standing.label]
    return labels


@dataclass(frozen=True, eq=False)
class Next:
    """The images to label next."""

    table: pa.Table  # as `tables.next_table` makes it
    labelled: int  # images with a label, those that were decided since included
    decided: int  # of these by reviewers
    chosen: int
    settled: bool | None  # whether more labels change little; None: too few rounds to say


def choose(items: Items, sampler: str, count: int, out: Path, seed: int, tell: Tell) -> Next:
    """Choose images to label next, by the given labels of one column and what was decided in the folder `out` since.

    The labels that have spread so far are kept there, so that later rounds can tell whether they still change.
    """
    (given,) = items.columns.values()
    now = with_decisions(items, given, out)
    joined = Graph.of(items.features, lambda done, of: tell("neighbours", done, of), seed=seed)
    classes = len(items.class_names)
    spread = propagated(joined, now, classes)
    chosen = next_to_label(sampler, items.features, joined, now, classes, count, seed)
    rounds = _rounds(out / "rounds.npz", spread.label, int((now >= 0).sum()))
    table = tables.next_table(items, given, now, chosen, spread.probabilities, joined.index[:, : tables.NEIGHBOURS])
    settled = enough(rounds) if len(rounds) > ROUNDS else None
    return Next(table, int((now >= 0).sum()), int((now != given).sum()), len(chosen), settled)


def _rounds(path: Path, labels: np.ndarray, labelled: int) -> Sequence[np.ndarray]:
    """The labels (N,) of the last rounds, with this one, which is kept; a call without new labels is no round."""
    rounds, counts = np.empty((0, len(labels)), np.int64), np.empty(0, np.int64)
    with suppress(OSError, ValueError, KeyError), open_file(path) as file, np.load(file) as stored:
        if stored["labels"].shape[1:] == labels.shape:
            rounds, counts = stored["labels"], stored["counts"]
    if not len(counts) or counts[-1] != labelled:
        rounds = np.concatenate([rounds, labels[None]])[-ROUNDS - 1 :]
        counts = np.append(counts, labelled)[-ROUNDS - 1 :]
        write_atomically(path, partial(_save, rounds, counts))
    return list(rounds)


def _save(rounds: np.ndarray, counts: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, labels=rounds, counts=counts)
