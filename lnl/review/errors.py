"""Wrong labels among those of a user: a detector's judgement, and what reviewers have decided since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from lnl.functional import neighbours
from lnl.labelling.calibration import after_reviews
from lnl.labelling.problem import FIRST, Detector, Labels, Suspicion
from lnl.review import crowd, decisions, outputs, page, tables
from lnl.review.crowd import Crowd
from lnl.review.decisions import Decision
from lnl.review.features import Tell
from lnl.review.items import Items
from lnl.review.outputs import About, Checked

BANDS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of probabilities, in which reviewed labels are compared with what was expected


@dataclass(frozen=True)
class Band:
    """Reviewed labels whose probability of an error, before they were reviewed, lies between two ends."""

    low: float
    high: float
    checked: Checked


@dataclass(frozen=True, eq=False)
class Found:
    """What is known of N given labels."""

    given: np.ndarray  # (N,) int64, -1: none
    crowd: Crowd | None  # where several annotators have given them
    suspicion: Suspicion  # its probabilities calibrated on what was reviewed
    checked: Checked | None  # what was reviewed, compared with the probabilities before
    bands: tuple[Band, ...]  # likewise, by probability
    notes: tuple[str, ...]  # sentences on decisions that do not count, and on neighbours that are approximate
    table: pa.Table  # as `tables.errors_table` makes it


def find(
    items: Items, detector: Detector, out: Path, seed: int, tell: Tell, consensus: crowd.By = "dawid_skene"
) -> Found:
    """Judge the given labels of images, calibrated on the decisions in the folder `out`, if there are some.

    `consensus`: how one label is made of those of several annotators.  CROWDLAB asks the detector's class
    probabilities, which come of judging the consensus by Dawid and Skene.
    """

    def judge(given: np.ndarray) -> Suspicion:
        labels = Labels(items.features, given, len(items.class_names))
        return detector(labels, seed, lambda done, of: tell("judging", done, of))

    of_crowd = crowd.crowd_of(items.columns, items.class_names) if len(items.columns) > 1 else None
    given = of_crowd.given if of_crowd else next(iter(items.columns.values()))
    suspicion = judge(given)
    if of_crowd and consensus == "crowdlab":
        of_crowd = crowd.crowd_of(items.columns, items.class_names, suspicion.class_probabilities)
        given = of_crowd.given
        suspicion = judge(given)
    found = neighbours.find(items.features, tables.NEIGHBOURS, seed, lambda done, of: tell("neighbours", done, of))
    reading = decisions.read(out)
    decided = reviewed(tables.judged_table(items, given, suspicion), reading.decisions)
    if decided.checked:
        suspicion = after_reviews(suspicion, decided.index, decided.wrong)
    table = tables.errors_table(items, given, suspicion, found.index.numpy())
    notes = (*reading.problems, *decided.problems, *tables.on_recall(found.recall))
    return Found(given, of_crowd, suspicion, decided.checked, tuple(bands(decided)), notes, table)


@dataclass(frozen=True, eq=False)
class Reviewed:
    """The given labels on which reviewers have decided and agree."""

    index: np.ndarray  # (n,) int64, of their images
    wrong: np.ndarray  # (n,) bool
    probability: np.ndarray  # (n,) float64, of an error, before the review
    checked: Checked | None  # None where there are none
    problems: tuple[str, ...]  # a sentence on decisions that do not count


def reviewed(table: pa.Table, decided: Iterable[Decision], since: datetime | None = None) -> Reviewed:
    """What decisions say of the given labels of a table of errors.  `since`: only later ones count.

    A decision belongs to the image of its file, wherever that stands now.
    """
    standings = decisions.current(decided)
    columns = (table[name].to_pylist() for name in ("file", "index", "given", "probability")) if standings else ()
    rows = {file: row for file, *row in zip(*columns, strict=True)}
    found: list[tuple[int, bool, float]] = []
    gone = conflicts = 0
    for file, standing in standings.items():
        if since is not None and standing.decisions[-1].at <= since:
            continue
        gone += file not in rows
        conflicts += standing.is_conflict
        if file in rows and standing.label is not None:
            index, given, probability = rows[file]
            if given is not None and probability is not None:
                found.append((index, standing.label != given, probability))
    problems = []
    if gone:
        problems.append(f"Decisions on images that are not there any more: {gone:,}.")
    if conflicts:
        problems.append(f"Images on which reviewers differ, which do not count: {conflicts:,}.")
    index = np.array([one[0] for one in found], np.int64)
    wrong = np.array([one[1] for one in found], bool)
    checked = Checked(len(found), int(wrong.sum()), float(sum(one[2] for one in found))) if found else None
    probabilities = np.array([one[2] for one in found], np.float64)
    return Reviewed(index, wrong, probabilities, checked, tuple(problems))


def bands(reviewed: Reviewed) -> Iterator[Band]:
    """What was expected of reviewed labels and what was found, by their probability; bands without one are left out."""
    place = np.clip(np.searchsorted(BANDS, reviewed.probability, side="right") - 1, 0, len(BANDS) - 2)
    for number, (low, high) in enumerate(pairwise(BANDS)):
        here = place == number
        if count := int(here.sum()):
            expected = float(reviewed.probability[here].sum())
            yield Band(low, high, Checked(count, int(reviewed.wrong[here].sum()), expected))


def firsts(about: About) -> tuple[int, ...]:
    """Among how many of the first labels it is told how many errors to expect: the budget, where there is one."""
    return (about.budget,) if about.budget else FIRST


def expected(table: pa.Table, firsts: Iterable[int]) -> Iterator[tuple[int, float]]:
    """How many wrong labels to expect among so many first ones of a table of errors, and no more than it has."""
    probabilities = table["probability"].drop_null().to_numpy()
    for first in sorted({min(first, len(probabilities)) for first in firsts}):
        yield first, float(probabilities[:first].sum())


def sentences(about: About, table: pa.Table, decided: Sequence[Decision] = ()) -> Iterator[str]:
    """What to tell of the labels: how many are wrong, how far that is checked, and what to expect.

    `decided`: decisions of which those count that are later than the table.
    """
    wrong, checked = about.wrong, about.checked
    if wrong is not None:
        basis = f"calibrated on {checked.count:,} reviews" if checked else "not yet checked against reviews"
        yield (
            f"Wrong labels: about {wrong.value * about.labelled:,.0f} ({wrong.value:.1%}), between {wrong.low:.1%} and "
            f"{wrong.high:.1%}, {basis}."
        )
    if checked:
        yield f"Of {_compared(checked)}"
    if since := reviewed(table, decided, about.made).checked:
        yield f"Since then, of {_compared(since)}"


def _compared(checked: Checked) -> str:
    return f"{checked.count:,} reviewed labels {checked.wrong:,} were wrong; {checked.expected:,.1f} had been expected."


def expectation(about: About, table: pa.Table) -> str:
    """How many wrong labels to expect among the first of the table, as a sentence."""
    told = [f"{errors:,.0f} of the first {first:,}" for first, errors in expected(table, firsts(about))]
    return f"To expect, wrong: {', '.join(told)}."


def write(out: Path, about: About, found: Found, items: Items, tell: Tell) -> Path:
    """Write the tables and the page, whose path is returned, and last `about.json`."""
    outputs.write_table(out, "errors", found.table)
    if found.crowd:
        outputs.write_csv(out / crowd.ANNOTATORS, found.crowd.annotators_table())
        outputs.write_csv(out / crowd.CONFUSIONS, found.crowd.confusions_table())
    review = tables.review_of(about, found.table, items.images, facts(about, found.table))
    path = page.write(review, out, lambda done, of: tell("page", done, of))
    outputs.write_about(out, about)
    return path


def facts(about: About, table: pa.Table, decided: Sequence[Decision] = ()) -> tuple[str, ...]:
    """The sentences that stand on the page."""
    basis = f"{about.count:,} images, labels: {', '.join(about.columns)}; judged by {about.judge} on {about.features}."
    if about.kind != "errors":
        return (basis.replace("judged", "chosen"), *about.remarks)
    return (basis, *sentences(about, table, decided), expectation(about, table), *about.remarks)
