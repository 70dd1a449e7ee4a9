"""What the commands share: a parser that names the nearest flag, the flags that several have, and exit codes.

Every command is a file that imports this one and, inside its functions, whatever it works with: so `lnl --help` and the
commands that only read results start without torch and Ray.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

from lnl import replicates
from lnl.storage.part_names import KEPT, Kept
from lnl.storage.places import Place, default_storage, place

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # argparse has no public name for it
COMPLETE, ERROR, USAGE, INCOMPLETE = 0, 1, 2, 3
SELECTION_RULES = ("last", "last10", "val_selected", "best_test")


class UsageError(ValueError):
    """The command line asks for something that does not exist."""


class Parser(argparse.ArgumentParser):
    """A parser that answers an unknown flag or command in one sentence, with the nearest one that it has."""

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        """As the base class does, for a command too, but end the process where something is left over."""
        options, left_over = super().parse_known_args(*arguments, **named)
        if left_over and left_over[0].startswith("-"):
            flag = left_over[0].partition("=")[0]
            known = re.findall(r"--[a-z][a-z-]*", self.format_usage())
            self.exit(USAGE, f"error: {unknown_name('flag', flag, known, f'see {self.prog} --help')}\n")
        return options, left_over

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # argparse has no public place for it
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            known = list(action.choices)
            sentence = unknown_name(str(action.metavar), value, known, f"choose one of {', '.join(known)}")
            self.exit(USAGE, f"error: {sentence}\n")
        super()._check_value(action, value)


def unknown_name(kind: str, name: str, known: Sequence[str], otherwise: str) -> str:
    """The sentence for an unknown command or flag: it suggests the nearest known name, or else what to do."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"Unknown {kind} '{name}': " + (f"did you mean '{nearest[0]}'?" if nearest else f"{otherwise}.")


def add_completed_argument(
    parser: argparse.ArgumentParser, name: str, names: Callable[[], Iterable[str]], **settings: Any
) -> None:
    """Add a positional argument for which a shell completes these names, and files where there is no such name."""
    action = parser.add_argument(name, **settings)
    setattr(action, "completer", lambda **_: names())  # noqa: B010  # where argcomplete looks


