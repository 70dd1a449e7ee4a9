"""The `lnl` command, and the flags that every study script has.

Exit codes: 0 complete, 1 error, 2 bad usage, 3 incomplete; of `lnl diff` 3 where something moved
or crashed, or nothing finished.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from lnl import catalogue, checks, doctor, machine, methods, nights, standing, trackers
from lnl.data import DataError
from lnl.declaring import DeclarationError
from lnl.files import read_file, reason
from lnl.logs import mask
from lnl.progress import Progress, SearchProgress, arm_table
from lnl.provenance import Current
from lnl.results import (
    Place,
    StorageError,
    Store,
    attempt_name,
    default_storage,
    place,
    renamed,
    storage_flag,
    write_atomically,
)
from lnl.study import Plan, Planned, Study, reconcile

COMPLETE, ERROR, USAGE, INCOMPLETE = 0, 1, 2, 3
WIDE = 1000  # columns
A_STUDY = "a study's name (studies/<name>.py) or file"


class UsageError(ValueError):
    """The command line asks for something that does not exist."""


def main(arguments: Sequence[str] | None = None) -> int:
    """`lnl plan|run|status|report|methods|doctor …`"""
    parser = argparse.ArgumentParser(
        prog="lnl", description="A laboratory for ablation studies of learning with noisy labels."
    )
    parser.add_argument("--version", action="version", version=f"lnl {_version()}", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in {
        "plan": "list a study's trials: done, missing or stale; starts nothing",
        "run": "run what a study still lacks",
        "search": "search every arm's parameters with Optuna, then confirm what it finds on fresh replicates",
        "status": "one line per arm",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("study", help=A_STUDY)
        _study_flags(command)
    report = commands.add_parser("report", help="make the HTML page, figures and tables of a study")
    report.add_argument("study", help=A_STUDY)
    report.add_argument("--preset")
    _night_flag(report, "the newest plan of that night")
    _storage_flag(report)
    report.add_argument(
        "--selection",
        choices=("last", "last10", "val_selected", "best_test"),
        help="selection rule; default: the study's",
    )
    report.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="write the page there, and nothing to the results (default: reports/ below the storage)",
    )
    text = "what a study cost: GPU-hours per arm (CPU-hours where trials had no GPU), of use, wasted and idle"
    ledger = commands.add_parser("ledger", help=text, description=text)
    ledger.add_argument("study", help=A_STUDY)
    ledger.add_argument("--preset", help="default: all of them")
    _night_flag(ledger, "only what that night asked for")
    _storage_flag(ledger)
    ledger.add_argument("--json", action="store_true")
    ledger.add_argument("--csv", type=Path, metavar="FILE", help="write the table there")
    ledger.add_argument("--figure", type=Path, metavar="FILE", help="draw it there: .png or .pdf")
    text = "tonight against the last nights, or study against study: exit code 3 where something moved"
    diff = commands.add_parser("diff", help=text, description=text)
    diff.add_argument("study", help=A_STUDY)
    diff.add_argument("--preset")
    _night_flag(diff, "that night instead of the latest")
    diff.add_argument("--nights", type=int, metavar="K", help="quiet nights that are the reference (default: 14)")
    diff.add_argument(
        "--against", metavar="OTHER", help="another study, preset, night or plan, instead of the nights before"
    )
    diff.add_argument("--against-storage", type=_place, metavar="PLACE", help="where that one's results live")
    _storage_flag(diff)
    diff.add_argument("--selection", choices=("last", "last10", "val_selected", "best_test"))
    diff.add_argument("--markdown", type=Path, metavar="FILE", help="write it for a message or an issue, too")
    diff.add_argument("--figure", type=Path, metavar="FILE", help="draw the nights of what moved (.png, .pdf)")
    diff.add_argument("--json", action="store_true")
    text = "what trials printed and their tracebacks; without a trial, the attempts that failed"
    logs = commands.add_parser("logs", help=text, description=text)
    logs.add_argument("study", help=A_STUDY)
    logs.add_argument("trial", nargs="?", help="a trial's id, or how it begins")
    logs.add_argument("--arm", help="list the attempts of this arm only")
    logs.add_argument("--preset")
    logs.add_argument("--all", action="store_true", help="list attempts that did not fail and printed something, too")
    _storage_flag(logs)
    listed = commands.add_parser("methods", help="list the methods, or one method's switches")
    listed.add_argument("name", nargs="?")
    doctor = commands.add_parser("doctor", help="check the environment, unreadable files and abandoned leases")
    _storage_flag(doctor)
    doctor.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    def act() -> int:
        if options.command in ("report", "ledger", "diff", "logs"):  # they read results, and need no declaration
            options.study = _study_name(options.study)
        if options.command == "report":
            return _report(options)
        if options.command == "diff":
            return _diff(options)
        if options.command == "doctor":
            return _doctor(options.storage, options.json)
        if options.command == "ledger":
            return _ledger(options)
        if options.command == "logs":
            return _logs(options)
        if options.command == "methods":
            return _methods(options.name)
        return _study_command(find_study(options.study), options, options.command)

    return _guarded(act)


def study_main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """`python studies/<name>.py …`: runs what is missing, then makes the report; with --plan lists only."""
    if _reading.get():
        raise _Handed(study)
    parser = argparse.ArgumentParser(description=study.question)
    _study_flags(parser)
    parser.add_argument(
        "--plan", action="store_true", help="list every trial with done, missing or stale; start nothing"
    )
    parser.add_argument("--no-report", action="store_true", help="do not make the report at the end")
    options = parser.parse_args(arguments)
    return _guarded(lambda: _study_command(study, options, "plan" if options.plan else "run"))


def _version() -> str:
    """The installed version; words where nothing is installed, as with a checkout on PYTHONPATH."""
    try:
        return metadata.version("lnl")
    except metadata.PackageNotFoundError:
        return "(not installed, so without a version)"


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
        return nights.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def _names(text: str) -> list[str]:
    return text.split(",")


def _arms(given: Sequence[str] | None, study: Study) -> list[str] | None:
    """The arms that --arms A,B names, each time it is given: the longest names first, as these may have commas."""
    if given is None:
        return None
    chosen = []
    for text in given:
        parts = text.split(",")
        while parts:
            count = next((n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in study.arms), 1)
            chosen.append(",".join(parts[:count]))
            del parts[:count]
    return chosen


def _storage_flag(parser: argparse.ArgumentParser) -> None:
    text = "where results live: a folder, or s3://bucket/prefix (default: $LNL_STORAGE, else results)"
    parser.add_argument("--storage", type=_place, default=default_storage(), metavar="PLACE", help=text)


def _place(text: str) -> Place:
    """The parser would repeat the text of a `ValueError`, and a password in it."""
    try:
        return place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def find_study(name: str) -> Study:
    """The study that a file runs, or studies/<name>.py below the current folder or beside the package."""
    folders = [root / "studies" for root in (Path.cwd(), Path(__file__).parents[1])]
    places = [Path(name)] if _is_file_name(name) else [folder / f"{name}.py" for folder in folders]
    for path in places:
        if path.is_file():
            return _study_of(path)
    known = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    raise UsageError(f"There is no study '{name}': choose one of {', '.join(known)}, or give a file.")


def _is_file_name(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


class _Handed(BaseException):
    """Ends a study's file where `python FILE` would start the study: at its `study.main()`."""

    def __init__(self, study: Study) -> None:
        self.study = study


