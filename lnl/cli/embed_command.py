"""`lnl embed`: features of images by a pre-trained network, as a data set of vectors."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lnl.cli.flags import COMPLETE, Commands, UsageError

if TYPE_CHECKING:
    from lnl.data import Dataset
    from lnl.trial.embedding import Embedder


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "make a data set of vectors: the features that a pre-trained network gives to images"
    parser = commands.add_parser("embed", help=text, description=text)
    parser.add_argument("images", help="a data set (cifar10, folder:PATH, npz:PATH), a folder or a .npz file")
    parser.add_argument("--network", metavar="NAME", help="of `lnl networks`; that of the trial where --trial is given")
    parser.add_argument("--weights", metavar="FILE", help="a state dict or .safetensors file, or imagenet")
    parser.add_argument("--trial", metavar="RESULTS/ID", help="take the trained network of this trial")
    parser.add_argument("--resize", type=int, metavar="PX", help="pixels per side that the network sees")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: IMAGES-NETWORK.npz in the current folder")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where data sets live (default: $LNL_DATA)")
    parser.add_argument("--device", default="auto", help="cpu or cuda; default: cuda where there is one")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Compute the features, going on where an earlier call stopped, and print the data set's name."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lnl import data
    from lnl.trial import embedding
    from lnl.trial.run import Execution

    if (options.trial is None) == (options.network is None) or (options.trial and options.weights):
        raise UsageError("Give --network, with --weights of a pre-trained one, or --trial RESULTS/ID alone.")
    dataset = data.with_given_labels(data.load(_name(options.images), options.data), options.data)
    embedder = _embedder(options, dataset)
    file = options.out or Path(f"{plain(dataset.name)}-{plain(embedder.network)}.npz")
    if file.suffix != ".npz":
        raise UsageError(f"--out {file} must end with .npz: so that it can be told from a folder.")
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("")
        embedding.embed(
            dataset,
            embedder,
            file,
            Execution(options.device).torch_device(),
            lambda done, of: progress.update(bar, completed=done, total=of),
        )
    print(f"Data set: features:{file}")
    return COMPLETE


def _embedder(options: argparse.Namespace, dataset: Dataset) -> Embedder:
    from lnl.trial import embedding

    if options.trial is not None:
        return embedding.of_trial(options.trial, dataset, options.resize)
    return embedding.pretrained(options.network, dataset, options.weights, options.resize)


def _name(images: str) -> str:
    """The name of the data set that a plain path stands for: a folder or an .npz file."""
    if ":" in images:
        return images
    if Path(images).expanduser().is_dir():
        return f"folder:{images}"
    return f"npz:{images}" if images.endswith(".npz") else images


def plain(name: str) -> str:
    """A part of a file's name for a data set or network: the last part of a path, without its ending and options."""
    last = name.rstrip("/").partition("?")[0].replace(":", "/").split("/")[-1]
    return re.sub(r"[^\w-]+", "-", last.removesuffix(".npz").removesuffix(".py")).strip("-") or "images"
