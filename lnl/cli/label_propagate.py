"""`lnl label propagate`: labels for all images from a few."""

from __future__ import annotations

import argparse

from lnl.cli import labelling
from lnl.cli.flags import COMPLETE, Commands, UsageError

LEAST = 2  # labels


def add_parser(jobs: Commands) -> None:
    """Add the job to `lnl label`."""
    text = "spread a few labels over the images that are alike; without enough confidence an image gets none"
    parser = jobs.add_parser("propagate", help=text, description=text)
    labelling.add_flags(parser, "a table with the columns file and label, of the few images that have one")
    parser.add_argument(
        "--confidence", type=float, default=0.0, metavar="P", help="no label where it is less probable (default: 0)"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Label all images, write the tables, and print how many have a label now."""
    from lnl.review import from_few, items, outputs, tables

    if not 0 <= options.confidence <= 1:
        raise UsageError(f"--confidence is {options.confidence:g}: give a probability, from 0 to 1.")
    asked, out = labelling.asked_for(options), labelling.folder_for(options, "labels")
    outputs.prepare(out, "propagate", asked.images)
    with labelling.progress() as tell:
        read = labelling.with_one_column(items.read(asked, out, LEAST, tell))
        made = from_few.label_all(read, options.confidence, options.seed, tell)
    (given,) = read.columns.values()
    about = labelling.about("propagate", "propagation", read, options, int((given >= 0).sum()))
    about = about.model_copy(update={"confidence": options.confidence})
    outputs.write_table(out, "propagate", made.table)
    outputs.write_about(out, about)
    labelling.print_about(about)
    print(f"Of the {about.count - about.labelled:,} others {made.coverage:.1%} have a label now.")
    if made.unreached:
        print(f"Images that no label has reached: {made.unreached:,}.  They have none, whatever the confidence.")
    for sentence in tables.on_recall(made.recall):
        print(sentence)
    print(f"Wrote {out}/labels.csv and labels.parquet.")
    return COMPLETE