_reading: ContextVar[bool] = ContextVar("reading a study's file", default=False)


def _study_of(path: Path) -> Study:
    """Run the file as `python FILE` does, up to the first `main()` of a study: that study, else its `study`."""
    module = ModuleType("__main__")  # dataclasses and pickle look a class's module up there
    module.__file__ = str(path.absolute())
    sys.path.insert(0, str(path.absolute().parent))  # stays there: the file may import when it is asked to
    before = sys.modules["__main__"], sys.argv
    token = _reading.set(True)
    try:
        sys.modules["__main__"], sys.argv = module, [str(path)]
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except _Handed as handed:
        return handed.study
    except DeclarationError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file does
        reason = str(error).split("\n")[0].rstrip(".")
        raise UsageError(f"{path} cannot be loaded ({type(error).__name__}: {reason}).") from error
    finally:
        _reading.reset(token)
        sys.modules["__main__"], sys.argv = before
    if isinstance(found := getattr(module, "study", None), Study):
        return found
    raise UsageError(f"{path} declares no `study = Study(…)`.")


def _study_name(name: str) -> str:
    """The name under which results are stored: that of the study in a file, where a file is given."""
    return find_study(name).name if _is_file_name(name) else name


def _guarded(act: Any) -> int:
    """Every expected error becomes one sentence on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # a locale that lacks a character ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code: int = act()
        return code
    except (UsageError, ValueError) as error:
        print(mask(f"error: {error}"), file=sys.stderr)
        return ERROR if isinstance(error, DataError) else USAGE
    except (StorageError, OSError) as error:
        print(mask(f"error: {error}"), file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("Interrupted: what is finished is stored; run again to go on.", file=sys.stderr)
        return INCOMPLETE


# ------------------------------------------------------------------------------------------------ plan, run, status


def _study_command(study: Study, options: argparse.Namespace, command: str) -> int:
    store = Store(options.storage)
    options.arms = _arms(options.arms, study)
    looks = _looks(study, options, store, searches=command == "search" or study.search is not None)
    asked = {
        "changes": _changes(options.set),
        "replicates": options.seeds,
        "looks": looks,
        "night": options.night,
        "arms": options.arms,
        "method": options.method,
    }
    plan = study.plan(options.preset, **asked)
    if options.until_decided and not plan.record["contrasts"]:
        raise UsageError("--until-decided has nothing to decide: declare contrasts of arms that this preset has.")
    if unknown := set(options.arms or ()) - set(plan.record["arms"]):
        raise UsageError(f"The plan has no arm '{min(unknown)}': choose from {', '.join(plan.record['arms'])}.")
    if options.method is not None:
        mine = {planned.arm for planned in plan.trials if planned.trial.method_name == options.method}
        options.arms = [arm for arm in plan.record["arms"] if arm in mine & set(options.arms or mine)]
        if not options.arms:
            there = sorted({planned.trial.method_name for planned in plan.trials})
            raise UsageError(f"The plan has no arm of method '{options.method}': there are {', '.join(there)}.")
    wishes = _search_wishes(study, options, command)

    def make(reached: Mapping[str, int] | None = None) -> Plan:
        """The plan, where arms that go on to later looks have these replicates."""
        if wishes is None and not reached:
            return plan
        return study.plan(options.preset, **asked, reached=reached, search=wishes)

    if command in ("run", "search"):
        copies = {"tensorboard": options.tensorboard, "wandb": options.wandb, "mlflow": options.mlflow}
        with trackers.following(store.root, partial(print, file=sys.stderr), **copies) as track:
            return _run(make, store, options, track)
    current = Current(options.data)
    plan = _as_it_stands(make, store, current, options)
    chosen = plan.of_arms(options.arms)
    statuses = [status for status in reconcile(plan, store, current) if status.planned.id in chosen]
    if command == "plan":
        todo = [status.planned for status in statuses if status.state not in ("done", "stale")]
        checks.check(todo, options.data, read=False)
    if options.json:
        print(json.dumps(standing.as_json(plan, statuses, store, current), indent=1))
    elif command == "plan":
        standing.print_plan(plan, statuses)
        standing.print_detectable(plan, store, current)
    else:
        _show(arm_table(standing.arm_rows(statuses), plan.record["selection"]))
        standing.print_summary(plan, statuses, store, current)
    for name in current.missing_data(status.planned.trial for status in statuses if status.state == "done"):
        print(f"The data set {name} is not on this machine: its results are not checked against it.", file=sys.stderr)
    if not options.json:
        standing.print_searches(plan, options.arms, statuses)
    return COMPLETE if command == "plan" or standing.is_complete(plan, options.arms, statuses) else INCOMPLETE


def _search_wishes(study: Study, options: argparse.Namespace, command: str) -> dict[str, Any] | None:
    """The fields of a search that the flags ask for; None where the study's own plan is what they ask for."""
    given = {
        "suggestions": options.trials,
        "parameters": options.parameters,
        "samplers": options.sampler,
        "pruner": options.pruner,
        "seed": options.search_seed,
    }
    wishes = {name: value for name, value in given.items() if value is not None}
    if study.search is not None:
        return wishes or None
    if command == "search":
        return {**wishes, "arms": options.arms} if options.arms else wishes
    if wishes:
        raise UsageError(f"Study {study.name} declares no search: use `lnl search {study.name} …`.")
    return None


