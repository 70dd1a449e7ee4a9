"""`lnl label errors`: the given labels of images, the most suspect first, and how many of them are wrong."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lnl.cli import labelling
from lnl.cli.flags import COMPLETE, Commands, UsageError

if TYPE_CHECKING:
    from lnl.labelling.problem import Detector
    from lnl.review.crowd import By, Crowd
    from lnl.review.errors import Band, Found
    from lnl.review.outputs import About

LEAST = 20  # labels that a detector needs


def add_parser(jobs: Commands) -> None:
    """Add the job to `lnl label`."""
    text = "rank given labels by how likely each is wrong, with evidence, and estimate how many are"
    parser = jobs.add_parser("errors", help=text, description=text)
    labelling.add_flags(parser, "a table with the columns file and label (or label_… of several annotators)")
    parser.add_argument("--detector", default="probe", metavar="NAME", help="probe, propagation, neighbours, cleanlab")
    text = "how one label is made of several annotators': dawid_skene, crowdlab (which asks the detector, too)"
    parser.add_argument("--consensus", default="dawid_skene", metavar="NAME", help=text)
    parser.add_argument("--budget", type=int, metavar="N", help="how many labels you will look at")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Judge all labels, write the tables and the page, and print what to expect."""
    from lnl.review import errors, items, outputs
    from lnl.review.crowd import CONSENSUS

    detector, consensus = _detector(options.detector), _consensus(options.consensus)
    if options.budget is not None and options.budget < 1:
        raise UsageError(f"--budget is {options.budget}: give a whole number above zero.")
    asked, out = labelling.asked_for(options), labelling.folder_for(options, "errors")
    outputs.prepare(out, "errors", asked.images)
    with labelling.progress() as tell:
        read = items.read(asked, out, LEAST, tell)
        found = errors.find(read, detector, out, options.seed, tell, consensus)
        about = labelling.about("errors", options.detector, read, options, int((found.given >= 0).sum())).model_copy(
            update={
                "consensus": found.crowd and CONSENSUS[found.crowd.by],
                "wrong": found.suspicion.wrong,
                "checked": found.checked,
                "budget": options.budget,
            }
        )
        page = errors.write(out, about, found, read, tell)
    _print(about, found)
    print(f"Wrote {page}, and beside it errors.csv and errors.parquet.  To review: lnl label review {out}")
    return COMPLETE


def _detector(name: str) -> Detector:
    from lnl.labelling.detectors import DETECTORS

    if name not in DETECTORS:
        raise UsageError(f"There is no detector '{name}': choose one of {', '.join(DETECTORS)}.")
    return DETECTORS[name]


def _consensus(name: str) -> By:
    from lnl.review.crowd import CONSENSUS

    consensus = next((known for known in CONSENSUS if known == name), None)
    if consensus is None:
        raise UsageError(f"There is no consensus '{name}': choose one of {', '.join(CONSENSUS)}.")
    if consensus == "crowdlab" and find_spec("cleanlab") is None:
        raise UsageError("The consensus crowdlab needs its library: pip install 'lnl[label]'.")
    return consensus


def _print(about: About, found: Found) -> None:
    from rich.table import Table

    from lnl.cli.output import print_table
    from lnl.review import errors

    labelling.print_about(about)
    if found.crowd:
        _print_crowd(found.crowd)
    for sentence in (*errors.sentences(about, found.table), *found.notes):
        print(sentence)
    table = Table("the first", "wrong labels to expect", box=None)
    for first, expected in errors.expected(found.table, errors.firsts(about)):
        table.add_row(f"{first:,}", f"{expected:,.1f}")
    print_table(table)
    if found.bands:
        _print_bands(found.bands)


def _print_bands(bands: Sequence[Band]) -> None:
    from rich.table import Table

    from lnl.cli.output import print_table

    table = Table("probability of an error, before", "reviewed", "wrong: expected", "found", box=None)
    for band in bands:
        checked = band.checked
        ends = f"{band.low:.0%} to {band.high:.0%}"
        table.add_row(ends, f"{checked.count:,}", f"{checked.expected:,.1f}", f"{checked.wrong:,}")
    print_table(table)


def _print_crowd(crowd: Crowd) -> None:
    from rich.table import Table

    from lnl.cli.output import print_table

    print(crowd.sentence())
    table = Table("annotator", "labels", "as the consensus", "most often confused", box=None)
    for annotator in crowd.annotators:
        confused = annotator.confused
        words = f"{confused.of} called {confused.called}: {confused.times:,} ({confused.share:.0%})" if confused else ""
        table.add_row(annotator.name, f"{annotator.labels:,}", f"{annotator.agreement:.1%}", words)
    print_table(table)
