"""`lnl label next`: which images to label next."""

from __future__ import annotations

import argparse

from lnl.cli import labelling
from lnl.cli.flags import COMPLETE, Commands, UsageError

LEAST = 2  # labels


def add_parser(jobs: Commands) -> None:
    """Add the job to `lnl label`."""
    text = "choose the images whose labels would help most, and say when more labels change little"
    parser = jobs.add_parser("next", help=text, description=text)
    labelling.add_flags(parser, "a table with the columns file and label, of the images that have one")
    parser.add_argument("-n", type=int, default=50, metavar="N", help="how many images (default: 50)")
    parser.add_argument(
        "--sampler", default="random", metavar="NAME", help="random, class-stratified, margin, entropy, typicality"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Choose images by the given labels and what was decided since, and write the table and the page."""
    from lnl.labelling.acquisition import SAMPLERS
    from lnl.review import errors, from_few, items, outputs, page, tables

    if options.sampler not in SAMPLERS:
        raise UsageError(f"There is no sampler '{options.sampler}': choose one of {', '.join(SAMPLERS)}.")
    if options.n < 1:
        raise UsageError(f"-n is {options.n}: give a whole number above zero.")
    asked, out = labelling.asked_for(options), labelling.folder_for(options, "next")
    outputs.prepare(out, "next", asked.images)
    with labelling.progress() as tell:
        read = labelling.with_one_column(items.read(asked, out, LEAST, tell))
        made = from_few.choose(read, options.sampler, options.n, out, options.seed, tell)
        about = labelling.about("next", options.sampler, read, options, made.labelled)
        review = tables.review_of(about, made.table, read.images, errors.facts(about, made.table))
        outputs.write_table(out, "next", made.table)
        path = page.write(review, out, labelling.part_of(tell, "page"))
    outputs.write_about(out, about)
    labelling.print_about(about)
    if made.decided:
        print(f"Labels that were decided in {out} since: {made.decided:,}.")
    if made.settled is not None:
        words = "hardly change any more: you may stop" if made.settled else "still change: go on"
        print(f"Over the last rounds the labels of all images {words}.")
    print(f"Wrote {path}, and beside it next.csv: {made.chosen:,} images.  To label them: lnl label review {out}")
    return COMPLETE