def _looks(study: Study, options: argparse.Namespace, store: Store, searches: bool) -> tuple[int, ...] | None:
    """The looks that the flags ask for, else the study's own, else those that an earlier run declared."""
    from lnl import sequential

    if options.max_seeds is not None and not options.until_decided:
        raise UsageError("--max-seeds N belongs to --until-decided: give both, or --seeds N for a fixed number.")
    if options.night is not None:
        if options.until_decided:
            raise UsageError("A night has a fixed number of replicates: leave out --until-decided, or --night.")
        return ()
    if options.until_decided and searches:
        raise UsageError("A search compares arms at a fixed number of replicates: leave out --until-decided.")
    if options.max_seeds is not None:
        asked = {"changes": _changes(options.set), "arms": options.arms, "method": options.method}
        fixed = study.plan(options.preset, **asked, replicates=options.seeds, looks=())
        return sequential.schedule(fixed.record["replicates"], options.max_seeds)
    looks = None
    if options.seeds is None and not searches:
        looks = study.looks_of(options.preset) or sequential.declared_before(
            store, study.name, options.preset or "base"
        )
    if options.until_decided and looks is None:
        raise UsageError("--until-decided needs --max-seeds N: the most replicates that a contrast may get.")
    return looks


def _as_it_stands(
    make: Callable[..., Plan], store: Store, current: Current, options: argparse.Namespace, record: bool = False
) -> Plan:
    """The plan with what results so far ask for: replicates of undecided contrasts, or searched arms.

    `record`: keep looks that no driver lived to keep.
    """
    plan = make()
    if not plan.record["looks"]:
        return _confirmed(plan, store, current, options)
    from lnl import sequential

    return sequential.grown(make, store, current, record)[0]


