"""What the commands of `lnl label` share: flags that name images, labels and features, and progress."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lnl.cli.embed_command import plain
from lnl.cli.flags import UsageError
from lnl.system.version import installed_version

if TYPE_CHECKING:
    from lnl.labelling.problem import Tell
    from lnl.review.items import Asked, Items
    from lnl.review.outputs import About, Kind

NAMED = "a folder of images, a table of files and labels (.csv, .parquet), or a data set (.npz, features:FILE, cifar10)"


def add_flags(parser: argparse.ArgumentParser, labels: str) -> None:
    """Add what names images, labels and features; `labels`: what the table of labels is for."""
    parser.add_argument("images", help=NAMED)
    parser.add_argument("--labels", type=Path, metavar="FILE", help=labels)
    parser.add_argument("--column", metavar="NAME", help="which column of labels; several are several annotators")
    group = parser.add_argument_group("features", "by default of a small network that SimCLR trains here, for a while")
    group.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="FILE",
        help="features that you have, .npy or .npz; given again, they are joined",
    )
    group.add_argument("--network", metavar="NAME", help="a pre-trained network, by its name or as FILE.py")
    group.add_argument("--weights", metavar="FILE", help="its state dict or .safetensors file, or imagenet")
    group.add_argument("--trial", metavar="RESULTS/ID", help="take the trained network of this trial")
    group.add_argument("--resize", type=int, metavar="PX", help="pixels per side that the network sees")
    group.add_argument("--simclr-steps", type=int, default=300, metavar="N", help="how long SimCLR is trained")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the result is written (default: by the images)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where data sets live (default: $LNL_DATA)")
    parser.add_argument("--device", default="auto", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn at random")


def asked_for(options: argparse.Namespace) -> Asked:
    """What the flags name.  Raises `UsageError` where they do not go together."""
    from lnl.review.features import Choice
    from lnl.review.items import Asked

    named = [bool(options.features), options.network is not None, options.trial is not None]
    if sum(named) > 1:
        raise UsageError("Give --features of your own, a --network with its --weights, or a --trial: one of them.")
    if options.weights and not options.network:
        raise UsageError(f"--weights {options.weights} belong to a network: name it with --network.")
    if options.simclr_steps < 1:
        raise UsageError(f"--simclr-steps is {options.simclr_steps}: give a whole number above zero.")
    choice = Choice(
        tuple(options.features),
        options.network,
        options.weights,
        options.trial,
        options.resize,
        options.simclr_steps,
        options.device,
        options.seed,
    )
    return Asked(named_from_anywhere(options.images), options.labels, options.column, choice, options.data)


def named_from_anywhere(images: str) -> str:
    """What names the images, a path as an absolute one."""
    path = Path(images).expanduser()
    return str(path.absolute()) if path.exists() else images


def folder_for(options: argparse.Namespace, what: str) -> Path:
    """Where the result is written."""
    return options.out or Path(f"{plain(options.images.removesuffix('.csv').removesuffix('.parquet'))}-{what}")


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Within the block, a function that shows how far each part of the work is: what, so many, of how many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    bars: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:

        def tell(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what)
            shown.update(bars[what], completed=done, total=of)

        yield tell


def part_of(tell: Callable[[str, int, int], None], what: str) -> Tell:
    """Progress of one part of the work."""
    return lambda done, of: tell(what, done, of)


def with_one_column(items: Items) -> Items:
    """The same images with one label each: of several annotators their consensus."""
    from lnl.review.crowd import CONSENSUS, crowd_of

    if len(items.columns) == 1:
        return items
    made = crowd_of(items.columns, items.class_names)
    return replace(items, columns={CONSENSUS[made.by]: made.given})


def about(kind: Kind, judge: str, items: Items, options: argparse.Namespace, labelled: int) -> About:
    """What all jobs say of their folder; `labelled`: images with a given label."""
    from lnl.review import outputs

    return outputs.About(
        kind=kind,
        judge=judge,
        images=named_from_anywhere(options.images),
        data=None if options.data is None else str(options.data.absolute()),
        labels=None if options.labels is None else str(options.labels.absolute()),
        columns=tuple(items.columns),
        class_names=items.class_names,
        features=items.features_from,
        count=len(items.images.files),
        labelled=labelled,
        unreadable=items.unreadable,
        remarks=items.remarks,
        seed=options.seed,
        made=outputs.now(),
        version=installed_version() or "unknown",
    )


def print_about(about: About) -> None:
    """What was judged, and what is odd about it."""
    labels = ", ".join(about.columns)
    print(f"{about.count:,} images, {about.labelled:,} with a label ({labels}), {len(about.class_names):,} classes.")
    print(f"Features: {about.features}.")
    for remark in about.remarks:
        print(remark)