def add_study_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that plans a study."""
    parser.add_argument("--preset", help="the same study at another size")
    parser.add_argument(
        "--arms",
        action="append",
        metavar="A,B",
        help="only these arms; may be given again (--arms=-x where a name begins with a dash)",
    )
    parser.add_argument("--method", help="only the arms of this method")
    parser.add_argument("--replicates", "--seeds", type=int, metavar="N", help="replicates per arm and setting")
    add_night_flag(parser, "with fresh replicates, that night's own; a second time only what is missing runs")
    parser.add_argument(
        "--until-decided",
        action="store_true",
        help="judge the declared contrasts at looks, and add replicates to those that are undecided",
    )
    parser.add_argument(
        "--max-replicates",
        "--max-seeds",
        type=int,
        metavar="N",
        help="with --until-decided: replicates at the last look",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the base: method.temperature=0.5"
    )
    add_storage_flag(parser)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where data sets live (default: $LNL_DATA or ~/.cache/lnl)"
    )
    _add_execution_flags(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    _add_tracker_flags(parser)
    _add_search_flags(parser)


def _add_execution_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        help="a Ray cluster (auto, host:port); default: the cluster this machine belongs to, else a Ray of our own",
    )
    parser.add_argument(
        "--cpus", type=_whole_number, metavar="N", help="of a Ray of our own (default: those that this process may use)"
    )
    parser.add_argument(
        "--gpus-per-trial",
        type=_gpu_share,
        default=os.environ.get("LNL_GPUS_PER_TRIAL"),
        metavar="SHARE",
        help="1, 0.25, or auto: as many on a GPU as its memory holds, which the first of each kind measures "
        "(default: $LNL_GPUS_PER_TRIAL, else 1 where the cluster has GPUs)",
    )
    parser.add_argument("--cpus-per-trial", type=_positive_number, default=1, metavar="N")
    parser.add_argument(
        "--budget-hours",
        type=_positive_number,
        metavar="H",
        help="start no trial that would take this run above H GPU-hours (CPU-hours where trials have no GPU)",
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=10,
        metavar="S",
        help="training time between checkpoints, more where they take above 1 %% of it; 0: one after every epoch",
    )
    parser.add_argument("--rerun-stale", action="store_true", help="run trials again whose code has changed since")
    parser.add_argument(
        "--keep",
        type=_kept,
        default=(),
        metavar="WHAT,…",
        help=f"what each trial keeps at its end, beside what the study asks for: {', '.join(KEPT)}",
    )
    parser.add_argument(
        "--rerun-unkept", action="store_true", help="run finished trials again that have not kept what is asked for"
    )


def _add_tracker_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("trackers", "copies of the curves, made by the driver; none by default")
    group.add_argument("--tensorboard", action="store_true", help="event files below <storage>/tensorboard")
    group.add_argument("--wandb", metavar="PROJECT", help="a project of Weights & Biases (pip install wandb)")
    group.add_argument("--mlflow", metavar="URI", help="a tracking server of MLflow, or sqlite:///FILE")


def _add_search_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search", "of a study that declares one, or of any study by `lnl search`")
    group.add_argument("--trials", type=int, metavar="N", help="suggestions for each arm, its own values included")
    group.add_argument("--parameters", type=_names, metavar="KEY,…", help="search only these: method.temperature,probe")
    group.add_argument("--sampler", type=_names, metavar="NAME,…", help="tpe, random, qmc, cmaes, gp, nsga2")
    group.add_argument("--pruner", help="none, asha (Ray Tune's), median, percentile, successive_halving, hyperband")
    group.add_argument("--search-seed", type=int, metavar="N", help="of the samplers; another one is another search")
    group.add_argument(
        "--new-search", action="store_true", help="begin another one where a search's declaration has changed"
    )
    group.add_argument(
        "--optuna",
        default=os.environ.get("LNL_OPTUNA"),
        metavar="URL",
        help="Optuna's storage, such as postgresql://user@host/name (default: $LNL_OPTUNA, else a file in the results)",
    )


def add_night_flag(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add `--night DATE`; `meaning`: what the command does with the night."""
    parser.add_argument("--night", type=_night, metavar="DATE", help=f"{meaning}: 2026-11-21, or today (in UTC)")


def add_storage_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--storage PLACE`."""
    text = "where results live: a folder, or s3://bucket/prefix (default: $LNL_STORAGE, else results)"
    parser.add_argument("--storage", type=storage_place, default=default_storage(), metavar="PLACE", help=text)


def storage_place(text: str) -> Place:
    """Return where results are.

    Of a `ValueError` argparse would print the text that was given, and a password in it: hence its own error.
    """
    try:
        return place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _gpu_share(text: str) -> float | str:
    """`auto`, or a number of GPUs that Ray can give a trial: a part of one, or a whole number."""
    try:
        share = "auto" if text == "auto" else float(text)
    except ValueError:
        share = -1.0
    if not isinstance(share, str) and not (0 <= share <= 1 or (1 < share < math.inf and share == round(share))):
        raise argparse.ArgumentTypeError(f"give auto, a part of one GPU such as 0.25, or a whole number; not '{text}'")
    return share


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"give a whole number above zero, not '{text}'")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"give a number above zero, not '{text}'")
    return number


def _night(text: str) -> date:
    try:
        return replicates.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def _kept(text: str) -> tuple[Kept, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in KEPT]:
        raise argparse.ArgumentTypeError(f"give some of {','.join(KEPT)}, not '{unknown[0]}'")
    return tuple(kind for kind in KEPT if kind in names)


def _names(text: str) -> list[str]:
    return text.split(",")