def _confirmed(plan: Plan, store: Store, current: Current, options: argparse.Namespace) -> Plan:
    """The plan with the searched arms that stand by now; `--arms a` means these, too."""
    if plan.search is None:
        return plan
    from lnl import search  # imports Optuna, which most commands do without

    if options.arms:
        asked = set(options.arms)
        options.arms = [*options.arms, *(cell.searched_arm for cell in plan.cells if cell.arm in asked)]
    return search.confirmed(plan, store, current)


def _changes(pairs: Sequence[str]) -> dict[str, Any]:
    """--set KEY=VALUE; the value is JSON where it parses, else text."""
    changes = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise UsageError(f"--set takes KEY=VALUE, not '{pair}'.")
        try:
            changes[key] = json.loads(text)
        except json.JSONDecodeError:
            changes[key] = text
    return changes


def _run(make: Callable[..., Plan], store: Store, options: argparse.Namespace, track: Callable[[Any], Any]) -> int:
    """`track`: makes a display one that trackers follow."""
    from lnl import sequential

    plan = make()
    sequential.check_looks(store, plan)
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address  # the runner reads it when it is imported
    from lnl import runner  # imports Ray, which plan, status and report do without

    if options.cpus and runner.ADDRESS != "local":
        raise UsageError(
            f"--cpus is of a Ray of our own, and the cluster '{runner.ADDRESS}' has its own: leave it out."
        )
    settings = runner.Settings(
        address=runner.ADDRESS,
        cpus=options.cpus,
        storage=store.root,
        data=options.data and machine.expanded(options.data).resolve(),
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        checkpoint_s=options.checkpoint_seconds,
    )
    budget = runner.Budget(options.budget_hours, options.cpus_per_trial)
    show = partial(_logs_command, plan.study, storage=options.storage)
    stopped = _search(plan, store, settings, options, track, budget) if plan.search else None
    if stopped:
        if options.json:
            print(json.dumps({"study": plan.study, "preset": plan.preset, "plan": plan.hash, "stopped": stopped}))
        else:
            print(stopped, file=sys.stderr)
        return _code_of(stopped)
    current = Current(settings.data)
    further: Plan | None = _as_it_stands(make, store, current, options, record=True)
    while further is not None:
        plan, progress = further, track(Progress(further, options.json, show))
        rerun = options.rerun_stale
        outcome = runner.run_plan(plan, settings, progress, arms=options.arms, rerun_stale=rerun, budget=budget)
        current = Current(settings.data)  # with data sets that were fetched for the run
        further = None
        if plan.record["looks"] and outcome.stopped is None:
            sentence, further = sequential.look(make, plan, store, current)
            progress.say(sentence)
    statuses = outcome.statuses
    wished = not getattr(options, "no_report", False) and any(status.state == "done" for status in statuses)
    draw = partial(_draw_report, store.root, plan.study, plan.preset, night=plan.record["night"])
    if options.json:
        page = draw() if wished else None
        about = {"report": str(page) if page else None, "stopped": outcome.stopped}
        print(json.dumps({**standing.as_json(plan, statuses, store, current), **about}, indent=1))
    else:
        standing.print_summary(plan, statuses, store, current)
        failures: dict[str, list[str]] = defaultdict(list)
        for status in statuses:
            if status.state == "failed" and status.failure:
                failures[f"{status.planned.arm}: {status.failure.splitlines()[0]}"].append(status.planned.id)
        for failure, trials in sorted(failures.items()):
            print(f"failed  {failure} ({len(trials)} {'trial' if len(trials) == 1 else 'trials'}: {show(trials[0])})")
        if outcome.stopped:
            print(outcome.stopped)
        if wished:
            print(f"Report: {_relative(draw())}")
    if outcome.stopped:
        return _code_of(outcome.stopped)
    return COMPLETE if standing.is_complete(plan, options.arms, statuses) else INCOMPLETE


