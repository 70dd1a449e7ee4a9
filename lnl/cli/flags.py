"""Flags that commands share, and exit codes."""

from __future__ import annotations

import argparse
import math
import os
from datetime import date
from pathlib import Path

from lnl import replicates
from lnl.storage.places import Place, default_storage, place

COMPLETE, ERROR, USAGE, INCOMPLETE = 0, 1, 2, 3
WIDE = 1000  # columns


class UsageError(ValueError):
    """The command line asks for something that does not exist."""


def _study_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="the same study at another size")
    parser.add_argument(
        "--arms",
        action="append",
        metavar="A,B",
        help="only these arms; may be given again (--arms=-x where a name begins with a dash)",
    )
    parser.add_argument("--method", help="only the arms of this method")
    parser.add_argument("--seeds", type=int, metavar="N", help="replicates per arm and setting")
    _night_flag(parser, "with fresh replicates, that night's own; a second time only what is missing runs")
    parser.add_argument(
        "--until-decided",
        action="store_true",
        help="judge the declared contrasts at looks, and add replicates to those that are undecided",
    )
    parser.add_argument("--max-seeds", type=int, metavar="N", help="with --until-decided: replicates at the last look")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the base: method.temperature=0.5"
    )
    _storage_flag(parser)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where data sets live (default: $LNL_DATA or ~/.cache/lnl)"
    )
    parser.add_argument(
        "--address",
        help="a Ray cluster (auto, host:port); default: the cluster this machine belongs to, else a Ray of our own",
    )
    parser.add_argument(
        "--cpus", type=_count, metavar="N", help="of a Ray of our own (default: those that this process may use)"
    )
    parser.add_argument(
        "--gpus-per-trial",
        type=_share,
        default=os.environ.get("LNL_GPUS_PER_TRIAL"),
        metavar="SHARE",
        help="1, 0.25, or auto: as many on a GPU as its memory holds, which the first of each kind measures "
        "(default: $LNL_GPUS_PER_TRIAL, else 1 where the cluster has GPUs)",
    )
    parser.add_argument("--cpus-per-trial", type=_positive, default=1, metavar="N")
    parser.add_argument(
        "--budget-hours",
        type=_positive,
        metavar="H",
        help="start no trial that would take this run above H GPU-hours (CPU-hours where trials have no GPU)",
    )
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=10, metavar="S", help="training time between checkpoints"
    )
    parser.add_argument("--rerun-stale", action="store_true", help="run trials again whose code has changed since")
    parser.add_argument("--json", action="store_true", help="machine-readable output")

    copies = parser.add_argument_group("trackers", "copies of the curves, made by the driver; none by default")
    copies.add_argument("--tensorboard", action="store_true", help="event files below <storage>/tensorboard")
    copies.add_argument("--wandb", metavar="PROJECT", help="a project of Weights & Biases (pip install wandb)")
    copies.add_argument("--mlflow", metavar="URI", help="a tracking server of MLflow, or sqlite:///FILE")

    search = parser.add_argument_group("search", "of a study that declares one, or of any study by `lnl search`")
    search.add_argument("--trials", type=int, metavar="N", help="suggestions for each arm, its own values included")
    search.add_argument(
        "--parameters", type=_names, metavar="KEY,…", help="search only these: method.temperature,probe"
    )
    search.add_argument("--sampler", type=_names, metavar="NAME,…", help="tpe, random, qmc, cmaes, gp, nsga2")
    search.add_argument("--pruner", help="none, asha (Ray Tune's), median, percentile, successive_halving, hyperband")
    search.add_argument("--search-seed", type=int, metavar="N", help="of the samplers; another one is another search")
    search.add_argument(
        "--new-search", action="store_true", help="begin another one where a search's declaration has changed"
    )
    search.add_argument(
        "--optuna",
        default=os.environ.get("LNL_OPTUNA"),
        metavar="URL",
        help="Optuna's storage, such as postgresql://user@host/name (default: $LNL_OPTUNA, else a file in the results)",
    )


def _share(text: str) -> float | str:
    """Of a GPU, as Ray can give it."""
    try:
        share = "auto" if text == "auto" else float(text)
    except ValueError:
        share = -1.0
    if not isinstance(share, str) and not (0 <= share <= 1 or (1 < share < math.inf and share == round(share))):
        raise argparse.ArgumentTypeError(f"give auto, a part of one GPU such as 0.25, or a whole number; not '{text}'")
    return share


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"give a whole number above zero, not '{text}'")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"give a number above zero, not '{text}'")
    return number


def _night_flag(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--night", type=_night, metavar="DATE", help=f"{text}: 2026-11-21, or today (in UTC)")


def _night(text: str) -> date:
    try:
        return replicates.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def _names(text: str) -> list[str]:
    return text.split(",")


def _storage_flag(parser: argparse.ArgumentParser) -> None:
    text = "where results live: a folder, or s3://bucket/prefix (default: $LNL_STORAGE, else results)"
    parser.add_argument("--storage", type=_place, default=default_storage(), metavar="PLACE", help=text)


def _place(text: str) -> Place:
    """The parser would repeat the text of a `ValueError`, and a password in it."""
    try:
        return place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