def _code_of(stopped: str) -> int:
    """The exit code of a run that ended early for this reason."""
    from lnl import runner

    return INCOMPLETE if stopped.startswith(runner.UNFINISHED) else ERROR


def _search(
    plan: Plan,
    store: Store,
    settings: Any,
    options: argparse.Namespace,
    track: Callable[[Any], Any],
    budget: Any,
) -> str | None:
    """Every search until its budget is spent; a sentence where it ended early."""
    from lnl import runner, search

    cells = [cell for cell in plan.cells if options.arms is None or cell.arm in options.arms]
    checks.check([Planned(cell.trial, cell.arm, cell.setting) for cell in cells], settings.data, read=True)
    searches = search.Searches(
        plan, store, url=options.optuna, arms=options.arms, new=options.new_search, current=Current(settings.data)
    )
    if searches.spent():
        return None
    show = partial(_logs_command, plan.study, storage=options.storage)
    progress = track(SearchProgress(searches, options.json, show))
    rerun = options.rerun_stale
    stopped = runner.run_search(plan, searches, settings, progress, rerun_stale=rerun, budget=budget)
    if stopped is None:
        for one in searches.searches:
            if (standing := one.in_words()).finished < standing.budget:
                reason = (one.last_failure or "another driver has not finished").splitlines()[0]
                counts = f"{standing.finished} of {standing.budget} suggestions"
                progress.say(f"{standing.name}: {counts}, the others failed: run again to go on.  {reason}")
    return stopped


def _report(options: argparse.Namespace) -> int:
    night = options.night and options.night.isoformat()
    about = {"selection": options.selection, "output": options.output, "night": night}
    page = _draw_report(options.storage, options.study, options.preset, **about)
    print(f"Report: {_relative(page)}")
    return COMPLETE


def _draw_report(*what: Any, **about: Any) -> Place:
    """Of dozens of arms it takes a minute, which a terminal is told meanwhile."""
    from analysis import report

    sys.stdout.flush()
    with Console(stderr=True).status("Drawing the report"):
        return report.build(*what, **about)


def _diff(options: argparse.Namespace) -> int:
    """Exit code 3 where a cell moved or crashed, or nothing finished."""
    from analysis import nights as nightly

    _check_figure(options.figure)
    night = options.night and options.night.isoformat()
    options.against = options.against and _study_name(options.against)
    asked = (options.storage, options.study, options.preset, night)
    if options.against or options.against_storage:
        if options.nights is not None or options.figure is not None:
            raise UsageError("--nights and --figure belong to nights: leave them out, or --against.")
        found = nightly.against(*asked, options.against, options.against_storage, options.selection)
    else:
        found = nightly.tonight(*asked, nightly.NIGHTS if options.nights is None else options.nights, options.selection)
    if options.json:
        print(json.dumps(nightly.as_json(found), indent=1))
    else:
        print("\n".join(nightly.lines(found)))
    if options.markdown:
        write_atomically(
            options.markdown, lambda temporary: temporary.write_text(nightly.markdown(found), encoding="utf-8")
        )
    if options.figure and found.moved.empty:
        print("Nothing moved: there is no figure to draw.", file=sys.stderr)
    elif options.figure:
        from analysis import night_plots

        _write_figure(options.figure, night_plots.strips(found))
    return COMPLETE if found.quiet else INCOMPLETE


def _show(table: Table) -> None:
    """As wide as the terminal; in a file or a pipe as wide as it is."""
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def _check_figure(path: Path | None) -> None:
    """Before any work.  Raises `UsageError`."""
    if path is not None and path.suffix not in (".png", ".pdf"):
        raise UsageError(f"--figure takes a .png or a .pdf, not '{path}'.")


def _write_figure(path: Path, plot: Any) -> None:
    content = plot.pdf() if path.suffix == ".pdf" else plot.png()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _relative(path: Place) -> Place:
    here = Path.cwd()
    return path.relative_to(here) if isinstance(path, Path) and path.is_relative_to(here) else path


# ------------------------------------------------------------------------------------------------------ ledger, logs


def _ledger(options: argparse.Namespace) -> int:
    """A line per arm: attempts and device-hours, by what became of them."""
    from analysis import ledger

    _check_figure(options.figure)
    found = ledger.of(options.storage, options.study, options.preset, options.night)
    drawn = found.table()
    if options.csv:
        text = drawn.frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")
        write_atomically(options.csv, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if options.figure:
        _write_figure(options.figure, found.figure())
    if options.json:
        rows = drawn.frame.astype(object).where(drawn.frame.notna(), None).to_dict("records")
        about = {"study": options.study, "preset": options.preset, "hours": rows, "notes": list(found.sentences())}
        about["unreadable"] = [str(path) for path in found.unreadable]
        print(json.dumps(about, indent=1))
        return COMPLETE
    for unit in found.units():
        table = Table(Column(unit, overflow="fold"), box=None, pad_edge=False)
        for name in drawn.header[2:]:
            table.add_column(name, justify="right", no_wrap=True)  # a number is shown whole
        for arm, of, *cells in drawn.rows:
            if of == unit:
                table.add_row(escape(arm), *cells)
        _show(table)
    print("\n".join(found.sentences()))
    for path, why in found.unreadable.items():
        print(f"unreadable and left out: {path} ({why})", file=sys.stderr)
    return COMPLETE


def _logs(options: argparse.Namespace) -> int:
    """A line for each attempt that failed, or all that one trial's attempts have said."""
    store = Store(options.storage)
    about = ["trial", "attempt", "preset", "arm", "setting", "replicate", "status", "failure_class", "failure_message"]
    rows, broken = store.read("trials", options.study, about)
    said, foreign = store.logs(options.study)
    for path, why in {**broken, **dict.fromkeys(foreign, "its name is no attempt's")}.items():
        print(f"unreadable and left out: {store.within(path)} ({why})", file=sys.stderr)
    rows = renamed(rows, store.plans(options.study))
    rows = rows.astype(object).where(rows.notna(), "")
    records: list[Any] = rows.to_dict("records")
    attempts = {attempt_name(row["trial"], row["attempt"]): row for row in records}
    for stem in said.keys() - attempts.keys():  # its worker did not live to write its row, or has not ended yet
        trial, _, attempt = stem.rpartition("-")
        attempts[stem] = {**dict.fromkeys(about, ""), "trial": trial, "attempt": int(attempt), "status": "no row"}
    if not attempts:
        raise UsageError(f"{store.root} has no attempt of study '{options.study}': is it another --storage?")
    if options.preset is not None:
        attempts = {stem: row for stem, row in attempts.items() if row["preset"] in (options.preset, "")}
    ordered = sorted(attempts.items(), key=lambda one: (one[1]["arm"], one[1]["trial"], one[1]["attempt"]))
    if options.trial is not None:
        ordered = [(stem, row) for stem, row in ordered if row["trial"].startswith(options.trial)]
        ids = sorted({row["trial"] for _, row in ordered})
        if not ids:
            raise UsageError(
                f"No trial of study '{options.study}' begins with '{options.trial}': `lnl logs {options.study} --all` "
                "lists those that have something to say."
            )
        if len(ids) > 1:
            raise UsageError(f"{len(ids)} trials begin with '{options.trial}': give more of {', '.join(ids[:5])}.")
        for stem, row in ordered:
            print(f"--- {_attempt_in_words(row)}")
            print(_log_text(said[stem]) if stem in said else row["failure_message"] or "It printed nothing.")
        return COMPLETE
    if options.arm is not None:
        ordered = [(stem, row) for stem, row in ordered if row["arm"] == options.arm]
        if not ordered:
            raise UsageError(f"No attempt of study '{options.study}' is of arm '{options.arm}'.")
    fine = [stem for stem, row in ordered if row["status"] in ("ok", "pruned")]
    for stem, row in ordered:
        if stem not in fine or (options.all and stem in said):
            shown = _logs_command(options.study, row["trial"], options.storage) if stem in said else "no log"
            print(f"{_attempt_in_words(row)}  {shown}")
    quiet = 0 if options.all else len(said.keys() & set(fine))
    print(f"{len(ordered) - len(fine)} of {len(ordered)} attempts failed", end="")
    print(f"; {quiet} more printed something (--all)." if quiet else ".")
    return COMPLETE


def _log_text(path: Place) -> str:
    try:
        return read_file(path).decode(errors="backslashreplace")
    except OSError as error:
        return f"{path} cannot be read ({reason(error)})."


def _attempt_in_words(row: Mapping[str, Any]) -> str:
    """Trial, attempt, arm, replicate, what became of it and the first line of why."""
    what = row["failure_class"] if row["status"] == "failed" and row["failure_class"] else row["status"]
    why = f": {row['failure_message'].splitlines()[0]}" if row["failure_message"] else ""
    setting = "" if row["setting"] in ("", "{}") else f" {row['setting']}"
    place = f"  {row['arm']}{setting}, replicate {row['replicate']}" if row["arm"] else ""
    return f"{row['trial']} attempt {row['attempt']}{place}  {what}{why}"


def _logs_command(study: str, trial: str, storage: Place) -> str:
    return f"lnl logs {study} {trial}{storage_flag(storage)}"


# --------------------------------------------------------------------------------------------------- methods, doctor


def _methods(name: str | None) -> int:
    """All methods in a table, or what the file of one says of itself and of its switches."""
    if name is None:
        measured = catalogue.costs()
        table = Table("method", "what it is", "uses", Column("cost", justify="right"), box=None)
        for one in map(catalogue.entry, methods.names()):
            cost = f"{measured[one.name]:.1f}" if one.name in measured else ""
            table.add_row(one.name, escape(one.title), ", ".join(one.uses), cost)
    else:
        one = catalogue.entry(name)
        columns = ("switch", "default", "search", "meaning")
        table = Table(*columns, box=None, title=escape(one.title), title_justify="left")
        for switch in one.switches:
            texts = (catalogue.default_text(switch.default), switch.search, switch.meaning)
            table.add_row(f"method.{switch.name}", *map(escape, texts))
        table.caption = f"A search tries, of the trial's own fields: {one.search}." if one.search else None
    _show(table)
    return COMPLETE


def _doctor(storage: Place, as_json: bool) -> int:
    facts, problems = doctor.examine(Store(storage))
    if as_json:
        print(json.dumps({"facts": facts, "problems": problems}, indent=1))
    else:
        print("  ".join(f"{name} {value}" for name, value in facts.items()))
        print("\n".join(problems) or "No problem found.")
    return ERROR if problems else COMPLETE
